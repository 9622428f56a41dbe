"""An augmented network as a tree of segments: a phase a level, engines shared (LeAF)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from opa_trt.builder.deployment import complete_networks
from opa_trt.builder.network import Exit, Pioneer
from opa_trt.errors import ConfigError
from opa_trt.supernet.legacy import Augmented, Configuration, PhaseCosts
from opa_trt.supernet.legacy.cost import measured_cost
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Tree

Way = tuple[bool, ...]  # of the first phases: which run shallow


@dataclass(frozen=True)
class LeafDeployment:
    """The routes of an augmented network that are deployed, as nodes and their segments.

    The first phase with an exit head is the pioneer: an entry runs all phases up to it, one entry
    for every choice among them that a route begins with. Without exit heads the entries end at the
    first phase, and have no logits. Every later level is a phase, and its nodes are the legacy and
    the shallow alternative of it after each node before: those of one alternative share a segment,
    called after its phase (``shallow3``). An entry's segment is called as the entry.

    Args:
        network: trained, in evaluation mode.
        routes: the configurations, such as those on the Pareto front.
        preprocess: from images to what the network reads; its resolution is the tree's.
        exits: exit heads by the phase (from 0) that each follows; both alternatives have it.
        wholes: configurations that are deployed as one engine each, too, by ascending MACs.
        cascade: of how many of those a cascade is made; 0, or 2 and more.

    Raises:
        ConfigError: no routes, a repeated one, one of another number of phases, an exit head that
            does not stand between two phases, or a network in training mode.
    """

    network: Augmented
    routes: Sequence[Configuration]
    preprocess: Preprocess
    exits: Mapping[int, nn.Sequential] = field(default_factory=dict)
    wholes: Sequence[Configuration] = ()
    cascade: int = 0

    def __post_init__(self) -> None:
        count = len(self.network.phases)
        if not self.routes or len(set(self.routes)) < len(self.routes):
            message = f"routes {', '.join(map(str, self.routes)) or 'none'}."
            raise ConfigError(message, expected="at least one, and each once.")
        for route in (*self.routes, *self.wholes):
            if len(route.shallow) != count:
                message = f"route {route} of {len(route.shallow)} phases."
                raise ConfigError(message, expected=f"one of {count}.")
        if wrong := [place for place in self.exits if not 0 <= place < count - 1]:
            message = f"an exit head after phase {wrong[0]} of {count}."
            raise ConfigError(message, expected=f"0 to {count - 2}: the network ends in its own.")
        if self.network.training:
            message = "the network is in training mode."
            raise ConfigError(message, expected="evaluation mode.", remedy="call network.eval().")

    @cached_property
    def tree(self) -> Tree:
        """Every node, parents first; their accuracy is not known yet."""
        nodes = []
        for last in range(self._first, self._count):
            ways = self._ways(last)
            for way in ways:
                nodes.append(self._node(way))
        return Tree((*nodes, *complete_networks([*self._whole], self.cascade, self._complete)))

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every segment's module, by its name. They share the network's layers."""
        found: dict[str, nn.Module] = {}
        for last in range(self._first, self._count):
            for way in self._ways(last):
                found.setdefault(self._segment(way), self._module(way))
        for name, whole in self._whole.items():
            found[name] = nn.Sequential(self.preprocess, *self.network.pieces(whole.shallow)).eval()
        return found

    def segments_of(self, route: Configuration) -> list[str]:
        """The segments that a route passes, deployed or not."""
        places = range(self._first + 1, self._count + 1)
        return [self._segment(route.shallow[:end]) for end in places]

    def node_of(self, route: Configuration) -> str:
        """The leaf that a route ends in.

        Raises:
            ConfigError: the route is not deployed.
        """
        if route not in self.routes:
            message = f"route {route} is not deployed."
            raise ConfigError(message, expected=f"one of {', '.join(map(str, self.routes))}.")
        return _name(route.shallow)

    @property
    def _count(self) -> int:
        return len(self.network.phases)

    @property
    def _first(self) -> int:
        """The phase that entries end at."""
        return min(self.exits, default=0)

    def _ways(self, last: int) -> list[Way]:
        """The beginnings of routes, up to the phase ``last``."""
        return [*dict.fromkeys(route.shallow[: last + 1] for route in self.routes)]

    def _segment(self, way: Way) -> str:
        return _name(way) if len(way) - 1 == self._first else _kind(len(way), way[-1])

    def _node(self, way: Way) -> Node:
        last, side = len(way) - 1, self.preprocess.resolution
        successors = [each for each in self._ways(last + 1) if each[:-1] == way]
        ends = last == self._count - 1
        outputs = (LOGITS,) if ends else (FEATURES, LOGITS) if last in self.exits else (FEATURES,)
        rest = [True] * (self._count - len(way))  # as elsewhere, the smallest
        return Node(
            _name(way),
            self._segment(way),
            IMAGES if last == self._first else FEATURES,
            outputs,
            () if ends else tuple(map(_name, successors)),
            side,
            tuple(map(float, (*way, *rest))),
            self._macs(way),
        )

    @property
    def _whole(self) -> dict[str, Configuration]:
        return {f"whole{place}": each for place, each in enumerate(self.wholes, 1)}

    def _complete(self, name: str, segment: str, system: str, successors: tuple[str, ...]) -> Node:
        whole = self._whole[segment]
        code = tuple(map(float, whole.shallow))
        macs, side = self._costs.of(whole).macs, self.preprocess.resolution
        return Node(name, segment, IMAGES, (LOGITS,), successors, side, code, macs, system=system)

    def _module(self, way: Way) -> nn.Module:
        """Of the segment that the node of this way has."""
        last = len(way) - 1
        body = nn.Sequential(*self._parts(way))
        head = self.exits.get(last)
        if last > self._first:
            return (body if head is None else Exit(body, head)).eval()
        if head is None:
            return nn.Sequential(self.preprocess, body).eval()
        return Pioneer(self.preprocess, body, head).eval()

    def _parts(self, way: Way) -> Iterator[nn.Module]:
        """What the segment of a way computes, but for preprocessing and exit head."""
        last = len(way) - 1
        if last == self._first:
            return self.network.pieces(way)
        return iter((self.network.phase(last, way[last]), self.network.links[last + 1]))

    def _macs(self, way: Way) -> int:
        """Of the segment for one image, its exit head included."""
        last, costs = len(way) - 1, self._costs
        entry = last == self._first
        places = range(last + 1) if entry else (last,)
        total = costs.links[0].macs if entry else 0
        for place in places:
            total += (costs.shallow if way[place] else costs.legacy)[place].macs
            total += costs.links[place + 1].macs
        return total + self._head_macs.get(last, 0)

    @cached_property
    def _costs(self) -> PhaseCosts:
        return self.network.costs(self.preprocess.resolution)

    @cached_property
    def _head_macs(self) -> dict[int, int]:
        """Of every exit head, for one image."""
        side = self.preprocess.resolution
        features, found = torch.empty((1, 3, side, side), device="meta"), {}
        for place in range(-1, self._count - 1):
            if place >= 0:
                features = measured_cost(self.network.legacy[place], features)[1]
            features = measured_cost(self.network.links[place + 1], features)[1]
            if place in self.exits:
                found[place] = measured_cost(self.exits[place], features)[0].macs
        return found


def _name(way: Way) -> str:
    """``legacy1-shallow2``: what runs, phases numbered from 1."""
    return "-".join(_kind(place, shallow) for place, shallow in enumerate(way, 1))


def _kind(phase: int, shallow: bool) -> str:
    """``shallow2``: an alternative of a phase, numbered from 1."""
    return f"{'shallow' if shallow else 'legacy'}{phase}"
