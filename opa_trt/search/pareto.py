"""Which of many are worth keeping: the Pareto front of cost and accuracy, thinned to steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.ArrayLike
Places = npt.NDArray[np.intp]


def front(cost: Values, accuracy: Values) -> Places:
    """Places of those that none beats, by ascending cost; of equals the first only.

    One beats another if it costs no more and is no less accurate, and is better in one.
    """
    costs, gains = np.asarray(cost, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    order = np.lexsort((-gains, costs))
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], gains[order][:-1]]))
    kept: Places = order[gains[order] > best_before]
    return kept


def steps(accuracy: Values, step: float) -> Places:
    """Places of ascending ``accuracy`` that are at least ``step`` apart; the last is kept.

    They are taken from the most accurate down, so that the best is never left out
    (Dynamic-OFA: one-percent steps).
    """
    gains = np.asarray(accuracy, dtype=np.float64)
    kept: list[int] = []
    for place in range(len(gains) - 1, -1, -1):
        if not kept or gains[kept[-1]] - gains[place] >= step:
            kept.append(place)
    return np.array(kept[::-1], dtype=np.intp)
