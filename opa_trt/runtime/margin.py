"""What is promised beyond the expectation: conformal, and learned apart for each regime of load."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from statistics import median

WINDOW = 400  # scores that a margin is taken from, and groups after which one is forgotten
QUANTILE = 0.995  # of the rest of a group: entries and the start of a load cost deadlines, too
FEW = WINDOW - math.ceil(QUANTILE * (WINDOW + 1)) + 1  # the quantile's place among the largest
PEAKS = 0.1  # of the known scores, that tell how the tail falls
LEAST_PEAKS = 5
KNOWN = 8  # scores of an entry by which its own margin is known
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

    def _reached(self) -> float:
        """Where the quantile lies if the tail of the scores falls exponentially.

        Its rate is that of the scores above a threshold (peaks over threshold), by their median,
        which one interruption does not move. Of few scores no higher quantile is asked than the
        largest of them would be: caution that sends nothing on would learn nothing.
        """
        count = len(self._ascending)
        peaks = max(LEAST_PEAKS, math.ceil(PEAKS * count))
        if count <= peaks:
            return 0.0
        threshold = self._largest(peaks + 1)
        rise = self._largest((peaks + 1) // 2) - threshold  # half of the peaks are beyond
        beyond = max(1.0, peaks / max(1.0, (count + 1) * (1 - QUANTILE)))
        return threshold + rise * math.log2(beyond)

    def _largest(self, place: int) -> float:
        """The ``place``-th largest known score; 0 where there are fewer, or it is below."""
        return max(0.0, self._ascending[-place]) if place <= len(self._ascending) else 0.0

    def _forget(self) -> None:
        """Let the oldest score go."""
        self._score = None
        _, score = self._scores.popleft()
        del self._ascending[bisect_left(self._ascending, score)]


class Margins:
    """A margin for each entry in each regime of slowdown.

    What a busy machine did says little of a calm one, and how steady one entry is says little of
    another. One of which little is known is thought as steady as the others mostly are.
    """

    def __init__(self) -> None:
        self._regimes: dict[int, dict[int, Margin]] = {}

    def at(self, entry: int, slowdown: float) -> Margin:
        """An entry's margin in the regime that a slowdown (1 is as profiled) lies in."""
        return self._regime(slowdown).setdefault(entry, Margin())

    def score(self, entry: int, slowdown: float) -> float:
        """What ``QUANTILE`` of groups stay below that enter there."""
        return self.scores((entry,), slowdown)[0]

    def scores(self, entries: Sequence[int], slowdown: float) -> list[float]:
        """The same of several."""
        regime = self._regime(slowdown)
        known = {entry: each.score() for entry, each in regime.items() if len(each) >= KNOWN}
        usual = median(known.values()) if known else 0.0
        return [
            known[entry] if entry in known else max(self.at(entry, slowdown).score(), usual)
            for entry in entries
        ]

    def known(self, entry: int, slowdown: float) -> bool:
        """Whether enough groups entered there lately."""
        return len(self.at(entry, slowdown)) >= KNOWN

    def age(self, group: int) -> None:
        """Forget what is long ago, everywhere."""
        for regime in self._regimes.values():
            for margin in regime.values():
                margin.age(group)

    def __len__(self) -> int:
        return sum(len(margin) for each in self._regimes.values() for margin in each.values())

    def _regime(self, slowdown: float) -> dict[int, Margin]:
        return self._regimes.setdefault(max(0, round(math.log(slowdown) / REGIME)), {})
