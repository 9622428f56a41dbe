"""How well one network's accuracy over groups foretells others' (OPA, III: linear regression)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
FITTED = 0.75  # of the groups; the others judge
RESAMPLES = 500
COVERED = 0.95
LEAST = 1e-12  # a spread below which nothing is there to be foretold


@dataclass(frozen=True)
class Foretold:
    """R² on the groups that judge, the mean over the deep sub-networks.

    ``low`` and ``high`` are the bootstrap interval (95 %) over those groups; ``by_deep`` has one
    R² for each. What foretells worse than the mean does is below 0.
    """

    r2: float
    low: float
    high: float
    by_deep: tuple[float, ...]


def foretell(told: Values, truth: Values, *, seed: int) -> Foretold:
    """How well ``told [G]`` foretells each of ``truth [D, G]``, accuracies on the same groups.

    A line is fitted to three quarters of the groups, drawn with the seed, for each of ``truth``.
    """
    errors, own = _judged(told, truth, seed)
    groups = own.shape[1]
    again = np.random.default_rng([seed, 63]).integers(0, groups, (RESAMPLES, groups))
    spread = [float(_r2(errors[:, rows], own[:, rows]).mean()) for rows in again]
    tail = 100 * (1 - COVERED) / 2
    low, high = np.percentile(spread, [tail, 100 - tail]).tolist()
    by_deep = _r2(errors, own)
    return Foretold(float(by_deep.mean()), low, high, tuple(by_deep.tolist()))


def pairwise(truth: Values, *, seed: int) -> list[list[float]]:
    """``[D][D]`` R² of the columns' accuracies, each foretold by the row's."""
    return [_r2(*_judged(row, truth, seed)).tolist() for row in truth]


def correlations(truth: Values) -> list[list[float]]:
    """``[D][D]`` Pearson's, over all groups; 0 where one of a pair never varies."""
    centred = truth - truth.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    scale = np.maximum(np.outer(norms, norms), LEAST)
    found: list[list[float]] = ((centred @ centred.T) / scale).tolist()
    return found


def _judged(told: Values, truth: Values, seed: int) -> tuple[Values, Values]:
    """``[D, judging groups]`` errors of the lines, and what is true."""
    fitted, judging = _split(told.shape[0], seed)
    own = truth[:, judging]
    return own - _lines(told, truth, fitted)[:, judging], own


def _split(groups: int, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The groups that are fitted to, and those that judge (at least one of each)."""
    order = np.random.default_rng([seed, 62]).permutation(groups)
    first = min(max(1, round(FITTED * groups)), groups - 1)
    return order[:first], order[first:]


def _lines(told: Values, truth: Values, fitted: npt.NDArray[np.intp]) -> Values:
    """``[D, G]`` of each line of least squares through the fitted groups, at every group."""
    own, mean = told[fitted], told[fitted].mean()
    means = truth[:, fitted].mean(axis=1, keepdims=True)
    covered = ((truth[:, fitted] - means) * (own - mean)).sum(axis=1, keepdims=True)
    slope = covered / max(float(((own - mean) ** 2).sum()), LEAST)
    lines: Values = means + slope * (told - mean)
    return lines


def _r2(errors: Values, truth: Values) -> Values:
    """``[D]`` of ``[D, groups]``; 0 where the truth does not vary."""
    total = ((truth - truth.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    left = (errors**2).sum(axis=1)
    found: Values = np.where(total > LEAST, 1 - left / np.maximum(total, LEAST), 0.0)
    return found
