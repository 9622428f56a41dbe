"""Gain by group, and what the size of a group changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opa_trt.evaluate.compare_page import reading
from opa_trt.evaluate.compare_page.drawing import Picture, canvas, legend, percent, picture
from opa_trt.evaluate.compare_page.palette import FAINT, INK, PAPER, line_style, look, name
from opa_trt.evaluate.compare_page.reading import Report, Row
from opa_trt.evaluate.compare_page.words import applications, tick

LINEAR = 0.1  # of gain either way: beyond it, where late groups lie, the axis is logarithmic
TICKS = (-1, -0.1, -0.05, 0, 0.05, 0.1, 1)


def gain(report: Report, ours: str = "opa_split") -> Picture | None:
    """How far ours is ahead on single groups, over the judged deadlines, a panel a load."""
    rows = [
        row
        for row in report["differences"]
        if row["ours"] == ours and row["deadline_ms"] is None and row["load"] is not None
    ]
    loads, others = reading.loads(rows), reading.present(report, rows, "other")
    if not loads or not others:
        return None
    with canvas(len(loads), size=(3.5, 1.1 + 0.34 * len(others)), sharey=True, sharex=True) as (
        figure,
        axes,
    ):
        for axis, load in zip(axes, loads, strict=True):
            axis.axvline(0, color=INK, lw=1)
            for place, other in enumerate(others):
                for row in reading.where(rows, load=load, other=other):
                    _spread(axis, place, row)
            axis.set_title(applications(load))
            _gain_axis(axis)
            axis.set_yticks(range(len(others)), [name(other) for other in others])
            axis.set_ylim(len(others) - 0.4, -0.6)
            axis.grid(False, axis="y")
        return picture(
            figure,
            "gain-by-group",
            f"Box plots, one panel for each load: by how many points {ours} is ahead of each other "
            "policy on a single group. Boxes hold the middle half of the groups, thin lines nine "
            "tenths, dots are the extremes.",
            f"How far {ours} is ahead on single groups, over the judged deadlines: the middle half "
            "of the groups (thick), nine tenths (thin), the extremes (dots), the median (white). "
            "Right of 0, ours is ahead. Groups that one of both answered late lie far out: beyond "
            f"{tick(LINEAR)} points the scale is logarithmic.",
        )


def _gain_axis(axis: Any) -> None:
    axis.set_xscale("symlog", linthresh=LINEAR, linscale=1.5)
    axis.set_xlim(TICKS[0], TICKS[-1])
    _mark(axis, TICKS, [tick(gained) for gained in TICKS])
    axis.set_xlabel("in-time gain of a group, points")


def _spread(axis: Any, place: int, row: Row) -> None:
    found, hue = row["quantiles"], look(row["other"]).light
    if any(value is None for value in found.values()):
        return
    axis.plot([found["0"], found["1"]], [place, place], ls="", marker=".", ms=4, color=hue)
    axis.hlines(place, found["0.05"], found["0.95"], color=hue, lw=1.4)
    axis.hlines(place, found["0.25"], found["0.75"], color=hue, lw=8)
    axis.plot(found["0.5"], place, marker="|", ms=8, mew=2, color=PAPER, zorder=4)


def sizes(report: Report) -> Picture | None:
    """In-time accuracy, and the share of time that is overhead, over the size of a group."""
    rows = report["group_sizes"]
    arms = reading.present(report, rows)
    if not rows:
        return None
    with canvas(2, size=(4.6, 3.0)) as (figure, axes):
        for arm in arms:
            own = sorted(reading.where(rows, arm=arm), key=lambda row: row["size"])
            across = [row["size"] for row in own]
            right = [row["in_time_accuracy"]["mean"] for row in own]
            axes[0].plot(across, right, **line_style(arm))
            axes[1].plot(across, [row["share"] for row in own], **line_style(arm))
        for axis in axes:
            _sizes_axis(axis, sorted({row["size"] for row in rows}))
            percent(axis)
        axes[0].set_title("right and in time, %")
        axes[1].set_title("overhead, % of a group's time")
        axes[1].set_ylim(bottom=0)
        legend(figure, arms)
        return picture(
            figure,
            "group-sizes",
            "Two line plots over the number of images in a group: the share of images answered "
            "right and in time, and the share of a group's time that deciding and switching take.",
            "Small groups pay more for deciding; large ones mix contents. The deadline of each "
            "size lies halfway in its judged range.",
        )


def _sizes_axis(axis: Any, known: list[int]) -> None:
    axis.set_xscale("log")
    _mark(axis, known, [str(size) for size in known])
    axis.set_xlabel("images in a group")
    axis.tick_params(axis="x", color=FAINT)


def _mark(axis: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    """These places of the horizontal axis, and no others."""
    from matplotlib.ticker import NullLocator

    axis.set_xticks(places, labels)
    axis.xaxis.set_minor_locator(NullLocator())
