"""How long a node will take now: its profile, scaled by what recent groups showed."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from opa_trt.policies import Promise
from opa_trt.policies.ways import Paths
from opa_trt.runtime.margin import PROMISE, WINDOW, Margins
from opa_trt.runtime.overheads import Kind, Overheads
from opa_trt.store import LatencyProfile
from opa_trt.store.latency import QUANTILES
from opa_trt.tree import Tree

READING_WEIGHT = 0.3  # of this group's pioneer against the filtered slowdown: one reading is noise
FORGET = 0.15  # weight of the newest group in the filtered values
CONTRAST = 0.3  # of what an entry shows against another one, that ran just before
SUDDEN = math.log(1.25)  # a reading so many times slower than believed is more than noise
STEEPEST = math.log(4)
LOADED = 0.7  # weight of what a reading has between the two
KEPT = 0.99  # of a residual, a group: what has not run for long is believed to be as profiled
TINY = 1e-9  # ms
ABSURD = math.log(50)  # a reading so far from what was expected says something of the clock alone

Floats = npt.NDArray[np.float64]


class LatencyModel:
    """(node, batch, recent evidence of slowdown) to ms.

    A node's profiled median is scaled by the slowdown (this group's entry reading blended with
    the filtered one, in logarithms) and by the node's own recent residual. An entry's residual is
    learned where another one ran just before, when the machine was the same. What the runtime
    itself takes is added. A margin is conformal on the group's total, from a decision to the answer
    (``runtime/margin.py``); the profiles' p99 over p50 stands in for what was not seen yet.

    Args:
        tree: the nodes.
        profiles: a latency profile for each node.
        max_batch: largest batch asked for.
        promise: the share of deadlines to be met.

    Attributes:
        overheads: what the runtime itself takes.
    """

    def __init__(
        self,
        tree: Tree,
        profiles: Mapping[str, LatencyProfile],
        max_batch: int,
        promise: float = PROMISE,
    ) -> None:
        self._index = {name: i for i, name in enumerate(tree.nodes)}
        sizes = range(max_batch + 1)
        self._median = np.array(
            [[profiles[name].at(max(1, n)) for n in sizes] for name in tree.nodes]
        )
        spreads = [_spread(profiles[name], promise) for name in tree.nodes]
        self._spread = float(np.median(spreads))
        self._tree = tree
        self.overheads = Overheads()
        self._choices: dict[tuple[str, ...], _Choice] = {}
        self._columns: dict[tuple[int, ...], Floats] = {}
        self._log_slowdown = 0.0
        self._log_residual = np.zeros(len(self._index))
        self._ages = np.ones(len(self._index))  # how much of each the next group keeps
        self._margins = Margins(len(self._index), promise)
        self._entry_ms = 0.0  # of the latest group's entry, to be expected without a slowdown
        self._entered: int | None = None  # its row
        self._group = 0
        self._doubted = False  # whether the latest time to an answer was absurd

    @property
    def slowdown(self) -> float:
        """The last known slowdown: 1 is as profiled."""
        return math.exp(self._log_slowdown)

    def expected(self, node: str, batch: int, slowdown: float | None = None) -> float:
        """The latency to expect in ms, without margin."""
        scale = self.slowdown if slowdown is None else slowdown
        row = self._index[node]
        return float(self._median[row, batch] * scale * math.exp(self._log_residual[row]))

    def every(self, batches: tuple[int, ...], slowdown: float) -> Floats:
        """``[nodes, len(batches)]`` ms to expect of every node's engine, in the tree's order, at a
        slowdown to believe in."""
        medians = self._columns.get(batches)
        if medians is None:
            medians = self._columns[batches] = self._median[:, list(batches)]
        scale = np.exp(self._log_residual)
        scale *= slowdown
        expected: Floats = medians * scale[:, None]
        return expected

    def promise(self, slowdown: float) -> Promise:
        """Of the rest of the latest group, at a slowdown to believe in."""
        assert self._entered is not None, "no group has entered"
        score = self._margins.score(slowdown, self._entered)
        return Promise(score, self._entry_ms * slowdown, self._least(slowdown))

    def promises(self, entries: Sequence[str]) -> list[Promise]:
        """Of a group that is to enter through each of these."""
        slowdown = self.slowdown
        scores = [self._margins.score(slowdown, self._index[name]) for name in entries]
        least = self._least(slowdown)
        return [Promise(score, 0.0, least) for score in scores]

    def known(self, entry: str) -> bool:
        """Whether enough groups that entered there were answered behind it lately, or by it alone,
        when the machine was as it is."""
        return self._margins.at(self.slowdown).known(self._index[entry])

    def _least(self, slowdown: float) -> float:
        """The least promise over the expectation."""
        return self._spread if len(self._margins.at(slowdown)) < WINDOW else 1.0

    def cheapest(self, siblings: tuple[str, ...], every: Floats, promise: Promise) -> Floats:
        """Promised ms of the cheapest way to logits through each sibling, overhead included.

        ``[len(siblings), B]``, of what ``every`` gave.
        """
        overhead = self.overheads.ms(Kind.WHOLE)
        return self._choice(siblings).cheapest(every, overhead, promise)

    def entering(
        self,
        entries: tuple[str, ...],
        every: Floats,
        promises: Sequence[Promise],
        chunks: int = 1,
    ) -> Floats:
        """The same of entries, each with a promise of its own, and with an overhead of their own
        for those where nothing is decided any more: once for each of a group's chunks."""
        choice = self._choice(entries)
        decided, alone = self.overheads.ms(Kind.WHOLE), self.overheads.ms(Kind.ALONE)
        each = [decided if self._tree[name].successors else alone for name in entries]
        overheads = chunks * np.array(each)
        promise = Promise.of_ways(promises, choice.counts)
        return choice.cheapest(every, np.repeat(overheads, choice.counts)[:, None], promise)

    def _choice(self, siblings: tuple[str, ...]) -> _Choice:
        choice = self._choices.get(siblings)
        if choice is None:
            choice = self._choices[siblings] = _Choice(self._tree, siblings)
        return choice

    def of_group(self, count: int, largest: int) -> Floats:
        """``[nodes, 1]`` ms to expect of every node for a group, in chunks of up to ``largest``."""
        chunks, rest = divmod(count, largest)
        parts = [(size, times) for size, times in ((largest, chunks), (rest, 1)) if size * times]
        sizes, times = zip(*parts, strict=True)
        each = self.every(sizes, self.slowdown)
        total: Floats = each @ np.array(times, np.float64)
        return total[:, None]

    def read(self, node: str, batch: int, measured_ms: float) -> float:
        """The slowdown that an entry's reading and the recent past say together.

        Noise does not reach beyond ``SUDDEN``: a reading that is slower still is a load that began,
        and counts for more; beyond ``STEEPEST`` it is the clock's.
        """
        self._entry_ms = self.expected(node, batch, 1.0)
        step = _log_ratio(measured_ms, self.expected(node, batch))
        loaded = max(0.0, min(step, STEEPEST) - SUDDEN)
        blended = READING_WEIGHT * step + (LOADED - READING_WEIGHT) * loaded
        return math.exp(self._log_slowdown + blended)

    def observe_entry(self, node: str, batch: int, measured_ms: float) -> None:
        """A group has entered: let its reading move the filtered slowdown, and residuals age.

        What an entry shows while it runs again and again is the machine's slowdown. What it shows
        right after another one tells them apart, too.
        """
        self._group += 1
        self._margins.age(self._group)
        if not self._margins:  # nothing was sent on for so long: its cost is to be learned anew
            self.overheads.forget()
        surprise = _log_ratio(measured_ms, self.expected(node, batch))
        self._log_residual *= self._ages
        self._ages.fill(KEPT)
        self._log_slowdown += FORGET * surprise
        row = self._index[node]
        if self._entered not in (None, row):
            self._log_residual[row] += CONTRAST * surprise
        self._entered = row

    def observe(self, node: str, expected_ms: float, measured_ms: float) -> None:
        """Let a later node's residual move its correction."""
        ratio = _log_ratio(measured_ms, expected_ms)
        if abs(ratio) < ABSURD:  # else it might never be tried again, and so never put right
            row = self._index[node]
            self._log_residual[row] += FORGET * ratio
            self._ages[row] = 1

    def observe_alone(self, expected_ms: float, measured_ms: float, own_ms: float) -> None:
        """Let an answer without a decision after its entry move the margin.

        Args:
            expected_ms: of the engine.
            measured_ms: from the entry to the answer, what the runtime itself took included.
            own_ms: of that, what the runtime itself took.
        """
        whole = expected_ms + self.overheads.ms(Kind.ALONE)
        if abs(_log_ratio(measured_ms, whole)) < ABSURD:
            self.overheads.observe(Kind.ALONE, own_ms)
            self._score(measured_ms - whole, expected_ms, self.slowdown)

    def observe_rest(
        self,
        expected_ms: float,
        measured_ms: float,
        own_ms: float,
        *,
        split: bool,
        nodes: int = 1,
        slowdown: float = 1.0,
    ) -> None:
        """Let the time from a group's first decision to the answer move the margin.

        Args:
            expected_ms: of the engines that ran.
            measured_ms: of all that happened.
            own_ms: of that, what the runtime itself took.
            split: whether only a part of the images was sent on.
            nodes: how many ran one after the other.
            slowdown: that was believed at the decision.
        """
        kind = Kind.SPLIT if split else Kind.WHOLE
        expected_ms += nodes * self.overheads.ms(kind)
        ratio = _log_ratio(measured_ms, expected_ms)
        absurd = abs(ratio) >= ABSURD
        if self._doubted or not absurd:  # two in a row are no clock that was set
            self.overheads.observe(kind, own_ms / nodes)
            whole = expected_ms + self._entry_ms * slowdown
            self._score(measured_ms - expected_ms, whole, slowdown)
        self._doubted = absurd

    def _score(self, late_ms: float, whole_ms: float, slowdown: float) -> None:
        """Of the latest group, which took so much longer than expected; clocks may jump."""
        if self._entered is not None and math.isfinite(late_ms):
            score = late_ms / math.sqrt(max(whole_ms, TINY))
            self._margins.observe(slowdown, self._entered, self._group, score)


