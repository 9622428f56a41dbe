"""Predicted against measured, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from opa_trt.evaluate.picture import require_matplotlib, save_png


def draw_scatter(
    path: Path,
    measured: npt.ArrayLike,
    predicted: npt.ArrayLike,
    macs: npt.ArrayLike,
    *,
    title: str,
    note: str,
) -> None:
    """Save a PNG with a dot an arch, coloured by its MACs; on the line both are equal.

    Args:
        path: where to.
        measured, predicted: accuracies (0 to 1), ``[N]``.
        macs: of each, ``[N]``.
        title: above everything.
        note: in the corner, of a line or more.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    truth, found = 100 * np.asarray(measured), 100 * np.asarray(predicted)
    figure, axis = plt.subplots(figsize=(6.2, 5.4), layout="constrained")
    ends = _ends(truth, found)
    axis.plot(ends, ends, color="black", lw=1, ls="--", zorder=1)
    dots = axis.scatter(truth, found, c=np.asarray(macs) / 1e6, cmap="viridis", s=24, zorder=2)
    figure.colorbar(dots, ax=axis, label="million MACs")
    axis.set(xlim=ends, ylim=ends, aspect="equal")
    axis.set_xlabel("measured accuracy, %")
    axis.set_ylabel("predicted accuracy, %")
    axis.set_title(title, fontsize=11)
    axis.text(0.03, 0.97, note, transform=axis.transAxes, va="top", fontsize=9)
    axis.grid(lw=0.3)
    save_png(figure, path)


def _ends(*values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The same ends for both axes, a little wider than the values."""
    low, high = float(np.min(values)), float(np.max(values))
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
