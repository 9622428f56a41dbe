"""How well a latency table predicts whole networks: a line fitted to some, the error on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.supernet import Arch, Space

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Deviation:
    """Of predicted latencies: mean and worst absolute error over the latency, mean signed error
    over it, and Spearman's rank correlation (nan where all are equal)."""

    mean: float
    worst: float
    bias: float
    rank_correlation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nan becomes None."""
        return {key: None if np.isnan(value) else value for key, value in asdict(self).items()}


def draw_networks(space: Space, count: int, seed: int) -> list[Arch]:
    """The smallest arch, the largest, and ``count`` random ones as a search draws them; distinct
    (fewer where the space has no more)."""
    drawn = space.genome.sample(count, np.random.default_rng(seed))
    archs = [space.smallest(), space.largest(), *map(space.genome.arch, drawn)]
    return list(dict.fromkeys(archs))


def split(archs: Sequence[Arch]) -> tuple[list[int], list[int]]:
    """Which of ``draw_networks`` to fit, the extremes among them, and which to hold out."""
    held_out = list(range(3, len(archs), 2))
    return [place for place in range(len(archs)) if place not in held_out], held_out


def fit_line(sums: Floats, ms: Floats) -> tuple[float, float]:
    """``(scale, offset)`` of least squares on the relative error of ``offset + scale * sums``.

    A line that does not rise is none: then the scale alone is fitted.
    """
    ones = np.ones_like(ms)
    if len(ms) > 1 and np.ptp(sums) > 0:
        offset, scale = np.linalg.lstsq(np.stack([ones / ms, sums / ms], 1), ones, rcond=None)[0]
        if scale > 0:
            return float(scale), float(offset)
    ratios = sums / ms
    squares = float(ratios @ ratios)
    return (float(ratios.sum() / squares), 0.0) if squares > 0 else (1.0, 0.0)


def error_of(predicted: Floats, ms: Floats) -> Deviation:
    """How far ``predicted`` is from ``ms`` (both ``[N]``)."""
    relative = (predicted - ms) / ms
    return Deviation(
        mean=float(np.abs(relative).mean()),
        worst=float(np.abs(relative).max()),
        bias=float(relative.mean()),
        rank_correlation=spearman(predicted, ms),
    )


def spearman(first: Floats, second: Floats) -> float:
    """Correlation of the ranks, equal values sharing theirs; nan where one has no spread."""
    one, other = _ranks(first), _ranks(second)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[places]
    return ranks
