"""A bench as a picture: latency by batch size, a panel a backend, a line a route."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opa_trt.evaluate.bench_rows import MONOLITH, NODE, ROUTE, Row
from opa_trt.evaluate.picture import require_matplotlib, save_png

MOST_ROUTES = 12  # lines a panel: of more, some between the first and the last are left out
PANELS_A_ROW = 3
MOST_COLOUR = 0.92  # of the colour map: its last part is too pale on white
ENTRY = "#8a8a8a"
BAND = 0.09  # opacity: many of them overlap


def draw_bench(path: Path, rows: Sequence[Row], title: str) -> None:
    """Save a PNG with batch size on the horizontal and ms on the vertical axis, both logarithmic.

    Each backend at each number of threads has a panel. A route is a line through its medians with
    a band up to p99, in the colour that it has in all panels; its monolith is dashed. Entries alone
    are grey.

    Args:
        path: where to.
        rows: what ``bench`` found.
        title: above everything.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.chosen, row.threads), []).append(row)
    lines = -(-len(panels) // PANELS_A_ROW)
    columns = -(-len(panels) // lines)  # four are two rows of two
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.6 + 4.2 * columns, 0.9 + 4.2 * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    colours = _colours(rows)
    for axis, own in zip(axes.flat, panels.values(), strict=False):
        _panel(axis, own, colours)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for place, axis in enumerate(axes.flat[: len(panels)]):
        _axes(axis, rows)
        axis.tick_params(labelbottom=place + columns >= len(panels))
    for line in axes:
        line[0].set_ylabel("latency of a batch, ms")
    figure.supxlabel("images a batch", fontsize=10)
    figure.suptitle(title, fontsize=12)
    handles = _legend(rows, colours)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    save_png(figure, path)


def _colours(rows: Sequence[Row]) -> dict[tuple[str, ...], Any]:
    """A colour for each route that is drawn, in the tree's order; grey for entries."""
    import matplotlib as mpl

    routes = list(dict.fromkeys(row.nodes for row in rows if row.kind == ROUTE))
    if len(routes) > MOST_ROUTES:
        step = (len(routes) - 1) / (MOST_ROUTES - 1)
        routes = [routes[round(step * place)] for place in range(MOST_ROUTES)]
    entries = {route[:1] for route in routes} or {row.nodes for row in rows if row.kind == NODE}
    chosen = mpl.colormaps["viridis"]
    return dict.fromkeys(sorted(entries), ENTRY) | {
        route: chosen(MOST_COLOUR * place / max(1, len(routes) - 1))
        for place, route in enumerate(routes)
    }


def _panel(axis: Any, rows: Sequence[Row], colours: dict[tuple[str, ...], Any]) -> None:
    for nodes, colour in colours.items():
        for kind in (NODE, ROUTE, MONOLITH):
            own = [row for row in rows if row.nodes == nodes and row.kind == kind]
            if own:
                _line(axis, sorted(own, key=lambda row: row.batch), colour)
    first = rows[0]
    backends = " and ".join(dict.fromkeys(row.backend for row in rows if row.kind == NODE))
    name = first.chosen if first.chosen == backends else f"{first.chosen} ({backends})"
    threads = f"{first.threads} thread{'' if first.threads == 1 else 's'}"
    axis.set_title(f"{name}, {threads}", fontsize=11)


def _line(axis: Any, rows: Sequence[Row], colour: Any) -> None:
    """One subject at ascending batch sizes: medians, and for all but monoliths p99 above them."""
    batches, middle = [row.batch for row in rows], [row.at(0.5) for row in rows]
    if rows[0].kind == MONOLITH:
        axis.plot(batches, middle, "--", color=colour, lw=1, marker="x", ms=3.5)
        return
    axis.plot(batches, middle, color=colour, lw=1.4, marker="o", ms=3.5)
    high = [row.at(0.99) for row in rows]
    axis.fill_between(batches, middle, high, color=colour, alpha=BAND, lw=0)
    if len(rows) == 1:  # a band has no width there
        axis.vlines(batches, middle, high, color=colour, alpha=0.4, lw=3)


def _axes(axis: Any, rows: Sequence[Row]) -> None:
    """Logarithmic axes with plain numbers: every batch size, and 1, 2, 5, 10, … ms."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(sorted({row.batch for row in rows})))
    if any(row.at(0.5) > 0 for row in rows):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(plain)
        side.set_minor_locator(NullLocator())
    axis.grid(lw=0.3)


def _legend(rows: Sequence[Row], colours: dict[tuple[str, ...], Any]) -> list[Any]:
    """A handle a route, the slowest on top as in the panels, and what the kinds of line mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = {row.nodes: row.name for row in rows}
    handles: list[Any] = [
        Line2D([], [], color=colour, marker="o", ms=3.5, label=names[nodes])
        for nodes, colour in reversed(colours.items())
        if nodes in names
    ]
    handles.append(Line2D([], [], color="none", label=" "))
    handles.append(Line2D([], [], color="black", marker="o", ms=3.5, label="median"))
    handles.append(Patch(color="black", alpha=0.13, lw=0, label="up to p99"))
    if any(row.kind == MONOLITH for row in rows):
        handles.append(
            Line2D([], [], color="black", ls="--", marker="x", ms=4, label="as one engine, median")
        )
    return handles
