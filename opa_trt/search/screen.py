"""A cheap linear guess of an arch's accuracy, so that hopeless children are never judged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opa_trt.supernet import Genome, Population

WINDOW = 400  # archs judged last, that the model is fitted to
ENOUGH = 2  # archs for each number to be fitted, or else the error seems smaller than it is
EVERY = 10  # batches of archs between two fits
RIDGE = 0.3  # keeps genes that hardly varied from mattering
MARGIN = 2.0  # residual standard deviations that a guess may fall short


class Screen:
    """Ridge regression from one-hot archs to accuracy, fitted again as a search goes on.

    Near the archs that a search has come to, accuracy is nearly additive over genes. A child whose
    guess falls short of what it must reach, by more than twice the model's own error, is
    left out: more than half of all children, of which few would have survived.
    """

    def __init__(self, genome: Genome) -> None:
        self._genome = genome
        self._batches: list[tuple[Population, npt.NDArray[np.float32]]] = []
        self._since_fit = 0
        self._weights: npt.NDArray[np.float32] | None = None
        self._bias = self._error = 0.0

    def learn(self, rows: Population, accuracy: npt.NDArray[np.float32]) -> None:
        """Take in archs ``[P, G]`` and their accuracy ``[P]``."""
        self._batches.append((rows, accuracy))
        self._since_fit += 1
        if self._since_fit >= EVERY:
            self._fit()

    def promising(self, rows: Population, least: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """``[P] bool``: which archs may reach the accuracy ``least`` (one, or one each)."""
        if self._weights is None:
            return np.ones(len(rows), dtype=bool)
        guess = self._genome.one_hot(rows) @ self._weights + self._bias
        found: npt.NDArray[np.bool_] = guess > np.asarray(least) - MARGIN * self._error
        return found

    def _fit(self) -> None:
        """Fit the archs of the window, whose older batches are forgotten."""
        sizes = np.cumsum([len(accuracy) for _, accuracy in self._batches[::-1]])
        kept = 1 + int(np.searchsorted(sizes, WINDOW))
        self._batches = self._batches[-kept:]
        self._since_fit = 0
        accuracy = np.concatenate([batch for _, batch in self._batches])
        codes = self._genome.one_hot(np.concatenate([rows for rows, _ in self._batches]))
        if len(codes) < ENOUGH * codes.shape[1]:
            return
        centre, mean = codes.mean(axis=0), accuracy.mean()
        codes -= centre
        gram = codes.T @ codes + RIDGE * np.eye(codes.shape[1], dtype=np.float32)
        self._weights = np.linalg.solve(gram, codes.T @ (accuracy - mean)).astype(np.float32)
        self._bias = float(mean - centre @ self._weights)
        self._error = float((accuracy - mean - codes @ self._weights).std())
