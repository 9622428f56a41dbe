"""What is promised beyond the expectation: conformal, and learned apart for each regime of load."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

WINDOW = 400  # scores that a margin is taken from, and groups after which one is forgotten
QUANTILE = 0.995  # of the rest of a group: entries and the start of a load cost deadlines, too
FEW = WINDOW - math.ceil(QUANTILE * (WINDOW + 1)) + 1  # the quantile's place among the largest
PEAKS = 0.1  # of the known scores, that tell how the tail falls
LEAST_PEAKS = 5
HIGH = 0.9  # the quantile of scores by which entries are compared
STILL = 1e-3  # its least value
SHARED = 10  # scores of an entry that count as much as those of all
MOST = 4.0  # times that an entry is thought more restless than all
KNOWN = 8  # of an entry, after which it needs not be tried
REGIME = math.log(1.5)  # a slowdown so many times larger is another regime

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


class Regime:
    """What recent groups took while the machine was about as slow.

    A score is how far the time from a decision to the answer was beyond its expectation, over the
    square root of what the whole group was expected to take, its entry included (``Promise``): a
    moment's interruption of a short tail would otherwise be taken for a slow machine, and charged
    to long tails many times over.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, int, float]] = deque(maxlen=WINDOW)
        self._counts: Counter[int] = Counter()  # by entry
        self._sorted: tuple[Ints, Floats] | None = None  # entries and scores, if they are known

    def __len__(self) -> int:
        return len(self._recent)

    def observe(self, entry: int, group: int, score: float) -> None:
        """Let what a group took count that entered there."""
        if len(self._recent) == WINDOW:
            self._forget()
        self._recent.append((group, entry, score))
        self._counts[entry] += 1
        self._sorted = None

    def age(self, group: int) -> bool:
        """Forget what is ``WINDOW`` groups old: what is not tried for long is tried again. Whether
        anything was."""
        before = len(self._recent)
        while self._recent and group - self._recent[0][0] >= WINDOW:
            self._forget()
        return len(self._recent) < before

    def known(self, entry: int) -> bool:
        """Whether enough groups entered there lately."""
        return self._counts[entry] >= KNOWN

    def compared(self) -> Iterator[tuple[int, float, float]]:
        """For each entry how many times more restless it was than all, and how many scores say so:
        none where no other ran."""
        entries, scores = self.ascending()
        for entry, count in self._counts.items():
            if 0 < count < len(scores):
                ratio = _high(scores[entries == entry]) / _high(scores)
                yield entry, ratio, count * (1 - count / len(scores))

    def ascending(self) -> tuple[Ints, Floats]:
        """The entries and the scores, by ascending score."""
        if self._sorted is None:
            entries = np.array([entry for _, entry, _ in self._recent], np.intp)
            scores = np.array([score for _, _, score in self._recent], np.float64)
            order = scores.argsort(kind="stable")
            self._sorted = entries[order], scores[order]
        return self._sorted

    def _forget(self) -> None:
        """Let the oldest score go."""
        _, entry, _ = self._recent.popleft()
        self._counts[entry] -= 1
        self._sorted = None


class Margins:
    """What is promised, by regime of slowdown and by entry.

    What a busy machine did says little of a calm one, so each regime has a quantile of its own. Few
    entries have enough scores for one, so all that ran in a regime have it in common: their scores
    are brought to the same restlessness first. How restless an entry is beside others all regimes
    tell together.
    """

    def __init__(self) -> None:
        self._regimes: dict[int, Regime] = {}
        self._factors: dict[int, float] | None = None  # by entry, if they are known
        self._quantiles: dict[int, float] = {}  # by regime, those that are known

    def __len__(self) -> int:
        return sum(map(len, self._regimes.values()))

    def observe(self, slowdown: float, entry: int, group: int, score: float) -> None:
        """Let what a group took count that entered there."""
        self.at(slowdown).observe(entry, group, score)
        self._factors = None

    def age(self, group: int) -> None:
        """Forget what is long ago, in all regimes."""
        for regime in self._regimes.values():
            if regime.age(group):
                self._factors = None

    def at(self, slowdown: float) -> Regime:
        """The regime that a slowdown (1 is as profiled) lies in."""
        return self._regimes.setdefault(_place(slowdown), Regime())

    def score(self, slowdown: float, entry: int) -> float:
        """What ``QUANTILE`` of groups stay below that enter there."""
        if self._factors is None:
            self._factors, self._quantiles = self._restless(), {}
        place = _place(slowdown)
        known = self._quantiles.get(place)
        if known is None:
            known = self._quantiles[place] = self._alike(self.at(slowdown), self._factors)
        return known * self._factors.get(entry, 1.0)

    def _restless(self) -> dict[int, float]:
        """How many times more restless each entry is than all that ran when it did."""
        weights: dict[int, float] = defaultdict(lambda: float(SHARED))
        sums: dict[int, float] = defaultdict(lambda: float(SHARED))
        for regime in self._regimes.values():
            for entry, ratio, weight in regime.compared():
                weights[entry] += weight
                sums[entry] += weight * min(ratio, MOST)
        return {entry: sums[entry] / weight for entry, weight in weights.items()}

    def _alike(self, regime: Regime, factors: Mapping[int, float]) -> float:
        """The quantile of a regime's scores, brought to the same restlessness."""
        entries, scores = regime.ascending()
        if len(scores) and factors:
            by_entry = np.ones(max(int(entries.max()), *factors) + 1)
            by_entry[[*factors]] = [*factors.values()]
            scores = np.sort(scores / by_entry[entries])
        return quantile(scores.tolist())


def _place(slowdown: float) -> int:
    """Of a regime."""
    return max(0, round(math.log(slowdown) / REGIME))


def quantile(ascending: Sequence[float]) -> float:
    """What ``QUANTILE`` of groups stay below, of the recent ones' scores.

    That is the ``FEW``-th largest of ``WINDOW`` scores. While some of them are missing, the largest
    known ones say how far beyond them the quantile lies (``_reached``).
    """
    known = _largest(ascending, FEW)
    return known if len(ascending) >= WINDOW else max(known, _reached(ascending))


def _reached(ascending: Sequence[float]) -> float:
    """Where the quantile lies if the tail of the scores falls exponentially.

    Its rate is that of the scores above a threshold (peaks over threshold), by their median, which
    one interruption does not move. Of few scores no higher quantile is asked than the largest of
    them would be, nor more than that: caution that sends nothing on would learn nothing.
    """
    count = len(ascending)
    peaks = max(LEAST_PEAKS, math.ceil(PEAKS * count))
    if count <= peaks:
        return 0.0
    threshold = _largest(ascending, peaks + 1)
    rise = _largest(ascending, (peaks + 1) // 2) - threshold  # half of the peaks are beyond
    beyond = max(1.0, peaks / max(1.0, (count + 1) * (1 - QUANTILE)))
    return min(_largest(ascending, 1), threshold + rise * math.log2(beyond))


def _largest(ascending: Sequence[float], place: int) -> float:
    """The ``place``-th largest; 0 where there are fewer, or it is below."""
    return max(0.0, ascending[-place]) if place <= len(ascending) else 0.0


def _high(ascending: Floats) -> float:
    """What most scores stay below."""
    return max(STILL, float(ascending[int(HIGH * len(ascending))]))
