"""A build from a super-network: a pioneer for each resolution, and its tails."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from opa_trt.builder.deployment import Deployment
from opa_trt.builder.entries import Entry, Family, Shape, check_sides, make_entries
from opa_trt.builder.network import UNCUT, Cut, Pioneer
from opa_trt.builder.parts import Parts, below
from opa_trt.builder.study_shapes import most_stages
from opa_trt.errors import RecipeError
from opa_trt.supernet import Arch, Supernet, load
from opa_trt.supernet.fold import fold
from opa_trt.training.exit_head import exit_head
from opa_trt.tree import Tree


@dataclass
class SupernetParts(Parts):
    """One build from a super-network."""

    def check(self) -> None:
        """Raises RecipeError, ArchError or CheckpointError: shapes that the space lacks, or no
        weights of it."""
        if self.recipe.pioneer.stages:
            for entry in self.entries:
                self.cut.trunk_macs(entry.pioneer)
        else:
            check_sides(self.supernet.space, self.recipe.pioneer.resolutions)
            most_stages(self.supernet.space, self.recipe)

    # --- from recipe and images -----------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The weights' file.

        Raises:
            CheckpointError: the recipe names none.
        """
        return self.recipe.named_checkpoint()

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The checkpoint."""
        return (self.checkpoint,)

    @cached_property
    def supernet(self) -> Supernet:
        """The weights, checked against the recipe's space."""
        space = self.recipe.make_space(len(self.classes))
        return load(self.checkpoint, expected=space)

    @cached_property
    def shape(self) -> Shape:
        """What every pioneer is made of: what the recipe says, or else what the study chose."""
        if self.recipe.pioneer.stages:
            return Shape.of(self.recipe.pioneer)
        return Shape(**self.found["study"].facts["choice"])

    @cached_property
    def cut(self) -> Cut:
        """Where pioneers and tails meet.

        Raises:
            RecipeError: after the last stage, or with fewer stages left than exits asked for.
        """
        stages, total = self.shape.stages, len(self.supernet.space.slots)
        if stages >= total:
            message = f"pioneer.stages = {stages}."
            raise RecipeError(message, expected=f"fewer than the space's {total}.")
        if self.recipe.baselines.branchynet > (most := total - stages + 2):
            message = f"baselines.branchynet = {self.recipe.baselines.branchynet}."
            raise RecipeError(message, expected=f"at most {most}: the largest tail has no more.")
        return Cut(self.supernet, stages)

    @property
    def uncut(self) -> Cut:
        """Of networks in one piece."""
        return Cut(self.supernet, UNCUT)

    @cached_property
    def entries(self) -> list[Entry]:
        """A pioneer for each resolution, ascending.

        Raises:
            RecipeError, ArchError: as ``make_entries`` says.
        """
        return make_entries(self.supernet.space, self.shape, self.recipe.pioneer.resolutions)

    def assemble(self, trunk: nn.Sequential, head: nn.Sequential, side: int) -> Pioneer:
        """A pioneer's module, with the recipe's preprocessing in front."""
        return Pioneer(self.preprocess(side), trunk, head)

    # --- from what stages found -----------------------------------------------------------------

    @cached_property
    def pioneers(self) -> dict[str, Pioneer]:
        """Every entry's calibrated pioneer with its trained exit head, by name."""
        found, width, made = self.found["pioneer"], self.recipe.pioneer.head_width, {}
        for entry in self.entries:
            channels = int(found.facts["entries"][entry.name]["channels"])
            head = exit_head(channels, width, len(self.classes))
            module = self.assemble(self.cut.trunk(entry.pioneer), head, entry.side)
            module.load_state_dict(below(f"{entry.name}/", found.arrays.items()))
            made[entry.name] = module.eval().requires_grad_(False)
        return made

    @cached_property
    def pioneer_macs(self) -> dict[str, int]:
        """Of every pioneer, its exit head included."""
        rows = self.found["pioneer"].facts["entries"]
        return {name: int(row["macs"]) for name, row in rows.items()}

    @cached_property
    def families(self) -> list[Family]:
        """Every entry with its chosen tails."""
        archs = self.found["tails"].facts["archs"]
        return [Family(e, tuple(map(Arch.from_dict, archs[e.name]))) for e in self.entries]

    @cached_property
    def deployment(self) -> Deployment:
        """What is deployed, and where the archs of the systems beside ``opa`` come from."""
        archs = self.found["wholes"].facts["archs"] if "wholes" in self.found else ()
        complete = [*map(Arch.from_dict, archs)]
        again = self.recipe.tails.complete
        return Deployment(self.cut, self.families, complete, self.recipe.baselines, again)

    @cached_property
    def tree(self) -> Tree:
        """Every system's nodes, parents first."""
        exits = self.found["calibrate"].facts["exits"]
        head_macs = {name: row["head_macs"] for name, row in exits.items()}
        return Tree(self.deployment.nodes(self.pioneer_macs, head_macs))

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every segment's calibrated module, by its name."""
        found, tails, wholes = self.found["calibrate"], {}, {}
        for name, (_, arch) in self.deployment.tails.items():
            tails[name] = self.cut.tail(arch)
            tails[name].load_state_dict(below(f"{name}/", found.arrays.items()))
        for name, arch in self.deployment.whole.items():
            network = self.uncut.tail(arch)
            network.load_state_dict(below(f"{name}/", found.arrays.items()))
            wholes[name] = nn.Sequential(self.preprocess(arch.resolution), network)
        heads = {
            name: self.exit_head("calibrate", name, int(row["channels"]))
            for name, row in found.facts["exits"].items()
        }
        return self.deployment.modules(self.pioneers, tails, wholes, heads)

    def fold(self, module: nn.Module) -> nn.Module:
        """By how the elastic layers are nested."""
        return fold(module)

    @property
    def telling(self) -> tuple[str, ...]:
        """The largest resolution's pioneer, and its largest tail."""
        return self.entries[-1].name, self.deployment.largest
