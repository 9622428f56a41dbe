"""What a build deploys: opa's nodes, and those of the systems that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise

import numpy as np
from torch import nn

from opa_trt.builder.entries import PIONEER, Entry, Family
from opa_trt.builder.network import Cut, Exit, Pioneer
from opa_trt.builder.recipe_tables import BaselinesRecipe
from opa_trt.supernet import Arch
from opa_trt.tree import BRANCHYNET, CASCADE, FEATURES, IMAGES, LOGITS, OPA, WHOLE, Node

AGAIN = "-complete"  # what the names of nodes end with that read the images again


@dataclass(frozen=True)
class Deployment:
    """Nodes and their segments, from the archs that were chosen. A segment is called as its first
    node; a node of another system may share it.

    Args:
        cut: where pioneers and tails meet.
        families: the entries and their tails, by ascending resolution.
        complete: archs of the complete sub-networks, by ascending MACs.
        wanted: the systems beside ``opa``.
        again: whether the smallest of the complete sub-networks is a pioneer, too, and the others
            are its tails, which read the images again.
    """

    cut: Cut
    families: Sequence[Family]
    complete: Sequence[Arch]
    wanted: BaselinesRecipe
    again: bool = False

    @cached_property
    def tails(self) -> dict[str, tuple[Entry, Arch]]:
        """Every tail's entry and arch, by its name."""
        return {
            name: (family.entry, arch)
            for family in self.families
            for name, arch in family.by_name.items()
        }

    @property
    def largest(self) -> str:
        """The largest tail of the largest resolution."""
        return self.families[-1].tail_names[-1]

    @property
    def whole(self) -> dict[str, Arch]:
        """The complete sub-networks, ``whole1`` (fewest MACs) …."""
        return {f"whole{number}": arch for number, arch in enumerate(self.complete, 1)}

    @cached_property
    def exits(self) -> dict[str, slice]:
        """The exits after the pioneer's, ``exit2`` …, and the largest tail's parts up to each.

        It is cut between stages, so that the MACs of the costliest piece are the fewest.
        """
        pieces = self.wanted.branchynet - 1
        if pieces < 1:
            return {}
        macs = self.cut.part_macs(self.tails[self.largest][1])
        ways = ((0, *ends, len(macs)) for ends in combinations(range(1, len(macs)), pieces - 1))
        best = min(ways, key=lambda way: max(sum(macs[a:b]) for a, b in pairwise(way)))
        return {f"exit{i}": slice(a, b) for i, (a, b) in enumerate(pairwise(best), 2)}

    def modules(
        self,
        pioneers: Mapping[str, Pioneer],
        tails: Mapping[str, nn.Sequential],
        wholes: Mapping[str, nn.Sequential],
        heads: Mapping[str, nn.Sequential],
    ) -> dict[str, nn.Module]:
        """Every segment's module, of the calibrated parts by name; ``heads`` are the exits'."""
        pieces = [*tails[self.largest]]
        bodies = {name: nn.Sequential(*pieces[parts]) for name, parts in self.exits.items()}
        exits = {
            name: Exit(body, heads[name]) if name in heads else body
            for name, body in bodies.items()
        }
        return {**pioneers, **tails, **wholes, **exits}

    def nodes(
        self, pioneer_macs: Mapping[str, int], head_macs: Mapping[str, int]
    ) -> tuple[Node, ...]:
        """Every system's nodes, parents first; their accuracy is not known yet.

        Args:
            pioneer_macs: of every pioneer, its exit head included.
            head_macs: of the heads of the exits after it, by node.
        """
        return (
            *(node for family in self.families for node in self._opa(family, pioneer_macs)),
            *complete_networks([*self.whole], self.wanted.cascade, self._complete),
            *self._complete_tree(),
            *self._branchynet(pioneer_macs, head_macs),
        )

    def _opa(self, family: Family, pioneer_macs: Mapping[str, int]) -> Iterator[Node]:
        entry, names = family.entry, family.tail_names
        outputs, code = (FEATURES, LOGITS), self._code(entry.pioneer)
        macs = pioneer_macs[entry.name]
        yield Node(entry.name, entry.name, IMAGES, outputs, tuple(names), entry.side, code, macs)
        for name, arch in family.by_name.items():
            macs, code = self.cut.tail_macs(arch), self._code(arch)
            yield Node(name, name, FEATURES, (LOGITS,), (), entry.side, code, macs)

    def _complete_tree(self) -> Iterator[Node]:
        """The smallest complete sub-network as a pioneer, and the others as its tails."""
        if not self.again:
            return
        names = {segment: f"tail{place}{AGAIN}" for place, segment in enumerate(self.whole)}
        first, *rest = self.whole
        yield self._complete(f"{PIONEER}{AGAIN}", first, OPA, tuple(names[each] for each in rest))
        for segment in rest:
            yield self._complete(names[segment], segment, OPA, ())

    def _complete(self, name: str, segment: str, system: str, successors: tuple[str, ...]) -> Node:
        arch = self.whole[segment]
        macs = self.cut.supernet.space.macs(arch)
        side, code = arch.resolution, self._code(arch)
        return Node(
            name, segment, IMAGES, (LOGITS,), successors, side, code, macs, system=system
        )  # fmt: skip

    def _branchynet(
        self, pioneer_macs: Mapping[str, int], head_macs: Mapping[str, int]
    ) -> Iterator[Node]:
        if not self.exits:
            return
        (entry, arch), names = self.tails[self.largest], ["exit1", *self.exits]
        code, parts = self._code(arch), self.cut.part_macs(arch)
        for place, name in enumerate(names, 1):
            after, first = tuple(names[place : place + 1]), name not in self.exits
            if first:
                macs = pioneer_macs[entry.name]
            else:
                macs = sum(parts[self.exits[name]]) + head_macs.get(name, 0)
            yield Node(
                name,
                entry.name if first else name,
                IMAGES if first else FEATURES,
                (FEATURES, LOGITS) if after else (LOGITS,),
                after,
                entry.side,
                self._code(entry.pioneer) if first else code,
                macs,
                system=BRANCHYNET,
            )

    def _code(self, arch: Arch) -> tuple[float, ...]:
        return tuple(map(float, self.cut.supernet.space.encode(arch)))


def complete_networks(
    segments: Sequence[str],
    cascade: int,
    node: Callable[[str, str, str, tuple[str, ...]], Node],
) -> Iterator[Node]:
    """The nodes of complete networks: each alone, and a cascade of some of them.

    Args:
        segments: theirs, by ascending MACs; a network by itself is called as its segment.
        cascade: of how many; 0, or 2 and more.
        node: makes one of its name, segment, system and successors.
    """
    for name in segments:
        yield node(name, name, WHOLE, ())
    chosen = [segments[place] for place in spread(len(segments), cascade)]
    names = [f"cascade{place}" for place in range(1, len(chosen) + 1)]
    for place, (name, segment) in enumerate(zip(names, chosen, strict=True), 1):
        yield node(name, segment, CASCADE, tuple(names[place : place + 1]))


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` (none, or 2 to ``count``) of ``count`` places, evenly, both ends included."""
    return [round(place) for place in np.linspace(0, count - 1, wanted).tolist()]
