"""What leaf.py found, as a picture: accuracy against MACs, and against latency by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opa_trt.evaluate.picture import require_matplotlib, save_png

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8a6fb0")
BEFORE = "#8a8a8a"


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Save a PNG: the training's curves first, then a panel a batch size, a colour a backend.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = report["configurations"]
    backends = [*rows[0]["ms"]]
    batches = [*rows[0]["ms"][backends[0]]]
    figure, axes = plt.subplots(
        1, 1 + len(batches), figsize=(4.4 * (1 + len(batches)), 4.2), layout="constrained"
    )
    _training(axes[0], report["training"])
    for axis, batch in zip(axes[1:], batches, strict=True):
        for colour, backend in zip(COLOURS, backends, strict=False):
            own = {*report["fronts"][f"{backend}, batch {batch}"]}
            points = [(row["ms"][backend][batch], 100 * row["accuracy"]) for row in rows]
            axis.plot(*_columns(points), "o", ms=4, alpha=0.35, mew=0, color=colour)
            best = [p for p, row in zip(points, rows, strict=True) if row["name"] in own]
            axis.plot(*_columns(sorted(best)), "o-", ms=5, lw=1.6, color=colour, label=backend)
        axis.set_title(f"{batch} image{'s' * (int(batch) > 1)} a batch")
        axis.set_xlabel("latency, ms (lines: Pareto sets)")
        axis.set_xlim(left=0)
    axes[1].legend(frameon=False, loc="lower right")
    axes[0].set_ylabel("accuracy, %")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    save_png(figure, path)


def _training(axis: Any, log: Sequence[Mapping[str, Any]]) -> None:
    """All configurations before fine-tuning, and the front before and after."""
    base, fine = ([*entry["configurations"]] for entry in log)
    tuned = {tuple(row["shallow"]) for row in fine}
    before = [row for row in base if tuple(row["shallow"]) in tuned]
    axis.plot(*_columns(_points(base)), "o", ms=4, alpha=0.5, mew=0, color=BEFORE)
    axis.plot(*_columns(_points(before)), "o-", color=BEFORE, ms=5, label="before fine-tuning")
    axis.plot(*_columns(_points(fine)), "o-", color=COLOURS[0], ms=5, label="after")
    axis.set_title("training")
    axis.set_xlabel("MACs of an image, millions")
    axis.legend(frameon=False, loc="lower right")


def _points(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return sorted((row["cost"] / 1e6, 100 * row["accuracy"]) for row in rows)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
