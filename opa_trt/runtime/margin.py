"""What is promised beyond the expectation: conformal, and learned apart for each regime of load."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ConfigError

WINDOW = 400  # scores that a margin is taken from, and groups after which one is forgotten
PROMISE = 0.99  # of deadlines, by default
LEAST_PROMISE, MOST_PROMISE = 0.5, 0.995  # beyond that ``WINDOW`` scores tell nothing
REST = 0.5  # of the deadlines that may be missed: entries and the start of a load cost some, too
PEAKS = 0.1  # of the known scores, that tell how the tail falls
LEAST_PEAKS = 5
HIGH = 0.9  # the quantile of scores by which entries are compared
STILL = 1e-3  # its least value
SHARED = 10  # scores of an entry that count as much as those of all
MOST = 4.0  # times that an entry is thought more restless than all
KNOWN = 8  # of an entry, after which it needs not be tried
TELLING = 40  # scores of a regime that say enough of it
COMPARED = 5  # scores after which entries are compared again
NONE = -1  # no entry
REGIME = math.log(1.5)  # a slowdown so many times larger is another regime

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


def check_promise(promise: float) -> None:
    """Raises ``ConfigError`` unless recent groups can tell what it takes."""
    if not LEAST_PROMISE <= promise <= MOST_PROMISE:
        message = f"promise={promise:g}."
        raise ConfigError(message, expected=f"{LEAST_PROMISE:g} to {MOST_PROMISE:g} of deadlines.")


class Regime:
    """What recent groups took while the machine was about as slow.

    A score is how far the time from a group's first decision to its answer was beyond its
    expectation, over the square root of what the whole group was expected to take, its entry
    included (``Promise``): a moment's interruption of a short tail would otherwise be taken for a
    slow machine, and charged to long tails many times over.
    """

    def __init__(self) -> None:
        self._entries = np.full(WINDOW, NONE, np.intp)
        self._groups = np.zeros(WINDOW, np.int64)
        self._scores = np.zeros(WINDOW)
        self._next = 0  # place, in turns

    def __len__(self) -> int:
        return int(np.count_nonzero(self._entries != NONE))

    def observe(self, entry: int, group: int, score: float) -> None:
        """Let what a group took count that entered there."""
        place = self._next % WINDOW
        self._entries[place], self._groups[place], self._scores[place] = entry, group, score
        self._next += 1

    def age(self, group: int) -> None:
        """Forget what is ``WINDOW`` groups old: what is not tried for long is tried again."""
        self._entries[self._groups <= group - WINDOW] = NONE

    def known(self, entry: int) -> bool:
        """Whether enough groups entered there lately."""
        return int(np.count_nonzero(self._entries == entry)) >= KNOWN

    def compared(self) -> Iterator[tuple[int, float, float]]:
        """For each entry how many times more restless it was than all, and how many scores say so:
        none where no other ran."""
        entries, scores = self._recent()
        found, counts = np.unique(entries, return_counts=True)
        if len(found) > 1:
            every = _high(scores)
            for entry, count in zip(found.tolist(), counts.tolist(), strict=True):
                own = _high(scores[entries == entry])
                yield entry, own / every, count * (1 - count / len(scores))

    def alike(self, factors: Floats) -> Floats:
        """Ascending scores, over their entries' factors."""
        entries, scores = self._recent()
        return np.sort(scores / factors[entries])

    def _recent(self) -> tuple[Ints, Floats]:
        """Entries and scores."""
        recent = self._entries != NONE
        return self._entries[recent], self._scores[recent]


class Margins:
    """What is promised, by regime of slowdown and by entry.

    What a busy machine did says little of a calm one, so each regime has a quantile of its own. Few
    entries have enough scores for one, so all that ran in a regime have it in common: their scores
    are brought to the same restlessness first. How restless an entry is beside others all regimes
    tell together.

    Args:
        entries: how many nodes groups may enter at.
        promise: the share of deadlines to be met, ``LEAST_PROMISE`` to ``MOST_PROMISE``.
    """

    def __init__(self, entries: int, promise: float = PROMISE) -> None:
        self._missed = REST * (1 - promise)
        self._regimes: defaultdict[int, Regime] = defaultdict(Regime)
        self._quantiles: dict[int, float] = {}  # by regime, those that are known
        self._factors = np.ones(entries)  # how many times more restless each is
        self._compared = 0  # scores until the factors are looked at again

    def __len__(self) -> int:
        return sum(map(len, self._regimes.values()))

    def observe(self, slowdown: float, entry: int, group: int, score: float) -> None:
        """Let what a group took count that entered there."""
        self.at(slowdown).observe(entry, group, score)
        self._compared -= 1
        if self._compared <= 0:
            self._compare()
        self._quantiles.clear()

    def age(self, group: int) -> None:
        """Forget what is long ago, in all regimes."""
        for regime in self._regimes.values():
            regime.age(group)
        self._quantiles.clear()

    def at(self, slowdown: float) -> Regime:
        """The regime that a slowdown (1 is as profiled) lies in."""
        return self._regimes[_place(slowdown)]

    def score(self, slowdown: float, entry: int) -> float:
        """What groups that enter there stay below as often as is promised."""
        place = _place(slowdown)
        if place not in self._quantiles:
            self._quantiles[place] = self._quantile(place)
        return self._quantiles[place] * float(self._factors[entry])

    def _quantile(self, place: int) -> float:
        """Of a regime. While little is known of it, it is thought as restless as a calmer one."""
        own = self._regimes[place].alike(self._factors)
        found = quantile(own, self._missed)
        if len(own) >= TELLING:
            return found
        calmer = (near for near in range(place - 1, -1, -1) if near in self._regimes)
        others = (self._regimes[near].alike(self._factors) for near in calmer)
        telling = (other for other in others if len(other) >= TELLING)
        return max([found, *(quantile(other, self._missed) for other in telling)])

    def _compare(self) -> None:
        """How restless each entry is beside all that ran when it did."""
        weights = np.full_like(self._factors, SHARED)
        sums = weights.copy()
        for regime in self._regimes.values():
            for entry, ratio, weight in regime.compared():
                weights[entry] += weight
                sums[entry] += weight * min(ratio, MOST)
        self._factors = sums / weights
        self._compared = COMPARED


def _place(slowdown: float) -> int:
    """Of a regime."""
    return max(0, round(math.log(slowdown) / REGIME))


def place_of(missed: float) -> int:
    """The place among the largest of ``WINDOW`` scores, from 1, that so few are expected beyond."""
    return WINDOW - math.ceil((1 - missed) * (WINDOW + 1)) + 1


def quantile(ascending: Floats, missed: float) -> float:
    """What all but such a share of groups stay below, of the recent ones' scores.

    That is the ``place_of``-th largest of ``WINDOW`` scores. While some of them are missing, the
    largest known ones say how far beyond them the quantile lies (``_reached``).
    """
    known = _largest(ascending, place_of(missed))
    return known if len(ascending) >= WINDOW else max(known, _reached(ascending, missed))


def _reached(ascending: Floats, missed: float) -> float:
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
    beyond = max(1.0, peaks / max(1.0, (count + 1) * missed))
    return min(_largest(ascending, 1), threshold + rise * math.log2(beyond))


def _largest(ascending: Floats, place: int) -> float:
    """The ``place``-th largest; 0 where there are fewer, or it is below."""
    return max(0.0, float(ascending[-place])) if place <= len(ascending) else 0.0


def _high(scores: Floats) -> float:
    """What most scores stay below."""
    place = int(HIGH * len(scores))
    return max(STILL, float(np.partition(scores, place)[place]))
