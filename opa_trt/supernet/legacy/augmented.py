"""A legacy network whose phases have shallow alternatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from opa_trt.errors import ConfigError
from opa_trt.supernet.legacy.configuration import Configuration
from opa_trt.supernet.legacy.cost import PhaseCosts, measured_cost

ALTERNATIVES = (False, True)  # of a phase: legacy, shallow


class Augmented(nn.Module):
    """The original network and a shallow alternative for each of its phases (LeAF).

    There is no active configuration: ``forward`` takes one. Original layers are frozen, weights
    and batch-norm statistics alike: ``train`` puts the shallow phases alone into training mode.

    Args:
        phases: their names, in order.
        links: what lies before, between and after them: one more than there are phases.
        legacy: the original phases.
        shallow: their alternatives, of the same input and output shapes.
        facts: plain values that say how the alternatives were made.
    """

    def __init__(
        self,
        phases: Sequence[str],
        links: Sequence[nn.Module],
        legacy: Sequence[nn.Module],
        shallow: Sequence[nn.Module],
        facts: dict[str, float],
    ) -> None:
        super().__init__()
        self.phases, self.facts = tuple(phases), facts
        self.links, self.legacy = nn.ModuleList(links), nn.ModuleList(legacy)
        self.shallow = nn.ModuleList(shallow)
        for part in (self.links, self.legacy):
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Training mode (or not) for the shallow phases; the rest stays in evaluation mode."""
        super().train(False)
        self.shallow.train(mode)
        self.training = mode
        return self

    @property
    def legacy_configuration(self) -> Configuration:
        """The original network."""
        return Configuration.of(len(self.phases))

    def configurations(self) -> Iterator[Configuration]:
        """All ``2 ** phases``, the legacy network first, the one that is all shallow last."""
        count = len(self.phases)
        return (Configuration.numbered(count, number) for number in range(2**count))

    def phase(self, place: int, shallow: bool) -> nn.Module:
        """The original phase at ``place`` (from 0), or its shallow alternative."""
        return (self.shallow if shallow else self.legacy)[place]

    def pieces(self, way: Sequence[bool]) -> Iterator[nn.Module]:
        """What runs until the link after the first phases, each its alternative of ``way``."""
        yield self.links[0]
        for place, shallow in enumerate(way):
            yield self.phase(place, shallow)
            yield self.links[place + 1]

    def forward(self, images: Tensor, configuration: Configuration) -> Tensor:
        """``[N, 3, H, W] float32``, normalised, to what the original network gives.

        The legacy configuration computes just what the original module did, to the bit.

        Raises:
            ConfigError: a configuration of another number of phases.
        """
        self._check(configuration)
        out = images
        for piece in self.pieces(configuration.shallow):
            out = piece(out)
        return out

    def forward_many(self, images: Tensor, configurations: Sequence[Configuration]) -> Tensor:
        """What several configurations make of the same images: ``[K, N, classes] float32``.

        What they have in common runs once. A phase runs on the rows of all that reach it together,
        so a batch norm in training mode normalises by them together, as its running statistics
        will.

        Raises:
            ConfigError: none, or one of another number of phases.
        """
        if not configurations:
            message = "no configuration to run."
            raise ConfigError(message, expected="at least one.")
        for configuration in configurations:
            self._check(configuration)
        features: dict[tuple[bool, ...], Tensor] = {(): self.links[0](images)}
        for place in range(len(self.phases)):
            wanted = dict.fromkeys(each.shallow[: place + 1] for each in configurations)
            found: dict[tuple[bool, ...], Tensor] = {}
            for shallow in ALTERNATIVES:
                ways = [way for way in wanted if way[-1] is shallow]
                if ways:
                    rows = torch.cat([features[way[:-1]] for way in ways])
                    rows = self.links[place + 1](self.phase(place, shallow)(rows))
                    found.update(zip(ways, rows.chunk(len(ways)), strict=True))
            features = found
        return torch.stack([features[each.shallow] for each in configurations])

    def costs(self, side: int) -> PhaseCosts:
        """MACs of one image of ``side`` pixels and parameters, of every part.

        MACs are those of convolutions and linear layers.
        """
        given = torch.empty((1, 3, side, side), device="meta")
        links, legacy, shallow = [], [], []
        for place, link in enumerate(self.links):
            cost, given = measured_cost(link, given)
            links.append(cost)
            if place < len(self.phases):
                shallow.append(measured_cost(self.shallow[place], given)[0])
                cost, given = measured_cost(self.legacy[place], given)
                legacy.append(cost)
        return PhaseCosts(tuple(links), tuple(legacy), tuple(shallow))

    def _check(self, configuration: Configuration) -> None:
        if len(configuration.shallow) != len(self.phases):
            message = f"configuration {configuration} of {len(configuration.shallow)} phases."
            raise ConfigError(message, expected=f"one of {len(self.phases)} phases.")
