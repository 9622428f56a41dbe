"""What ``opa-trt compare`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opa_trt_cli.console import say, say_table

Row = Mapping[str, Any]
VERDICTS = {True: "met", False: "not met", None: "unresolved"}
MEANS = (
    ("load", "right"),
    ("arm", "left"),
    ("right in time", "right"),
    ("95 %", "right"),
    ("right", "right"),
    ("in time", "right"),
    ("mean ms", "right"),
)


def say_report(report: Row) -> None:
    """The split, means over the judged deadlines of each load, and every goal."""
    for line in report["split"]["lines"]:
        say(line)
    if report["replay"]:
        say(f"replayed from {report['replay']}: no engine ran")
    for load in report["loads"]:
        say(_deadlines(load))
    say()
    say_table(MEANS, (_cells(row) for row in report["means"]))
    for arm, why in report["left_out"].items():
        say(f"{arm} is left out: {why}")
    say()
    for goal in report["goals"]:
        say(_goal(goal))


def _deadlines(load: Row) -> str:
    judged = [f"{each['deadline_ms']:.3g}" for each in load["deadlines"] if each["judged"]]
    others = [f"{each['deadline_ms']:.3g}" for each in load["deadlines"] if not each["judged"]]
    reported = f", reported beside them {', '.join(others)}" if others else ""
    return f"load {load['load']}: judged deadlines {', '.join(judged) or 'none'} ms{reported}"


def _cells(row: Row) -> tuple[str, ...]:
    right = row["in_time_accuracy"]
    known = right["low"] is not None
    return (
        "all" if row["load"] is None else str(row["load"]),
        row["arm"],
        f"{right['mean']:.1%}",
        f"{100 * right['low']:.1f} to {100 * right['high']:.1f}" if known else "",
        f"{row['accuracy']['mean']:.1%}",
        f"{row['deadlines_met']['mean']:.1%}",
        f"{row['mean_ms']:.2f}",
    )


def _goal(goal: Row) -> str:
    """The verdict, the goal, and its figure."""
    return f"{VERDICTS[goal['met']]:<11} {goal['text']}{_figure(goal)}"


def _figure(goal: Row) -> str:
    if goal["value"] is None:
        return f" ({goal['note']})" if goal["note"] else ""
    points = goal["unit"] == "points"
    form = "{:+.1f}" if points else "{:.1f}"
    shown = form.format(100 * goal["value"]) + (" points" if points else " %")
    if goal["interval"] is None:
        return f": {shown}"
    low, high = (form.format(100 * end) for end in goal["interval"])
    return f": {shown} [{low}, {high}]"
