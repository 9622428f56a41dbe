"""A study of pioneers as a picture: what each foretells, what it costs, and how the deep agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from opa_trt.builder.study import Study
from opa_trt.evaluate.picture import require_matplotlib, save_png

COLOURS = ("#8a8a8a", "#1b6ca8", "#d1495b", "#3a7d44")  # by stages


def draw_study(path: Path, found: Study, *, title: str) -> None:
    """Save a PNG: R² over latency of every candidate, and R² between the deep sub-networks.

    Args:
        path: where to.
        found: the study.
        title: above everything.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.0, 4.8), layout="constrained", gridspec_kw={"width_ratios": [1.5, 1]}
    )
    _candidates(left, found)
    _deep(figure, right, found)
    figure.suptitle(title, fontsize=12)
    save_png(figure, path)


def _candidates(axis: Any, found: Study) -> None:
    for stages in sorted({one.shape.stages for one in found.candidates}):
        own = [one for one in found.candidates if one.shape.stages == stages]
        r2 = [one.foretold.r2 for one in own]
        ends = [[max(0.0, one.foretold.r2 - one.foretold.low) for one in own]]
        ends.append([max(0.0, one.foretold.high - one.foretold.r2) for one in own])
        label = f"{stages} stage{'s' if stages > 1 else ''}"
        colour = COLOURS[(stages - 1) % len(COLOURS)]
        axis.errorbar(
            [one.subject.ms for one in own], r2, yerr=ends, fmt="o", ms=5, lw=0.7,
            color=colour, label=label,
        )  # fmt: skip
    taken = found.taken
    axis.scatter(
        [taken.subject.ms], [taken.foretold.r2], s=160, facecolors="none", edgecolors="black",
        zorder=3, label="taken",
    )  # fmt: skip
    axis.axhline(found.best.foretold.low, color="black", ls="--", lw=0.8)
    axis.set_xlabel(f"ms of eager torch, {found.facts['batch']} images")
    axis.set_ylabel("R² with the deep sub-networks")
    axis.legend(loc="lower right", frameon=False, fontsize=9)
    axis.grid(lw=0.3)


def _deep(figure: Any, axis: Any, found: Study) -> None:
    values = np.array(found.pairwise)
    image = axis.imshow(values, cmap="Blues", vmin=0, vmax=1)
    labels = [f"{one.macs / 1e6:.1f}" for one in found.deep]
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > 0.6 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xlabel("deep sub-network foretold, million MACs")
    axis.set_ylabel("by")
    figure.colorbar(image, ax=axis, label="R²", shrink=0.8)
