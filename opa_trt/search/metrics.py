"""How well predictions agree with measurements."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from opa_trt.errors import BackendUnavailable

Values = npt.ArrayLike


@dataclass(frozen=True)
class Agreement:
    """Predictions against measurements; nan where a figure means nothing.

    Args:
        rmse: root of the mean squared error, in the measurements' unit.
        r2: share of the measurements' variance that is explained; 0 for predicting their mean.
        tau: Kendall's rank correlation, -1 to 1.
    """

    rmse: float
    r2: float
    tau: float

    def to_dict(self) -> Mapping[str, float | None]:
        """Plain values for JSON, where nan is None."""
        return {key: number(value) for key, value in asdict(self).items()}


def number(value: float) -> float | None:
    """``value``, or None where it is nan or infinite: what JSON can hold."""
    return value if np.isfinite(value) else None


def agreement(predicted: Values, measured: Values) -> Agreement:
    """How ``predicted`` ``[N]`` agrees with ``measured`` ``[N]``.

    Raises:
        BackendUnavailable: scipy is missing.
    """
    found, truth = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    error, variance = float(np.mean((found - truth) ** 2)), float(truth.var())
    r2 = 1.0 - error / variance if variance > 0 else float("nan")
    return Agreement(error**0.5, r2, kendall(found, truth))


def kendall(one: Values, other: Values) -> float:
    """Kendall's tau-b (ties count for nothing); nan where either has one value only.

    Raises:
        BackendUnavailable: scipy is missing.
    """
    require_scipy()
    tau = importlib.import_module("scipy.stats").kendalltau(one, other)[0]
    return float(tau)


def require_scipy() -> None:
    """Nothing, where scipy is installed (it comes with scikit-learn).

    Raises:
        BackendUnavailable: it is missing; says what installs it.
    """
    try:
        importlib.import_module("scipy.stats")
    except ImportError as exc:
        message = "rank correlations need scipy, which is not installed."
        raise BackendUnavailable(message, remedy="pip install 'opa-trt[build]'") from exc
