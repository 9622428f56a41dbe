"""A result in words and as plain facts: what was seen, predicted and chosen, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from opa_trt.policies import STOP, Decision

if TYPE_CHECKING:
    from opa_trt.runtime.result import Entered, Result, Step

ENTRY_HEADINGS = ("entry", "whole group", "right")
HEADINGS = ("route", "whole group", "right", "images")


def answered(result: Result) -> dict[str, int]:
    """Images by the node that answered them."""
    names, counts = np.unique(result.nodes, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def words(result: Result) -> str:
    """Lines for people: every engine's run, and every decision with all that it chose from."""
    by = ", ".join(f"{count} by {name}" for name, count in answered(result).items())
    over = result.measured_ms - result.deadline_ms
    state = "met" if result.deadline_met else f"MISSED by {over:.2f} ms"
    lines = [
        f"{_images(len(result.labels))} ({by}) in {result.measured_ms:.2f} ms, "
        f"deadline {result.deadline_ms:g} ms {state}"
    ]
    if result.entered is not None:
        lines += _entrance(result.entered)
    for step in result.steps:
        lines.append(
            f"  {step.node} ran on {_images(step.images)} in {step.measured_ms:.2f} ms "
            f"(expected {step.predicted_ms:.2f} ms at slowdown {step.slowdown:.2f})"
        )
        if step.decision is not None:
            lines += _decision(step, step.decision)
    return "\n".join(lines)


def facts(result: Result) -> dict[str, Any]:
    """The same as plain values for JSON; None for what was not predicted, or has no end."""
    return {
        "images": len(result.labels),
        "answered": answered(result),
        "deadline_ms": _known(result.deadline_ms),
        "measured_ms": result.measured_ms,
        "deadline_met": result.deadline_met,
        "predicted_ms": result.predicted_ms,
        "fallback": result.fallback,
        "entered": None if result.entered is None else _entrance_facts(result.entered),
        "steps": [_step_facts(step) for step in result.steps],
    }


def _entrance_facts(entered: Entered) -> dict[str, Any]:
    ways = zip(entered.entries, entered.promised_ms, entered.accuracy, strict=True)
    return {
        "node": entered.node,
        "left_ms": _known(entered.left_ms),
        "reason": entered.reason,
        "entries": [
            {"entry": name, "promised_ms": ms, "accuracy": _known(accuracy)}
            for name, ms, accuracy in ways
        ],
    }


def _step_facts(step: Step) -> dict[str, Any]:
    decision = step.decision
    return {
        "node": step.node,
        "images": step.images,
        "expected_ms": step.predicted_ms,
        "measured_ms": step.measured_ms,
        "slowdown": step.slowdown,
        "accuracy": _known(step.predicted_accuracy),
        "answered": step.answered,
        "decision": None if decision is None else _decision_facts(decision),
    }


def _decision_facts(decision: Decision) -> dict[str, Any]:
    routes = zip(
        decision.successors, decision.predicted_ms, decision.predicted_accuracy, strict=True
    )
    return {
        "left_ms": _known(decision.left_ms),
        "reason": decision.reason,
        "fits": decision.fits,
        "stopped": _sent(decision, STOP),
        "routes": [
            {
                "successor": name,
                "promised_ms": ms,
                "accuracy": _known(accuracy),
                "images": _sent(decision, index),
            }
            for index, (name, ms, accuracy) in enumerate(routes)
        ],
    }


def _entrance(entered: Entered) -> list[str]:
    """The time left, the reason, and a table of every entry: what the cheapest way through it was
    promised to take at most, the share expected right in time behind it, the one that was chosen,
    and those that do not fit."""
    rows, marks = [ENTRY_HEADINGS], [""]
    for name, ms, accuracy in zip(
        entered.entries, entered.promised_ms, entered.accuracy, strict=True
    ):
        rows.append((name, _promise(ms), _share(accuracy)))
        late = "" if ms <= entered.left_ms else "does not fit"
        marks.append("<- chosen" if name == entered.node else late)
    lead = f"  enters at {entered.node}, {entered.left_ms:.2f} ms left: {entered.reason}"
    return [lead, *(f"      {line}" for line in _table(rows, marks))]


def _decision(step: Step, decision: Decision) -> list[str]:
    """The time left, the reason, and a table of stopping (where that could be) and every route:
    what it was promised to take at most, its predicted accuracy, how many images it got, or that
    it does not fit."""
    rows, marks = [HEADINGS], [""]
    if step.answers:
        stop = f"stop at {step.node}"
        rows.append(_row(stop, "", decision.estimated_accuracy, decision, STOP))
        marks.append(_mark(decision, STOP, 0.0))
    routes = zip(
        decision.successors, decision.predicted_ms, decision.predicted_accuracy, strict=True
    )
    for index, (name, ms, accuracy) in enumerate(routes):
        rows.append(_row(name, _promise(ms), accuracy, decision, index))
    marks += [_mark(decision, index, ms) for index, ms in enumerate(decision.predicted_ms)]
    lead = f"    {decision.left_ms:.2f} ms left: {decision.reason}"
    return [lead, *(f"      {line}" for line in _table(rows, marks))]


def _row(
    name: str, ms: str, accuracy: float, decision: Decision, index: int
) -> tuple[str, str, str, str]:
    count = _sent(decision, index)
    return name, ms, _share(accuracy), str(count) if count else ""


def _mark(decision: Decision, index: int, ms: float) -> str:
    if _sent(decision, index):
        return "<- chosen"
    return "" if ms <= decision.left_ms or index == STOP else "does not fit"


def _table(rows: Sequence[Sequence[str]], marks: Sequence[str]) -> list[str]:
    """The first column to the left, the others to the right, marks at the end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, mark in zip(rows, marks, strict=True):
        first, *others = (
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others, mark]).rstrip())
    return lines


def _sent(decision: Decision, index: int) -> int:
    return int((decision.choice == index).sum())


def _promise(ms: float) -> str:
    return f"<= {ms:.2f} ms"


def _share(accuracy: float) -> str:
    return "" if math.isnan(accuracy) else f"{accuracy:.1%}"


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
