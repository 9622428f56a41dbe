"""What was to be reached, and whether the intervals say that it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opa_trt.evaluate.compare.arms import (
    BASELINES,
    BEST,
    BRANCHY,
    CASCADE_ARM,
    DYNAMIC,
    OPA_ARM,
    SPLIT,
)
from opa_trt.evaluate.compare.differences import difference
from opa_trt.evaluate.compare.intervals import Interval, wilson
from opa_trt.evaluate.compare.sections import Reader

POINTS, SHARE, RATIO = "points", "share", "ratio"
MET_GOAL = 0.99
GAIN_GOAL, GAIN_LOAD = 0.066, 2
LATENCY_GOAL = 0.6
AHEAD_OF = (DYNAMIC, BRANCHY, CASCADE_ARM, BEST)


@dataclass(frozen=True)
class Part:
    """One comparison that a goal depends on."""

    label: str
    met: bool | None
    found: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "label": self.label,
            "met": self.met,
            "value": self.found.mean,
            "interval": _ends(self.found),
        }


def goals(reader: Reader, frontier: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Every goal: met, not met, or None where the intervals do not tell.

    Args:
        reader: of what was run.
        frontier: the report's section, for accuracy at less latency.
    """
    found = [
        _at_least_every_baseline(reader),
        _ahead_in_the_mean(reader),
        _deadlines_met(reader),
        _gain_under_two(reader),
        _largest_at_less_latency(frontier),
    ]
    if reader.findings.partial:
        for goal in found:
            goal["met"] = None if goal["met"] else goal["met"]
            goal["note"] = f"not all that it asks for was run; {goal['note']}".removesuffix("; ")
    return found


def together(parts: Iterable[bool | None]) -> bool | None:
    """False if any is, True if all are, else None; None where there are none."""
    found = [*parts]
    if any(met is False for met in found):
        return False
    return True if found and all(found) else None


def _at_least_every_baseline(reader: Reader) -> dict[str, Any]:
    parts = []
    known = [arm for arm in BASELINES if arm in reader.findings.arms]
    for cell in reader.judged() if _has(reader, SPLIT) and known else []:
        best = max(known, key=lambda arm: float(cell.in_time_accuracy(arm).mean()))
        found = difference(reader, [cell], SPLIT, best)
        label = f"load {cell.load}, {cell.deadline_ms:.3g} ms: against {best}"
        parts.append(Part(label, found.reaches(0.0), found))
    return _goal(
        "at_least_every_baseline",
        "opa_split is at least equal to the best of all baselines at every judged deadline "
        "(in-time accuracy)",
        POINTS,
        0.0,
        parts,
        note="value: the least; the best baseline is picked on these very groups",
    )


def _ahead_in_the_mean(reader: Reader) -> dict[str, Any]:
    cells, parts, missing = reader.judged(), [], []
    for other in AHEAD_OF:
        if not _has(reader, SPLIT, other) or not cells:
            missing.append(other)
            continue
        found = difference(reader, cells, SPLIT, other)
        parts.append(Part(other, found.above(0.0), found))
    return _goal(
        "ahead_in_the_mean",
        "opa_split is ahead of each of dynamic_ofa, branchynet, cascade and static_best in the "
        "mean over judged deadlines and loads (in-time accuracy)",
        POINTS,
        0.0,
        parts,
        missing=missing,
        note="value: the least of them",
    )


def _deadlines_met(reader: Reader) -> dict[str, Any]:
    parts = []
    for load in reader.loads():
        for arm in (SPLIT, OPA_ARM):
            cells = reader.judged(load)
            if not cells or not _has(reader, arm):
                continue
            met = np.concatenate([cell.in_time(arm) for cell in cells])
            found = wilson(float(met.sum()), len(met))
            parts.append(Part(f"{arm}, load {load}", found.reaches(MET_GOAL), found))
    return _goal(
        "deadlines_met",
        "at least 99 % of the judged deadlines are met under every load, by opa_split and opa",
        SHARE,
        MET_GOAL,
        parts,
        note="value: the least of them",
    )


def _gain_under_two(reader: Reader) -> dict[str, Any]:
    cells = reader.judged(GAIN_LOAD)
    parts, missing = [], []
    if cells and _has(reader, SPLIT, DYNAMIC):
        found = difference(reader, cells, SPLIT, DYNAMIC)
        parts.append(Part(f"load {GAIN_LOAD}", found.reaches(GAIN_GOAL), found))
    else:
        missing.append(f"{DYNAMIC} under load {GAIN_LOAD}")
    return _goal(
        "gain_under_two_applications",
        "under two applications opa_split is at least 6.6 points ahead of dynamic_ofa in the mean "
        "over judged deadlines (in-time accuracy)",
        POINTS,
        GAIN_GOAL,
        parts,
        missing=missing,
    )


def _largest_at_less_latency(frontier: dict[str, Any] | None) -> dict[str, Any]:
    """True if some point that is fast enough is surely no worse; False if all are surely worse."""
    points = [p for p in (frontier or {}).get("points", ()) if p["arm"] == SPLIT]
    fast = [point for point in points if point["latency_ratio"] <= LATENCY_GOAL]
    verdicts = [Interval(**point["against_largest"]).reaches(0.0) for point in fast]
    met: bool | None = None
    if any(verdicts):
        met = True
    elif verdicts and all(verdict is False for verdict in verdicts):
        met = False
    equal = [p for p in points if p["against_largest"]["mean"] >= 0]
    least = min(equal, key=lambda p: p["latency_ratio"], default=None)
    parts = [
        {
            "label": f"deadline {p['deadline_ms']:.3g} ms, {p['latency_ratio']:.0%} of its latency",
            "met": Interval(**p["against_largest"]).reaches(0.0),
            "value": p["against_largest"]["mean"],
            "interval": _ends(Interval(**p["against_largest"])),
        }
        for p in points
    ]
    note = "value: the least ratio of median latencies at which opa_split is at least as right as "
    note += "the largest network by itself, of those run; parts: accuracy less the largest's"
    return {
        "name": "largest_at_less_latency",
        "text": "opa_split reaches the largest subnet's accuracy at no more than 60 % of its "
        "latency",
        "met": met,
        "value": None if least is None else least["latency_ratio"],
        "unit": RATIO,
        "threshold": LATENCY_GOAL,
        "interval": None,
        "parts": parts,
        "note": note if points else "not run",
    }


def _goal(
    name: str,
    text: str,
    unit: str,
    threshold: float,
    parts: Sequence[Part],
    *,
    missing: Sequence[str] = (),
    note: str = "",
) -> dict[str, Any]:
    """A goal that is met if all parts are and none is missing; its value is the least part's."""
    least = min(parts, key=lambda part: part.found.mean, default=None)
    met = together(part.met for part in parts)
    if missing:
        met = False if met is False else None
        note = f"not run: {', '.join(missing)}; {note}".removesuffix("; ")
    return {
        "name": name,
        "text": text,
        "met": met,
        "value": None if least is None else least.found.mean,
        "unit": unit,
        "threshold": threshold,
        "interval": None if least is None else _ends(least.found),
        "parts": [part.to_dict() for part in parts],
        "note": note,
    }


def _ends(found: Interval) -> list[float] | None:
    return None if found.low is None or found.high is None else [found.low, found.high]


def _has(reader: Reader, *arms: str) -> bool:
    return all(arm in reader.findings.arms for arm in arms)
