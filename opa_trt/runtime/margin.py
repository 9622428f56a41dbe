"""What is promised beyond the expectation: conformal, and learned apart for each regime of load."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

import numpy as np
import numpy.typing as npt

WINDOW = 400  # scores that a margin is taken from, and groups after which one is forgotten
QUANTILE = 0.9925  # of the rest of a group: entries and the start of a load cost deadlines, too
FEW = WINDOW - math.ceil(QUANTILE * (WINDOW + 1)) + 1  # the quantile's place among the largest
REGIME = math.log(1.5)  # a slowdown so many times larger is another regime

Floats = npt.NDArray[np.float64]


class Margin:
    """The margin on the time from a decision to the answer, in one regime.

    Taken twice from the last ``WINDOW`` groups, as a factor (measured over expected) and as an
    extra in ms (measured less expected); the smaller promise holds. A machine that is slower than
    believed is so in proportion, but a moment's interruption takes as long whatever it interrupts:
    what it makes of a short tail says nothing of a long one.
    """

    def __init__(self) -> None:
        self._scores: deque[tuple[int, float, float]] = deque()  # group, factor, extra ms
        self._factors: list[float] = []  # the same, ascending
        self._extras: list[float] = []  # the same, ascending

    def __len__(self) -> int:
        return len(self._scores)

    def observe(self, group: int, factor: float, extra_ms: float) -> None:
        """Let what a group took count."""
        if len(self._scores) == WINDOW:
            self._forget()
        self._scores.append((group, factor, extra_ms))
        insort(self._factors, factor)
        insort(self._extras, extra_ms)

    def age(self, group: int) -> None:
        """Forget what is ``WINDOW`` groups old: what is not tried for long is tried again."""
        while self._scores and group - self._scores[0][0] >= WINDOW:
            self._forget()

    def factor(self, spread: Floats) -> Floats:
        """The factors that ``QUANTILE`` of runs stay below.

        They are the ``FEW``-th largest of ``WINDOW`` scores. As many of them as are missing are
        ``spread``, so that is the answer within ``FEW`` of the known ones.
        """
        missing = WINDOW - len(self._scores)
        margin: Floats = np.maximum(spread, max(1.0, self._largest(FEW)))
        if missing < FEW:
            np.minimum(margin, max(1.0, self._largest(FEW - missing)), out=margin)
        return margin

    def extra_ms(self) -> float:
        """The ms beyond the expectation that ``QUANTILE`` of runs stay below.

        Of few scores it is not known, and infinite; the place among them is rounded up.
        """
        count = len(self._extras)
        if count < WINDOW // 4:
            return math.inf
        place = count - min(count, math.ceil(QUANTILE * (count + 1))) + 1
        return max(0.0, self._extras[-place])

    def _largest(self, place: int) -> float:
        """The ``place``-th largest known factor; 0 where there are fewer."""
        return self._factors[-place] if place <= len(self._factors) else 0.0

    def _forget(self) -> None:
        """Let the oldest score go."""
        _, factor, extra = self._scores.popleft()
        del self._factors[bisect_left(self._factors, factor)]
        del self._extras[bisect_left(self._extras, extra)]


class Margins:
    """A margin for each regime of slowdown: what a busy machine did says little of a calm one."""

    def __init__(self) -> None:
        self._regimes: dict[int, Margin] = {}

    def at(self, slowdown: float) -> Margin:
        """The margin of the regime that a slowdown (1 is as profiled) lies in."""
        regime = max(0, round(math.log(slowdown) / REGIME))
        found = self._regimes.get(regime)
        if found is None:
            found = self._regimes[regime] = Margin()
        return found

    def age(self, group: int) -> None:
        """Forget what is long ago, in all regimes."""
        for margin in self._regimes.values():
            margin.age(group)

    def __len__(self) -> int:
        return sum(map(len, self._regimes.values()))
