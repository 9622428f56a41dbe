"""A build from a legacy network: its phases, shallow alternatives, and the routes through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from torch import nn

from opa_trt.builder.compiling import References
from opa_trt.builder.leaf import LeafDeployment
from opa_trt.builder.legacy_network import augmented, legacy_file
from opa_trt.builder.parts import Parts
from opa_trt.errors import RecipeError
from opa_trt.supernet.legacy import Augmented, Configuration, load_shallow
from opa_trt.supernet.legacy.folding import fold_traced
from opa_trt.tree import Tree

EXIT = "exit"  # of the exit head's arrays


@dataclass
class LegacyParts(Parts):
    """One build from a legacy network."""

    def check(self) -> None:
        """Raises RecipeError, ConfigError or CheckpointError: a pioneer of no or of all phases,
        baselines that only super-networks have, a network that cannot be augmented, or weights
        that are not its."""
        last, stages = len(self.network.phases) - 1, self.recipe.pioneer.stages
        if not 1 <= stages <= last:
            message = f"pioneer.stages = {stages}."
            raise RecipeError(message, expected=f"1 to {last}: phases before the first exit.")
        if self.recipe.baselines.branchynet:
            message = f"baselines.branchynet = {self.recipe.baselines.branchynet}."
            raise RecipeError(message, expected="0: a legacy network has one exit head.")
        if self.recipe.pioneer.resolutions:
            message = f"pioneer.resolutions = {list(self.recipe.pioneer.resolutions)}."
            raise RecipeError(message, expected="none: a legacy network reads data.size.")

    # --- from recipe and images -----------------------------------------------------------------

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The legacy network's, where it has a file, and the shallow phases'."""
        own = legacy_file(self.recipe)
        return (*(() if own is None else (own,)), self.recipe.named_checkpoint())

    @cached_property
    def network(self) -> Augmented:
        """The network with its trained shallow phases."""
        network = augmented(self.recipe, len(self.classes))
        load_shallow(network, self.recipe.named_checkpoint())
        return network.eval().requires_grad_(False)

    # --- from what stages found -----------------------------------------------------------------

    @cached_property
    def covering_deployment(self) -> LeafDeployment:
        """Few routes that pass every alternative, and the complete networks beside them."""
        count, stages = len(self.network.phases), self.recipe.pioneer.stages
        ways = product((False, True), repeat=stages)
        routes = [(*way, *[bool(i % 2)] * (count - stages)) for i, way in enumerate(ways)]
        return self._deployment([Configuration(route) for route in routes])

    @cached_property
    def deployment(self) -> LeafDeployment:
        """The routes that were chosen."""
        return self._deployment(configurations_in(self.found["routes"].facts["routes"]))

    def _deployment(self, routes: Sequence[Configuration]) -> LeafDeployment:
        place = self.recipe.pioneer.stages - 1
        channels = int(self.found["pioneer"].facts["channels"])
        return LeafDeployment(
            self.network,
            routes,
            self.preprocess(self.recipe.data.size),
            {place: self.exit_head("pioneer", EXIT, channels)},
            configurations_in(self.found["configurations"].facts["wholes"]),
            self.recipe.baselines.cascade,
        )

    @property
    def tree(self) -> Tree:
        """The chosen routes' nodes, and the complete networks'."""
        return self.deployment.tree

    @property
    def covering(self) -> Tree:
        """That of the routes that pass every alternative."""
        return self.covering_deployment.tree

    @cached_property
    def covering_references(self) -> References:
        """Of every alternative."""
        return self.references_of(self.covering)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every alternative's, whether a chosen route passes it or not."""
        return self.covering_deployment.modules

    def fold(self, module: nn.Module) -> nn.Module:
        """By what runs: the network may be of any make."""
        return fold_traced(module)

    @property
    def telling(self) -> tuple[str, ...]:
        """Of the legacy network the first phases, and the last."""
        names = self.covering_deployment.segments_of(self.network.legacy_configuration)
        return names[0], names[-1]


def configurations_in(rows: Sequence[Sequence[int]]) -> list[Configuration]:
    """What a stage found, as the bits of each."""
    return [Configuration.from_bits(row) for row in rows]
