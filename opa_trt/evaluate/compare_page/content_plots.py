"""Accuracy by content, and as content drifts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from opa_trt.evaluate.compare_page import reading
from opa_trt.evaluate.compare_page.drawing import Picture, canvas, legend, percent, picture
from opa_trt.evaluate.compare_page.palette import FAINT, INK, line_style, look
from opa_trt.evaluate.compare_page.reading import Report, Row
from opa_trt.evaluate.compare_page.words import applications

CLEAN = "clean"
SMOOTH = 7  # groups
FOLLOWED = ("opa_split", "opa", "dynamic_ofa", "branchynet", "cascade", "static_best")
HARDEST = 4
SHORTEST = 0.055  # of the stream, for a stretch of content to be named


def families(report: Report) -> Picture | None:
    """In-time accuracy over severity, a panel a family and load."""
    rows = report["content"]["by_family"]
    kinds = [kind for kind in dict.fromkeys(row["family"] for row in rows) if kind != CLEAN]
    loads, arms = reading.loads(rows), reading.present(report, rows)
    if not kinds or not loads:
        return None
    pairs = [(load, kind) for load in loads for kind in sorted(kinds)]
    with canvas(len(pairs), size=(3.3, 2.5), sharey=True) as (figure, axes):
        for axis, (load, kind) in zip(axes, pairs, strict=True):
            for arm in arms:
                _severities(axis, arm, reading.where(rows, load=load, arm=arm), kind)
            axis.set_title(f"{kind.replace('_', ' ')}, {applications(load)}")
            axis.set_xlabel("severity (0: clean)")
            axis.xaxis.set_major_locator(_whole())
            percent(axis)
            if axis.get_subplotspec().is_first_col():
                axis.set_ylabel("right and in time, %")
        legend(figure, arms)
        return picture(
            figure,
            "content",
            "Line plots, one for each kind of degraded content and load: share of images answered "
            "right and in time by every policy over the severity of the degradation.",
            f"How much harder content costs each policy, {_deadlines(report)}.",
        )


def _deadlines(report: Report) -> str:
    if report["settings"]["families"]:
        return "over the judged deadlines"
    return "at the middle deadline; the network was not trained for any of it"


def _whole() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _severities(axis: Any, arm: str, rows: Sequence[Row], kind: str) -> None:
    own = [row for row in rows if row["family"] in (kind, CLEAN)]
    own.sort(key=lambda row: row["severity"])
    across = [row["severity"] for row in own]
    axis.plot(across, [row["in_time_accuracy"]["mean"] for row in own], **line_style(arm))


def timelines(report: Report) -> list[Picture]:
    """One picture a load: the content, accuracy and latency of every group in turn."""
    drawn = []
    for found in report["content"]["timelines"]:
        arms = [arm for arm in reading.arms(report) if arm in found["arms"] and arm in FOLLOWED]
        if arms and found["families"]:
            drawn.append(_timeline(found, arms))
    return drawn


def _timeline(found: Row, arms: Sequence[str]) -> Picture:
    load, deadline = found["load"], found["deadline_ms"]
    tall = {"height_ratios": [0.35, 3, 3]}
    with canvas(3, size=(9.4, 1.7), columns=1, sharex=True, gridspec_kw=tall) as (figure, axes):
        strip, right, took = axes
        _strip(strip, found)
        for arm in arms:
            style = line_style(arm, markers=False)
            values = np.array(found["arms"][arm]["accuracy"], dtype=float)
            right.plot(_smooth(values), **style)
            took.plot(found["arms"][arm]["ms"], **{**style, "lw": 0.6 * style["lw"]})
            _late(took, arm, found["arms"][arm])
        took.axhline(deadline, color=INK, lw=1, ls=(0, (5, 2)))
        _latency_axis(took, found, arms)
        right.set_ylabel(f"accuracy, %\n(mean of {SMOOTH} groups)")
        took.set_ylabel("ms a group")
        took.set_xlabel("group")
        took.xaxis.set_major_locator(_whole())
        percent(right)
        legend(figure, arms, markers=False)
        return picture(
            figure,
            f"timeline-load-{load}",
            f"A strip that shows how content drifts, and below it accuracy and latency of each "
            f"group in turn under the deadline of {deadline:.3g} ms, load {load}.",
            f"Load: {applications(load)}; deadline {deadline:.3g} ms (dashed). The strip darkens "
            "as content gets harder. Rings: groups that were late.",
        )


def _strip(axis: Any, found: Row) -> None:
    kinds, severities = found["families"], found["severities"]
    axis.set_xlim(-0.5, len(kinds) - 0.5)
    start = 0
    for severity, same in groupby(severities):
        end = start + len(list(same))
        shade = min(1.0, 0.06 + 0.9 * severity / HARDEST)
        axis.axvspan(start - 0.5, end - 0.5, color=FAINT, alpha=shade, lw=0)
        start = end
    start = 0
    for kind, members in groupby(kinds):
        length = len(list(members))
        if length >= SHORTEST * len(kinds):
            axis.annotate(
                kind.replace("_", " "), (start + length / 2 - 0.5, 1), xytext=(0, 2),
                textcoords="offset points", ha="center", va="bottom", fontsize=8, color=FAINT,
            )  # fmt: skip
        start += length
    axis.set_yticks([])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def _latency_axis(axis: Any, found: Row, arms: Sequence[str]) -> None:
    """From 0 to what nearly all groups stay below; a few stragglers would flatten the rest."""
    every = np.concatenate([np.array(found["arms"][arm]["ms"], dtype=float) for arm in arms])
    high = max(float(np.quantile(every, 0.995)), found["deadline_ms"])
    axis.set_ylim(0, 1.15 * high)


def _late(axis: Any, arm: str, found: Row) -> None:
    late = [place for place, in_time in enumerate(found["in_time"]) if not in_time]
    axis.plot(
        late, [found["ms"][place] for place in late], ls="", marker="o", ms=4.5, mfc="none",
        mew=1.1, color=look(arm).light,
    )  # fmt: skip


def _smooth(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean over ``SMOOTH`` neighbours, fewer at the ends."""
    kernel = np.ones(min(SMOOTH, len(values)))
    result: np.ndarray[Any, Any] = np.convolve(values, kernel, "same")
    return result / np.convolve(np.ones(len(values)), kernel, "same")
