"""Latency by batch size as a picture: routes, and the same networks in one piece."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from opa_trt import atomic
from opa_trt.evaluate.bench import MONOLITH, ROUTE, Row
from opa_trt.evaluate.picture import require_matplotlib

MOST_LINES = 6  # a panel: routes between the smallest and the largest are thinned out


def draw_bench(path: Path, rows: Sequence[Row], title: str) -> None:
    """Save a PNG with a panel for each (backend, threads): p50 a line, up to p99 a band.

    Args:
        path: where to.
        rows: what ``run_bench`` found; routes alone are drawn, and their monoliths dashed.
        title: above everything.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.kind in (ROUTE, MONOLITH):
            groups.setdefault((_panel(row, rows), row.threads), []).append(row)
    width = max(1, len(groups))
    figure, axes = plt.subplots(
        1, width, figsize=(1 + 5.2 * width, 4.6), sharey=True, squeeze=False
    )
    for axis, ((backend, threads), members) in zip(axes[0], groups.items(), strict=False):
        names = _thinned(list(dict.fromkeys(r.name for r in members if r.kind == ROUTE)))
        colours = plt.get_cmap("viridis")
        for place, name in enumerate(names):
            colour = colours(0.9 * place / max(1, len(names) - 1))
            for kind, style, width_px in ((ROUTE, "-", 1.8), (MONOLITH, "--", 1.2)):
                line = sorted(
                    (r for r in members if r.kind == kind and r.name == name),
                    key=lambda r: r.batch,
                )
                if not line:
                    continue
                x = [r.batch for r in line]
                label = name if kind == ROUTE else None
                p50 = [r.p50_ms for r in line]
                axis.plot(x, p50, style, color=colour, lw=width_px, marker="o", ms=3, label=label)
                if kind == ROUTE:
                    p99 = [r.p99_ms for r in line]
                    axis.fill_between(x, p50, p99, color=colour, alpha=0.15, lw=0)
        batches = sorted({r.batch for r in members})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda ms, _: f"{ms:g}"))
        axis.set_title(f"{backend}, {threads} thread{'' if threads == 1 else 's'}", fontsize=10)
        axis.set_xlabel("images a batch")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, title="route (p50, band to p99)", title_fontsize=8)
    axes[0][0].set_ylabel("ms")
    dashed = (
        "   dashed: the same network as one engine"
        if any(row.kind == MONOLITH for row in rows)
        else ""
    )
    figure.suptitle(title + dashed, fontsize=11)
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    plt.close(figure)
    atomic.write_bytes(path, data.getvalue())


def _panel(row: Row, rows: Sequence[Row]) -> str:
    """A monolith of several backends' route is drawn in the panel of that route."""
    if row.kind == ROUTE:
        return row.backend
    same = (r for r in rows if r.kind == ROUTE and (r.name, r.threads) == (row.name, row.threads))
    return next((r.backend for r in same if row.backend in r.backend.split("+")), row.backend)


def _thinned(names: list[str]) -> list[str]:
    if len(names) <= MOST_LINES:
        return names
    step = (len(names) - 1) / (MOST_LINES - 1)
    return [names[round(step * place)] for place in range(MOST_LINES)]
