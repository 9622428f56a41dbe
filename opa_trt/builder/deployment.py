"""What a build deploys: opa's nodes, and those of the systems that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise

import numpy as np
from torch import nn

from opa_trt.builder.network import Cut, Exit, Pioneer
from opa_trt.builder.recipe import BaselinesRecipe
from opa_trt.supernet import Arch
from opa_trt.tree import BRANCHYNET, CASCADE, FEATURES, IMAGES, LOGITS, WHOLE, Node

PIONEER = "pioneer"


@dataclass(frozen=True)
class Deployment:
    """Nodes and their segments, from the archs that were chosen. A segment is called as its first
    node; a node of another system may share it.

    Args:
        cut: where pioneer and tails meet.
        pioneer: its arch.
        tails: their archs, by ascending MACs.
        front: places of the tails that are on the Pareto front.
        wanted: the systems beside ``opa``.
    """

    cut: Cut
    pioneer: Arch
    tails: Sequence[Arch]
    front: Sequence[int]
    wanted: BaselinesRecipe

    @property
    def tail_names(self) -> list[str]:
        """``tail1`` (fewest MACs) …"""
        return [f"tail{i + 1}" for i in range(len(self.tails))]

    @cached_property
    def whole(self) -> dict[str, int]:
        """The complete sub-networks, ``whole1`` (fewest MACs) …, and which tail each ends in."""
        enough = len(self.front) >= self.wanted.whole
        places = self.front if enough else range(len(self.tails))
        chosen = (places[i] for i in spread(len(places), self.wanted.whole))
        return {f"whole{i}": place for i, place in enumerate(chosen, 1)}

    @cached_property
    def exits(self) -> dict[str, slice]:
        """The exits after the pioneer's, ``exit2`` …, and the largest tail's parts up to each.

        It is cut between stages, so that the MACs of the costliest piece are the fewest.
        """
        pieces = self.wanted.branchynet - 1
        if pieces < 1:
            return {}
        macs = self.cut.part_macs(self.tails[-1])
        ways = ((0, *ends, len(macs)) for ends in combinations(range(1, len(macs)), pieces - 1))
        best = min(ways, key=lambda way: max(sum(macs[a:b]) for a, b in pairwise(way)))
        return {f"exit{i}": slice(a, b) for i, (a, b) in enumerate(pairwise(best), 2)}

    def modules(
        self,
        pioneer: Pioneer,
        tails: Mapping[str, nn.Sequential],
        heads: Mapping[str, nn.Sequential],
    ) -> dict[str, nn.Module]:
        """Every segment's module, of the calibrated parts; ``heads`` are the exits'."""
        names, largest = self.tail_names, tails[self.tail_names[-1]]
        wholes = {
            name: nn.Sequential(pioneer.preprocess, pioneer.trunk, tails[names[place]])
            for name, place in self.whole.items()
        }
        pieces = [*largest]
        bodies = {name: nn.Sequential(*pieces[parts]) for name, parts in self.exits.items()}
        exits = {
            name: Exit(body, heads[name]) if name in heads else body
            for name, body in bodies.items()
        }
        return {PIONEER: pioneer, **tails, **wholes, **exits}

    def nodes(self, pioneer_macs: int, head_macs: Mapping[str, int]) -> tuple[Node, ...]:
        """Every system's nodes, parents first; their accuracy is not known yet.

        Args:
            pioneer_macs: its exit head included.
            head_macs: of the heads of the exits after it, by node.
        """
        return (
            *self._opa(pioneer_macs),
            *self._whole(),
            *self._cascade(),
            *self._branchynet(pioneer_macs, head_macs),
        )

    def _opa(self, macs: int) -> Iterator[Node]:
        names, side = self.tail_names, self.pioneer.resolution
        outputs, code = (FEATURES, LOGITS), self._code(self.pioneer)
        yield Node(PIONEER, PIONEER, IMAGES, outputs, tuple(names), side, code, macs)
        for name, arch in zip(names, self.tails, strict=True):
            macs, code = self.cut.tail_macs(arch), self._code(arch)
            yield Node(name, name, FEATURES, (LOGITS,), (), side, code, macs)

    def _whole(self) -> Iterator[Node]:
        for name in self.whole:
            yield self._complete(name, name, WHOLE, ())

    def _cascade(self) -> Iterator[Node]:
        segments = [*self.whole]
        chosen = [segments[i] for i in spread(len(segments), self.wanted.cascade)]
        names = [f"cascade{i + 1}" for i in range(len(chosen))]
        for place, (name, segment) in enumerate(zip(names, chosen, strict=True), 1):
            yield self._complete(name, segment, CASCADE, tuple(names[place : place + 1]))

    def _complete(self, name: str, segment: str, system: str, successors: tuple[str, ...]) -> Node:
        arch = self.tails[self.whole[segment]]
        macs = self.cut.supernet.space.macs(arch)
        side, code = arch.resolution, self._code(arch)
        return Node(
            name, segment, IMAGES, (LOGITS,), successors, side, code, macs, system=system
        )  # fmt: skip

    def _branchynet(self, pioneer_macs: int, head_macs: Mapping[str, int]) -> Iterator[Node]:
        if not self.exits:
            return
        arch, names = self.tails[-1], ["exit1", *self.exits]
        side, code, parts = arch.resolution, self._code(arch), self.cut.part_macs(arch)
        for place, name in enumerate(names, 1):
            after, first = tuple(names[place : place + 1]), name not in self.exits
            macs = pioneer_macs if first else sum(parts[self.exits[name]]) + head_macs.get(name, 0)
            yield Node(
                name,
                PIONEER if first else name,
                IMAGES if first else FEATURES,
                (FEATURES, LOGITS) if after else (LOGITS,),
                after,
                side,
                self._code(self.pioneer) if first else code,
                macs,
                system=BRANCHYNET,
            )

    def _code(self, arch: Arch) -> tuple[float, ...]:
        return tuple(map(float, self.cut.supernet.space.encode(arch)))


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` (none, or 2 to ``count``) of ``count`` places, evenly, both ends included."""
    return [round(place) for place in np.linspace(0, count - 1, wanted).tolist()]
