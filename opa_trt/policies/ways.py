"""The ways that lead on from a node to an answer: what policies choose among."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ConfigError
from opa_trt.policies.base import STOP, Milliseconds, Promise, View
from opa_trt.tree import Route, Tree


class Paths:
    """Which of a tree's nodes each of some routes passes.

    Args:
        tree: whose nodes they are.
        routes: parts of ways through it.
    """

    def __init__(self, tree: Tree, routes: Sequence[Route]) -> None:
        rows = {name: row for row, name in enumerate(tree.nodes)}
        self._passes = np.zeros((len(routes), len(rows)))
        for place, route in enumerate(routes):
            self._passes[place, [rows[name] for name in route.nodes]] = 1
        self._steps = self._passes.sum(axis=1, keepdims=True)

    def ms(
        self, each_ms: Milliseconds, overhead_ms: float | Milliseconds, promise: Promise
    ) -> Milliseconds:
        """``[routes, B]`` promised of what ``[nodes, B]`` is expected of nodes, and what the
        runtime itself takes for each of them."""
        found: Milliseconds = promise.ms(self._passes @ each_ms)
        found += self._steps * overhead_ms
        return found


@dataclass(frozen=True, eq=False)
class Ways:
    """Every way from a node to logits below it.

    Where all successors are leaves, a way is a successor. Where a network goes on in levels, as
    one with shallow phases does, several ways begin with the same successor, and nodes on them may
    have no logits: what was believed at the last node that had some is what there is.

    Args:
        node: where they begin.
        ends: the nodes with logits that they lead to.
        through: ``[W] intp``, the place among the node's successors that each begins with.
        paths: what they pass; None where the ways are the successors.
    """

    node: str
    ends: tuple[str, ...]
    through: npt.NDArray[np.intp]
    paths: Paths | None = None

    @classmethod
    def of_leaves(cls, node: str, successors: tuple[str, ...]) -> Ways:
        """Those of a node whose successors are leaves."""
        return cls(node, successors, np.arange(len(successors)))

    @classmethod
    def below(cls, tree: Tree, node: str) -> Ways:
        """Those of a node of ``tree`` that has successors."""
        successors = tree[node].successors
        routes = [(place, r) for place, name in enumerate(successors) for r in tree.routes(name)]
        ends = tuple(route.last for _, route in routes)
        if ends == successors:
            return cls.of_leaves(node, successors)
        through = np.array([place for place, _ in routes], dtype=np.intp)
        return cls(node, ends, through, Paths(tree, [route for _, route in routes]))

    @property
    def direct(self) -> bool:
        """Whether they are the successors."""
        return self.paths is None

    def latency_ms(self, view: View) -> Milliseconds:
        """``[W, B]`` promised latency of every way at each of the view's batches.

        Raises:
            ConfigError: the view lacks the nodes' latencies, and a way has several.
        """
        if self.paths is None:
            return view.latency_ms
        if view.each_ms is None:
            message = f"the ways on from {self.node} need every node's latency."
            raise ConfigError(message, expected="a view that has each_ms.")
        return self.paths.ms(view.each_ms, view.overhead_ms, view.promise)

    def by_successor(self, values: Sequence[float]) -> tuple[float, ...]:
        """Of values of the ways the largest through each successor."""
        if self.direct:
            return tuple(values)
        largest = np.full(int(self.through.max()) + 1, -np.inf)
        np.maximum.at(largest, self.through, values)
        return tuple(largest.tolist())

    def begins(self, way: int | None) -> int:
        """The place among the successors that a way begins with; ``STOP`` for none."""
        return STOP if way is None else int(self.through[way])

    def begin(self, choice: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same choice of ways (or ``STOP``) ``[N]``, as one of successors."""
        return np.where(choice == STOP, STOP, self.through[choice])

    def best(
        self, values: Sequence[float], latency: Sequence[float], left_ms: float
    ) -> tuple[int | None, int]:
        """The place of the way that fits and has the largest value (None where none fits), and
        how many fit. Of equal ones the faster wins.

        Args:
            values: of each way.
            latency: of each way, in ms.
            left_ms: what there is time for.
        """
        fitting = [place for place, ms in enumerate(latency) if ms <= left_ms]
        best = max(fitting, key=lambda place: (values[place], -latency[place]), default=None)
        return best, len(fitting)


def every_way(tree: Tree, system: str) -> dict[str, Ways]:
    """The ways on from each node of a system that has successors, by its name."""
    return {
        node.name: Ways.below(tree, node.name)
        for node in tree.nodes.values()
        if node.successors and node.system == system
    }
