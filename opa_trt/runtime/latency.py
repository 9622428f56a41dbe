"""How long a node will take now: its profile, scaled by what recent groups showed."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from opa_trt.store import LatencyProfile
from opa_trt.tree import Tree

READING_WEIGHT = 0.3  # of this group's pioneer against the filtered slowdown: one reading is noise
FORGET = 0.15  # weight of the newest group in the filtered values
WINDOW = 100  # residuals that the margin is taken from, and groups after which one is forgotten
QUANTILE = 0.99
OVERHEADS = 50


class LatencyModel:
    """(node, batch, recent evidence of slowdown) to ms.

    A node's profiled median is scaled by the slowdown (this group's entry reading blended with
    the filtered one, in logarithms) and by the node's own recent residual, then by a margin: the
    99 % quantile of measured over predicted latency among ``WINDOW`` residuals. Those of the last
    ``WINDOW`` groups count; the profile's own p99 over p50 stands in for those that are missing,
    so a node that is not tried for a while is tried again, and one outlier in a hundred is none.

    Args:
        tree: the nodes.
        profiles: a latency profile for each node.
        max_batch: largest batch asked for.
    """

    def __init__(self, tree: Tree, profiles: Mapping[str, LatencyProfile], max_batch: int) -> None:
        self._index = {name: i for i, name in enumerate(tree.nodes)}
        sizes = range(max_batch + 1)
        self._median = np.array(
            [[profiles[name].at(max(1, n)) for n in sizes] for name in tree.nodes]
        )
        self._spread = np.array([_spread(profiles[name]) for name in tree.nodes])
        self._ways = {
            name: [np.array([self._index[step] for step in route.nodes]) for route in
                   tree.routes(name)]
            for name in tree.nodes
        }  # fmt: skip
        self._every = np.arange(len(self._index))
        self._log_slowdown = 0.0
        self._log_residual = np.zeros(len(self._index))
        self._scores: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._group = 0
        self._overheads: deque[float] = deque(maxlen=OVERHEADS)

    @property
    def slowdown(self) -> float:
        """The last known slowdown: 1 is as profiled."""
        return math.exp(self._log_slowdown)

    @property
    def overhead_ms(self) -> float:
        """What the runtime itself takes between a decision and the answer, with some margin."""
        known = sorted(self._overheads)
        return known[math.ceil(0.9 * (len(known) - 1))] if known else 0.0

    def profiled(self, node: str, batch: int) -> float:
        """The profiled median in ms."""
        return float(self._median[self._index[node], batch])

    def expected(self, node: str, batch: int, slowdown: float | None = None) -> float:
        """The latency to expect in ms, without margin."""
        scale = self.slowdown if slowdown is None else slowdown
        row = self._index[node]
        return float(self._median[row, batch] * scale * math.exp(self._log_residual[row]))

    def promise(
        self, nodes: Sequence[str], batches: Sequence[int], slowdown: float
    ) -> npt.NDArray[np.float64]:
        """``[len(nodes), len(batches)]`` ms that are kept with the promised quantile (p99)."""
        return self._promised(np.array([self._index[n] for n in nodes]), batches, slowdown)

    def cheapest(
        self, nodes: Sequence[str], batches: Sequence[int], slowdown: float
    ) -> npt.NDArray[np.float64]:
        """``[len(nodes), len(batches)]`` promised ms of the cheapest way to logits through each."""
        every = self._promised(self._every, batches, slowdown)
        return np.stack([_cheapest(every, self._ways[name]) for name in nodes])

    def read(self, node: str, batch: int, measured_ms: float) -> float:
        """The slowdown that an entry's reading and the recent past say together."""
        ratio = _log_ratio(measured_ms, self.profiled(node, batch))
        blended = READING_WEIGHT * ratio + (1 - READING_WEIGHT) * self._log_slowdown
        return math.exp(blended)

    def observe_entry(self, node: str, batch: int, measured_ms: float) -> None:
        """A group has entered: let its reading move the filtered slowdown, and residuals age."""
        self._group += 1
        ratio = _log_ratio(measured_ms, self.profiled(node, batch))
        self._log_slowdown += FORGET * (ratio - self._log_slowdown)

    def observe(self, node: str, expected_ms: float, measured_ms: float) -> None:
        """Let a later node's residual move its correction and the margin."""
        error = _log_ratio(measured_ms, expected_ms)
        self._log_residual[self._index[node]] += FORGET * error
        self._scores.append((self._group, math.exp(error)))

    def observe_overhead(self, ms: float) -> None:
        """Note what the runtime itself took after a decision."""
        self._overheads.append(max(0.0, ms))

    def _promised(
        self, rows: npt.NDArray[np.int64], batches: Sequence[int], slowdown: float
    ) -> npt.NDArray[np.float64]:
        scale = slowdown * np.exp(self._log_residual[rows]) * self._margin(rows)
        result: npt.NDArray[np.float64] = self._median[rows][:, list(batches)] * scale[:, None]
        return result

    def _margin(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """``[len(rows)]`` the factor on the expectation that ``QUANTILE`` of runs stay below.

        Of ``WINDOW`` scores, the missing ones padded, only the largest few can be the quantile.
        """
        recent = [score for group, score in self._scores if self._group - group < WINDOW]
        few = WINDOW - math.ceil(QUANTILE * WINDOW) + 1
        largest = heapq.nlargest(few, recent)
        copies = min(few, WINDOW - len(recent))
        pool = np.empty((len(rows), len(largest) + copies))
        pool[:, : len(largest)] = largest
        pool[:, len(largest) :] = self._spread[rows, None]
        pool.sort(axis=1)
        return np.maximum(1.0, pool[:, -few])


def _cheapest(
    every: npt.NDArray[np.float64], ways: Sequence[npt.NDArray[np.int64]]
) -> npt.NDArray[np.float64]:
    """``[batches]`` ms of the cheapest way, from ``[nodes, batches]``."""
    if len(ways) == 1 and len(ways[0]) == 1:
        row: npt.NDArray[np.float64] = every[ways[0][0]]
        return row
    cheapest: npt.NDArray[np.float64] = np.min([every[way].sum(axis=0) for way in ways], axis=0)
    return cheapest


def _spread(profile: LatencyProfile) -> float:
    """The profile's p99 over its p50, the median over buckets, within 1 and 2."""
    ratios = [row[-1] / row[0] if row[0] > 0 else 1.0 for row in profile.ms]
    return float(np.clip(np.median(ratios), 1.0, 2.0))


def _log_ratio(measured: float, expected: float) -> float:
    if measured <= 0 or expected <= 0:
        return 0.0
    return math.log(measured / expected)
