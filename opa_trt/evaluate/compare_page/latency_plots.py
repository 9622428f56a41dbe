"""Accuracy against latency, by deadline, and against the largest network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opa_trt.evaluate.compare_page import reading
from opa_trt.evaluate.compare_page.drawing import Picture, canvas, legend, percent, picture
from opa_trt.evaluate.compare_page.palette import FAINT, GRID, INK, line_style, look
from opa_trt.evaluate.compare_page.reading import Report, Row
from opa_trt.evaluate.compare_page.words import applications

GOAL = 0.6  # of the largest network's latency
DEEPEST = 0.45  # how far below the best an accuracy may lie and still be drawn to scale


def accuracy_latency(report: Report) -> Picture | None:
    """Every arm's accuracy over its median latency, a dot a deadline, a panel a load."""
    rows = report["results"]
    loads = reading.loads(rows)
    if not loads:
        return None
    with canvas(len(loads), sharey=True) as (figure, axes):
        bottom = _bottom(report, rows, "accuracy")
        for axis, load in zip(axes, loads, strict=True):
            for arm in reading.present(report, rows):
                own = reading.where(rows, load=load, arm=arm)
                own.sort(key=lambda row: row["deadline_ms"])
                _line(axis, arm, [r["p50_ms"] for r in own], _means(own, "accuracy"), bottom)
            axis.set_title(applications(load))
            axis.set_xlabel("median latency of a group, ms")
            axis.set_ylim(bottom=bottom)
            percent(axis)
        _label(axes, "accuracy, %")
        legend(figure, reading.present(report, rows))
        return picture(
            figure,
            "accuracy-latency",
            "Line plots, one for each load: accuracy of every policy over the median latency of "
            "its groups, with a mark for each deadline. Higher and further left is better.",
            "Accuracy over the latency that a policy took for it; a mark is a deadline. Higher and "
            "further left is better. Answers count here even if they came late. Marks on the lower "
            "edge: below the scale.",
        )


def in_time(report: Report) -> Picture | None:
    """In-time accuracy over the deadline, with intervals, a panel a load."""
    rows = report["results"]
    loads = reading.loads(rows)
    if not loads:
        return None
    with canvas(len(loads), sharey=True) as (figure, axes):
        bottom = _bottom(report, rows, "in_time_accuracy")
        for axis, load in zip(axes, loads, strict=True):
            _judged(axis, report, load)
            for arm in reading.present(report, rows):
                own = reading.where(rows, load=load, arm=arm)
                own.sort(key=lambda row: row["deadline_ms"])
                deadlines = [row["deadline_ms"] for row in own]
                _line(axis, arm, deadlines, _means(own, "in_time_accuracy"), bottom)
                if arm in reading.OURS:
                    _band(axis, arm, deadlines, own)
            axis.set_title(applications(load))
            axis.set_xlabel("deadline of a group, ms")
            axis.set_ylim(bottom=bottom)
            percent(axis)
        _label(axes, "right and in time, %")
        legend(figure, reading.present(report, rows))
        return picture(
            figure,
            "in-time-accuracy",
            "Line plots, one for each load: share of images answered right and in time by every "
            "policy over the deadline. The range of judged deadlines is shaded.",
            "An answer after its deadline counts as wrong. The shaded range is judged; tighter "
            "deadlines are reported. Bands: 95 % intervals of ours. Marks on the lower edge: "
            "below the scale.",
        )


def frontier(report: Report) -> Picture | None:
    """Accuracy against the largest network's, over latency as a share of its."""
    found = report["frontier"] or {}
    rows: list[Row] = found.get("points", [])
    if not rows:
        return None
    with canvas(1, size=(6.6, 3.3)) as (figure, (axis,)):
        axis.axhline(0, color=INK, lw=1)
        axis.axvline(GOAL, color=FAINT, lw=1, ls=(0, (4, 2)))
        for arm in reading.present(report, rows):
            own = sorted(reading.where(rows, arm=arm), key=lambda row: row["deadline_ms"])
            across = [row["latency_ratio"] for row in own]
            against = [row["against_largest"] for row in own]
            axis.plot(across, [each["mean"] for each in against], **line_style(arm))
            for place, each in zip(across, against, strict=True):
                if each["low"] is not None and each["high"] is not None:
                    axis.vlines(place, each["low"], each["high"], color=look(arm).light, lw=1)
        axis.plot(1, 0, **line_style("static_largest"))
        axis.annotate(
            "goal", (GOAL, axis.get_ylim()[0]), xytext=(3, 3), textcoords="offset points",
            fontsize=8.5, color=FAINT,
        )  # fmt: skip
        axis.set_xlabel("median latency over the largest network's")
        axis.set_ylabel("accuracy less the\nlargest network's, points")
        percent(axis)
        legend(figure, [*reading.present(report, rows), "static_largest"])
        return picture(
            figure,
            "largest-at-less-latency",
            "Line plot: accuracy of our policies less that of the largest network, over their "
            "latency as a share of its. A dashed line marks the goal of 60 %.",
            "Where a line reaches 0 left of the dashed line, the largest network's accuracy is had "
            f"at no more than {GOAL:.0%} of its latency. Bars: 95 % intervals, paired by group.",
        )


def _means(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key]["mean"] for row in rows]


def _bottom(report: Report, rows: Sequence[Row], key: str) -> float:
    """Where the axis begins: under all that is judged, unless that is far below the best."""
    known = [row[key]["mean"] for row in rows if row["arm"] in reading.arms(report)]
    judged = [row[key]["mean"] for row in rows if row["judged"]] or known
    lowest, best = float(min(judged)), float(max(known))
    margin = 0.08 * (best - lowest) or 0.02
    return max(-0.01, lowest - margin, best - DEEPEST)


def _line(axis: Any, arm: str, across: list[float], up: list[float], bottom: float) -> None:
    """One arm; what is below the scale is marked on its edge."""
    axis.plot(across, up, **line_style(arm))
    below = [place for place, value in zip(across, up, strict=True) if value < bottom]
    if below:
        edge = [bottom] * len(below)
        (marks,) = axis.plot(
            below, edge, ls="", marker=7, ms=6, color=look(arm).light, clip_on=False
        )
        marks.set_in_layout(False)


def _band(axis: Any, arm: str, across: list[float], rows: Sequence[Row]) -> None:
    ends = [(row["in_time_accuracy"]["low"], row["in_time_accuracy"]["high"]) for row in rows]
    if ends and all(low is not None and high is not None for low, high in ends):
        low, high = zip(*ends, strict=True)
        axis.fill_between(across, low, high, color=look(arm).light, alpha=0.15, lw=0)


def _judged(axis: Any, report: Report, load: int) -> None:
    """Shade the range of deadlines that count for goals."""
    for row in reading.where(report["loads"], load=load):
        axis.axvspan(row["low_ms"], row["high_ms"], color=GRID, alpha=0.35, lw=0)


def _label(axes: Sequence[Any], text: str) -> None:
    """The vertical axis of the first panel of every row."""
    for axis in axes:
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(text)
