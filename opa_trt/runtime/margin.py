"""What is promised beyond the expectation: conformal, and learned apart for each regime of load."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from itertools import chain

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


class Scores:
    """Of recent groups that entered at one place, in one regime.

    A score is how far the time from a decision to the answer was beyond its expectation, over the
    square root of what the whole group was expected to take, its entry included (``Promise``): a
    moment's interruption of a short tail would otherwise be taken for a slow machine, and charged
    to long tails many times over.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque()  # with the group
        self.ascending: list[float] = []  # the same

    def __len__(self) -> int:
        return len(self._recent)

    def observe(self, group: int, score: float) -> None:
        """Let what a group took count."""
        if len(self._recent) == WINDOW:
            self._forget()
        self._recent.append((group, score))
        insort(self.ascending, score)

    def age(self, group: int) -> bool:
        """Forget what is ``WINDOW`` groups old: what is not tried for long is tried again. Whether
        anything was."""
        before = len(self._recent)
        while self._recent and group - self._recent[0][0] >= WINDOW:
            self._forget()
        return len(self._recent) < before

    def _forget(self) -> None:
        """Let the oldest score go."""
        _, score = self._recent.popleft()
        del self.ascending[bisect_left(self.ascending, score)]


class Regime:
    """The margins of all entries while the machine is about as slow.

    An entry's own groups say how many times more or less restless it is than all; brought to the
    same restlessness, all groups together say how high the quantile lies, of which few entries
    have enough by themselves.
    """

    def __init__(self) -> None:
        self._own: dict[int, Scores] = {}
        self._quantile: float | None = None  # of scores brought to the same restlessness, if known
        self._factors: dict[int, float] = {}  # by entry, how many times more restless

    def __len__(self) -> int:
        return sum(map(len, self._own.values()))

    @property
    def missing(self) -> bool:
        """Whether there is room for more scores."""
        return len(self) < WINDOW

    def observe(self, entry: int, group: int, score: float) -> None:
        """Let what a group took count that entered there."""
        self._own.setdefault(entry, Scores()).observe(group, score)
        self._quantile = None

    def score(self, entry: int) -> float:
        """What ``QUANTILE`` of groups stay below that enter there."""
        if self._quantile is None:
            self._quantile = self._learned()
        return self._quantile * self._factors.get(entry, 1.0)

    def known(self, entry: int) -> bool:
        """Whether enough groups entered there lately."""
        return len(self._own.get(entry, ())) >= KNOWN

    def age(self, group: int) -> None:
        """Forget what is long ago."""
        for own in self._own.values():
            if own.age(group):
                self._quantile = None

    def _learned(self) -> float:
        """The quantile; and the factors are known."""
        every = sorted(chain.from_iterable(own.ascending for own in self._own.values()))
        high = _high(every)
        self._factors = {
            entry: min(MOST, (len(own) * _high(own.ascending) / high + SHARED) / (len(own) + SHARED))
            for entry, own in self._own.items()
        }
        alike = sorted(
            score / self._factors[entry]
            for entry, own in self._own.items()
            for score in own.ascending
        )
        return quantile(alike)


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


def _high(ascending: Sequence[float]) -> float:
    """What most scores stay below."""
    return max(STILL, ascending[int(HIGH * len(ascending))]) if ascending else STILL


class Margins:
    """A margin for each regime of slowdown: what a busy machine did says little of a calm one."""

    def __init__(self) -> None:
        self._regimes: dict[int, Regime] = {}

    def at(self, slowdown: float) -> Regime:
        """The regime that a slowdown (1 is as profiled) lies in."""
        place = max(0, round(math.log(slowdown) / REGIME))
        found = self._regimes.get(place)
        if found is None:
            found = self._regimes[place] = Regime()
        return found

    def age(self, group: int) -> None:
        """Forget what is long ago, in all regimes."""
        for regime in self._regimes.values():
            regime.age(group)

    def __len__(self) -> int:
        return sum(map(len, self._regimes.values()))
