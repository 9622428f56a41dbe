"""From a matplotlib figure to a PNG, and to an SVG that takes on the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from opa_trt.evaluate.compare_page.palette import (
    FAINT,
    GRID,
    INK,
    PAPER,
    line_style,
    name,
    themed,
)
from opa_trt.evaluate.compare_page.words import tick

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "opa_trt",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}
DPI = 130
PANEL = (3.5, 3.0)  # inches
ENTRY = 2.0  # of a legend, at most
COLUMNS = 3
SCALE = (1.0, 1.45)  # px a point of a plot on the page: smallest and largest
_NOTHING = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Picture:
    """A plot, drawn.

    Args:
        stem: its file's name without the ending.
        alt: what it shows, for those who do not see it.
        caption: below it.
        png: for the file beside the page.
        svg: for the page itself.
    """

    stem: str
    alt: str
    caption: str
    png: bytes
    svg: str


@contextmanager
def canvas(
    panels: int,
    *,
    size: tuple[float, float] = PANEL,
    columns: int = COLUMNS,
    **options: Any,
) -> Iterator[Any]:
    """A figure with axes for ``panels`` panels in rows of ``columns``; closed in the end.

    Yields:
        The figure and a list of axes; ``options`` go to ``subplots``.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(columns, panels)
    rows = -(-panels // columns)
    with mpl.rc_context(RC):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(max(6.2, size[0] * columns), size[1] * rows + 0.5),
            squeeze=False,
            layout="constrained",
            **options,
        )
        try:
            for axis in axes.flat[panels:]:
                axis.remove()
            yield figure, list(axes.flat[:panels])
        finally:
            plt.close(figure)


def picture(figure: Any, stem: str, alt: str, caption: str) -> Picture:
    """The figure as it stands, on paper and for the page."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.set_layout_engine("none")  # as it is laid out now
    figure.savefig(svg, format="svg", transparent=True, metadata=_NOTHING)
    return Picture(stem, alt, caption, png.getvalue(), _inline(svg.getvalue(), stem, alt))


def legend(figure: Any, arms: Sequence[str], *, markers: bool = True) -> None:
    """One legend for all panels, below them."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name(arm), **line_style(arm, markers=markers)) for arm in arms]
    if handles:
        columns = min(len(handles), int(figure.get_figwidth() / ENTRY))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.6)


def percent(axis: Any) -> None:
    """A vertical axis of per cents."""
    axis.yaxis.set_major_formatter(tick)


def _inline(text: str, stem: str, alt: str) -> str:
    """An SVG for the middle of a page: names of its own, colours and type of the page."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style type=\"text/css\">.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{stem}.\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{stem}.\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{stem}.\1)", body)
    body = re.sub(r"font: ((?:[\w.]+ )*[\d.]+px) [^;\"]+", r"font: \1 var(--sans)", body)
    for hue, (variable, _) in themed().items():
        body = body.replace(hue, f"var(--{variable})")
    head, _, rest = body.partition(">")
    box = re.search(r'viewBox="([^"]+)"', head)
    shape = box.group(1) if box else "0 0 100 100"
    wide = float(shape.split()[2])
    size = f"max-width: {SCALE[1] * wide:.0f}px; min-width: {SCALE[0] * wide:.0f}px"
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{shape}" style="{size}"'
    return f'{opening} role="img" aria-label="{escape(alt)}">{rest.strip()}'
