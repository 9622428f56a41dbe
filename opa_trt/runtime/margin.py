"""What is promised beyond the expectation: conformal, and learned apart for each regime of load."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

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


class Margin:
    """The margin on the time from a decision to the answer, in one regime.

    A score is how far that time was beyond its expectation, over the square root of what the whole
    group was expected to take, its entry included (``Promise``): a moment's interruption of a short
    tail would otherwise be taken for a slow machine, and charged to long tails many times over.
    """

    def __init__(self) -> None:
        self._scores: deque[tuple[int, float]] = deque()  # with the group
        self._ascending: list[float] = []  # the same
        self._score: float | None = 0.0  # if it is known

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def missing(self) -> bool:
        """Whether there is room for more."""
        return len(self._scores) < WINDOW

    def observe(self, group: int, score: float) -> None:
        """Let what a group took count."""
        if len(self._scores) == WINDOW:
            self._forget()
        self._score = None
        self._scores.append((group, score))
        insort(self._ascending, score)

    def age(self, group: int) -> None:
        """Forget what is ``WINDOW`` groups old: what is not tried for long is tried again."""
        while self._scores and group - self._scores[0][0] >= WINDOW:
            self._forget()

    def score(self) -> float:
        """What ``QUANTILE`` of groups stay below.

        That is the ``FEW``-th largest of ``WINDOW`` scores. While some of them are missing, the
        largest known ones say how far beyond them the quantile lies (``_reached``).
        """
        if self._score is None:
            known = self._largest(FEW)
            self._score = max(known, self._reached()) if self.missing else known
        return self._score

    def high(self) -> float:
        """What most scores stay below."""
        if not self._ascending:
            return STILL
        return max(STILL, self._ascending[int(HIGH * len(self._ascending))])

    def _reached(self) -> float:
        """Where the quantile lies if the tail of the scores falls exponentially.

        Its rate is that of the scores above a threshold (peaks over threshold), by their median,
        which one interruption does not move. Of few scores no higher quantile is asked than the
        largest of them would be, nor more than that: caution that sends nothing on would learn
        nothing.
        """
        count = len(self._ascending)
        peaks = max(LEAST_PEAKS, math.ceil(PEAKS * count))
        if count <= peaks:
            return 0.0
        threshold = self._largest(peaks + 1)
        rise = self._largest((peaks + 1) // 2) - threshold  # half of the peaks are beyond
        beyond = max(1.0, peaks / max(1.0, (count + 1) * (1 - QUANTILE)))
        return min(self._largest(1), threshold + rise * math.log2(beyond))

    def _largest(self, place: int) -> float:
        """The ``place``-th largest known score; 0 where there are fewer, or it is below."""
        return max(0.0, self._ascending[-place]) if place <= len(self._ascending) else 0.0

    def _forget(self) -> None:
        """Let the oldest score go."""
        self._score = None
        _, score = self._scores.popleft()
        del self._ascending[bisect_left(self._ascending, score)]


class Regime:
    """The margins of all entries while the machine is about as slow.

    All groups together say how high the quantile lies, of which few entries have enough by
    themselves; an entry's own groups say how many times more or less restless it is than all.
    """

    def __init__(self) -> None:
        self.every = Margin()
        self._own: dict[int, Margin] = {}

    def observe(self, entry: int, group: int, score: float) -> None:
        """Let what a group took count that entered there."""
        self.every.observe(group, score)
        self._own.setdefault(entry, Margin()).observe(group, score)

    def score(self, entry: int) -> float:
        """What ``QUANTILE`` of groups stay below that enter there."""
        own, high = self._own.get(entry), self.every.high()
        if own is None:
            return self.every.score()
        shared = (len(own) * own.high() + SHARED * high) / (len(own) + SHARED)
        return self.every.score() * min(MOST, shared / high)

    def known(self, entry: int) -> bool:
        """Whether enough groups entered there lately."""
        return len(self._own.get(entry, ())) >= KNOWN

    def age(self, group: int) -> None:
        """Forget what is long ago."""
        for margin in (self.every, *self._own.values()):
            margin.age(group)


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
        return sum(len(regime.every) for regime in self._regimes.values())
