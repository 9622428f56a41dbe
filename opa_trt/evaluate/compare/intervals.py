"""Means with 95 % intervals: bootstrap over groups, and Wilson's for shares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from opa_trt.evaluate.compare.settings import CONFIDENCE

Floats = npt.NDArray[np.float64]
Z = 1.959964  # of the normal distribution, two-sided
EXACT = 1e-12  # closer than that is equal
TAIL = 100 * (1 - CONFIDENCE) / 2  # per cent left out at either end


@dataclass(frozen=True)
class Interval:
    """A mean, and between what it lies; ``low`` and ``high`` are None where that is unknown."""

    mean: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}

    def reaches(self, goal: float) -> bool | None:
        """Whether it is at least ``goal``; None where the interval does not resolve it."""
        if self.low is None or self.high is None:
            return None
        if self.low >= goal - EXACT:
            return True
        return False if self.high < goal - EXACT else None

    def above(self, goal: float) -> bool | None:
        """Whether it is more than ``goal``; None where the interval does not resolve it."""
        if self.low is None or self.high is None:
            return None
        if self.low > goal + EXACT:
            return True
        return False if self.high <= goal + EXACT else None


def bootstrap(values: Floats, draws: int, seed: int) -> Interval:
    """The mean of ``values [G]``, one a group, and its interval over groups.

    Groups are drawn anew, the same ones for all that have as many: paired where that counts.
    """
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None)
    means = _weights(len(values), draws, seed) @ values
    low, high = np.percentile(means, [TAIL, 100 - TAIL])
    return Interval(mean, float(low), float(high))


def wilson(hits: float, count: int) -> Interval:
    """A share of ``count`` and its interval, sensible near 0 and 1."""
    share, square = hits / count, Z * Z / count
    middle = (share + square / 2) / (1 + square)
    reach = Z * np.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    low, high = max(0.0, float(middle - reach)), min(1.0, float(middle + reach))
    return Interval(share, min(low, share), max(high, share))


@lru_cache(maxsize=32)
def _weights(count: int, draws: int, seed: int) -> Floats:
    """``[draws, count]``: how much each group counts in each resampled mean."""
    drawn = np.random.default_rng([seed, 84]).multinomial(
        count, np.full(count, 1 / count), size=draws
    )
    weights: Floats = drawn / count
    return weights