class _Choice:
    """The ways to logits through each of some siblings."""

    def __init__(self, tree: Tree, siblings: Sequence[str]) -> None:
        ways = [[*tree.routes(name)] for name in siblings]
        counts = [len(routes) for routes in ways]
        self._paths = Paths(tree, [route for routes in ways for route in routes])
        self._first = np.cumsum([0, *counts[:-1]])  # of each sibling's ways
        self.counts = counts
        self._nodes = None  # the siblings themselves, where they are all the ways there are
        if all(len(routes) == len(routes[0].nodes) == 1 for routes in ways):
            index = {name: row for row, name in enumerate(tree.nodes)}
            self._nodes = np.array([index[name] for name in siblings], dtype=np.intp)

    def cheapest(self, every: Floats, overhead_ms: float | Floats, promise: Promise) -> Floats:
        """``[siblings, batches]`` promised of what ``[nodes, batches]`` is expected, and the
        overhead for each node: of every way, or a column of each way's."""
        if self._nodes is not None:
            alone: Floats = promise.ms(every[self._nodes]) + overhead_ms
            return alone
        ways = self._paths.ms(every, overhead_ms, promise)
        cheapest: Floats = np.minimum.reduceat(ways, self._first, axis=0)
        return cheapest


def _spread(profile: LatencyProfile, promise: float) -> float:
    """The profile's p99 (or the least known quantile that is no lower than promised) over its p50,
    the median over buckets, within 1 and 2."""
    column = min(bisect_left(QUANTILES, promise), len(QUANTILES) - 1)
    ratios = [row[column] / row[0] if row[0] > 0 else 1.0 for row in profile.ms]
    return float(np.clip(np.median(ratios), 1.0, 2.0))


def _log_ratio(measured: float, expected: float) -> float:
    """Cut to ``ABSURD`` either way, and 0 of what no clock can have measured: clocks may jump."""
    if not (0 < measured < math.inf and 0 < expected < math.inf):
        return 0.0
    return max(-ABSURD, min(ABSURD, math.log(measured) - math.log(expected)))
