"""Archs that were judged, with their accuracy and their cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opa_trt.supernet import Population


@dataclass(frozen=True, eq=False)
class Pool:
    """Archs that were evaluated: ``rows [P, G]``, ``accuracy [P]``, ``cost [P]``."""

    rows: Population
    accuracy: npt.NDArray[np.float32]
    cost: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: npt.NDArray[np.intp]) -> Pool:
        """The archs at ``places``, in that order."""
        return Pool(self.rows[places], self.accuracy[places], self.cost[places])

    def __add__(self, other: Pool) -> Pool:
        return Pool(
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.accuracy, other.accuracy]),
            np.concatenate([self.cost, other.cost]),
        )

    def meeting(self, target: float) -> Pool:
        """The archs that cost at most ``target``."""
        return self.take(np.flatnonzero(self.cost <= target))

    def best(self, count: int) -> Pool:
        """The ``count`` most accurate, best first; of equals the cheaper."""
        return self.take(np.lexsort((self.cost, -self.accuracy))[:count])
