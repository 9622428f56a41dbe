"""How long a node will take now: its profile, scaled by what recent groups showed."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from opa_trt.store import LatencyProfile
from opa_trt.tree import Route, Tree

READING_WEIGHT = 0.3  # of this group's pioneer against the filtered slowdown: one reading is noise
FORGET = 0.15  # weight of the newest group in the filtered values
WINDOW = 200  # scores that the margin is taken from, and groups after which one is forgotten
QUANTILE = 0.99
FEW = WINDOW - math.ceil(QUANTILE * (WINDOW + 1)) + 1  # the quantile's place among the largest
KEPT = 0.99  # of a residual, a group: what has not run for long is believed to be as profiled
OVERHEADS = 50  # of which the median counts
ABSURD = math.log(50)  # a reading so far from what was expected says something of the clock alone

Floats = npt.NDArray[np.float64]


class LatencyModel:
    """(node, batch, recent evidence of slowdown) to ms.

    A node's profiled median is scaled by the slowdown (this group's entry reading blended with
    the filtered one, in logarithms) and by the node's own recent residual. What the runtime itself
    takes is added, and the sum is scaled by a margin that is conformal on the group's total: the
    time from a decision to the answer was measured over expected for the last ``WINDOW`` of them,
    and the margin is the score that the promised quantile of the next ones stays below, as far as
    they are like those. The profile's own p99 over p50 stands in for scores that are missing or
    older than ``WINDOW`` groups, so what is not tried for a while is tried again.

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
        systems = dict.fromkeys(node.system for node in tree.entries)
        siblings = [node.successors for node in tree.nodes.values() if node.successors]
        siblings += [tuple(node.name for node in tree.entries_of(name)) for name in systems]
        self._choices = {
            names: _Choice(self._index, [[*tree.routes(name)] for name in names])
            for names in siblings
        }
        self._columns: dict[tuple[int, ...], Floats] = {}
        self._log_slowdown = 0.0
        self._log_residual = np.zeros(len(self._index))
        self._ages = np.ones(len(self._index))  # how much of each the next group keeps
        self._scores: deque[tuple[int, float]] = deque()  # with the group, in order of arrival
        self._ascending: list[float] = []  # the same scores
        self._group = 0
        self._doubted = False  # whether the latest time to an answer was absurd
        self._overheads: dict[bool, deque[float]] = {
            split: deque(maxlen=OVERHEADS) for split in (False, True)
        }

    @property
    def slowdown(self) -> float:
        """The last known slowdown: 1 is as profiled."""
        return math.exp(self._log_slowdown)

    def overhead_ms(self, *, split: bool = False) -> float:
        """What the runtime itself takes to decide, to send on the whole group (or a part of it:
        rows are gathered, and two nodes answer), and to collect the answer."""
        known = self._overheads[split] or self._overheads[False]
        return sorted(known)[len(known) // 2] if known else 0.0

    def split_ms(self) -> float:
        """What a split is promised to take beyond sending on the whole group."""
        extra = self.overhead_ms(split=True) - self.overhead_ms()
        return max(0.0, extra) * self._total_margin()

    def profiled(self, node: str, batch: int) -> float:
        """The profiled median in ms."""
        return float(self._median[self._index[node], batch])

    def expected(self, node: str, batch: int, slowdown: float | None = None) -> float:
        """The latency to expect in ms, without margin."""
        scale = self.slowdown if slowdown is None else slowdown
        row = self._index[node]
        return float(self._median[row, batch] * scale * math.exp(self._log_residual[row]))

    def promised(self, batches: tuple[int, ...], slowdown: float) -> Floats:
        """``[nodes, len(batches)]`` ms that every node's engine keeps with the promised quantile
        (p99), in the tree's order."""
        medians = self._columns.get(batches)
        if medians is None:
            medians = self._columns[batches] = self._median[:, list(batches)]
        scale = np.exp(self._log_residual)
        scale *= self._margin()
        scale *= slowdown
        promised: Floats = medians * scale[:, None]
        return promised

    def cheapest(self, siblings: tuple[str, ...], promised: Floats) -> Floats:
        """Promised ms of the cheapest way to logits through each sibling, overhead included.

        ``[len(siblings), len(batches)]``, of what ``promised`` gave.
        """
        cheapest = self._choices[siblings].cheapest(promised)
        cheapest += self.overhead_ms() * self._total_margin()
        return cheapest

    def of_group(self, count: int, largest: int) -> Floats:
        """``[nodes, 1]`` promised ms of every node for a group in chunks of at most ``largest``."""
        chunks, rest = divmod(count, largest)
        parts = [(size, times) for size, times in ((largest, chunks), (rest, 1)) if size * times]
        sizes, times = zip(*parts, strict=True)
        total: Floats = self.promised(sizes, self.slowdown) @ np.array(times, np.float64)
        return total[:, None]

    def read(self, node: str, batch: int, measured_ms: float) -> float:
        """The slowdown that an entry's reading and the recent past say together."""
        ratio = _log_ratio(measured_ms, self.profiled(node, batch))
        blended = READING_WEIGHT * ratio + (1 - READING_WEIGHT) * self._log_slowdown
        return math.exp(blended)

    def observe_entry(self, node: str, batch: int, measured_ms: float) -> None:
        """A group has entered: let its reading move the filtered slowdown, and residuals age."""
        self._group += 1
        while self._scores and self._group - self._scores[0][0] >= WINDOW:
            self._forget()
        if not self._scores:  # nothing was sent on for so long: its cost is to be learned anew
            for known in self._overheads.values():
                known.clear()
        self._log_residual *= self._ages
        self._ages.fill(KEPT)
        ratio = _log_ratio(measured_ms, self.profiled(node, batch))
        self._log_slowdown += FORGET * (ratio - self._log_slowdown)

    def observe(self, node: str, expected_ms: float, measured_ms: float) -> None:
        """Let a later node's residual move its correction."""
        ratio = _log_ratio(measured_ms, expected_ms)
        if abs(ratio) < ABSURD:  # else it might never be tried again, and so never put right
            row = self._index[node]
            self._log_residual[row] += FORGET * ratio
            self._ages[row] = 1

    def observe_rest(
        self, expected_ms: float, measured_ms: float, own_ms: float, *, split: bool
    ) -> None:
        """Let the time from a decision to the answer move the margin.

        Args:
            expected_ms: of the engines that ran.
            measured_ms: of all that happened.
            own_ms: of that, what the runtime itself took.
            split: whether only a part of the images was sent on.
        """
        expected_ms += self.overhead_ms(split=split)
        ratio = _log_ratio(measured_ms, expected_ms)
        absurd = abs(ratio) >= ABSURD
        if self._doubted or not absurd:  # two in a row are no clock that was set
            self._overheads[split].append(max(0.0, own_ms))
        self._doubted = absurd
        if len(self._scores) == WINDOW:
            self._forget()
        score = math.exp(ratio)
        self._scores.append((self._group, score))
        insort(self._ascending, score)

    def _margin(self) -> Floats:
        """``[nodes]`` the factor on the expectation that ``QUANTILE`` of runs stay below.

        It is the ``FEW``-th largest of ``WINDOW`` scores. As many of them as are missing are the
        node's own spread, so that is the answer within two of the known scores.
        """
        missing = WINDOW - len(self._scores)
        margin: Floats = np.maximum(self._spread, max(1.0, self._largest(FEW)))
        if missing < FEW:
            np.minimum(margin, max(1.0, self._largest(FEW - missing)), out=margin)
        return margin

    def _total_margin(self) -> float:
        """The margin on what the runtime itself takes."""
        return max(1.0, self._largest(FEW))

    def _largest(self, place: int) -> float:
        """The ``place``-th largest known score; 0 where there are fewer."""
        return self._ascending[-place] if place <= len(self._ascending) else 0.0

    def _forget(self) -> None:
        """Let the oldest score go."""
        _, score = self._scores.popleft()
        del self._ascending[bisect_left(self._ascending, score)]


class _Choice:
    """The ways to logits through each of some siblings."""

    def __init__(self, index: Mapping[str, int], ways: Sequence[Sequence[Route]]) -> None:
        counts = [len(routes) for routes in ways]
        steps = [[index[name] for name in route.nodes] for routes in ways for route in routes]
        self._alone = all(len(nodes) == 1 for nodes in steps) and len(steps) == len(ways)
        self._nodes = np.array([nodes[0] for nodes in steps], dtype=np.intp)
        self._first = np.cumsum([0, *counts[:-1]])  # of each sibling's ways
        self._passes = np.zeros((len(steps), len(index)))
        for way, nodes in enumerate(steps):
            self._passes[way, nodes] = 1

    def cheapest(self, every: Floats) -> Floats:
        """``[siblings, batches]`` from ``[nodes, batches]``."""
        if self._alone:
            return every[self._nodes]
        cheapest: Floats = np.minimum.reduceat(self._passes @ every, self._first, axis=0)
        return cheapest


def _spread(profile: LatencyProfile) -> float:
    """The profile's p99 over its p50, the median over buckets, within 1 and 2."""
    ratios = [row[-1] / row[0] if row[0] > 0 else 1.0 for row in profile.ms]
    return float(np.clip(np.median(ratios), 1.0, 2.0))


def _log_ratio(measured: float, expected: float) -> float:
    """Cut to ``ABSURD`` either way, and 0 of what no clock can have measured: clocks may jump."""
    if not (0 < measured < math.inf and 0 < expected < math.inf):
        return 0.0
    return max(-ABSURD, min(ABSURD, math.log(measured) - math.log(expected)))
