"""What plots and tables ask of a report: rows by load, deadline and arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

Report: TypeAlias = Mapping[str, Any]
Row: TypeAlias = dict[str, Any]

OURS = ("opa_split", "opa")


def arms(report: Report, *kinds: str) -> list[str]:
    """Names in the order of tables and legends; of some kinds only, where they are named."""
    return [arm["name"] for arm in report["arms"] if not kinds or arm["kind"] in kinds]


def present(report: Report, rows: Iterable[Row], key: str = "arm") -> list[str]:
    """The arms that have a row, in the order of the report."""
    found = {row[key] for row in rows}
    return [arm for arm in arms(report) if arm in found]


def where(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def loads(rows: Iterable[Row]) -> list[int]:
    """The loads of some rows, ascending; None is not among them."""
    return sorted({row["load"] for row in rows if row["load"] is not None})


def surely(found: Mapping[str, Any], other: float = 0.0) -> int:
    """1 where an interval lies above a value, -1 where it lies below, else 0.

    Without an interval nothing is sure.
    """
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return 0
    return 1 if low > other else -1 if high < other else 0


def head_to_head(report: Report, ours: str = "opa_split") -> list[Row]:
    """Differences from baselines at single judged deadlines."""
    baselines = arms(report, "baseline")
    return [
        row
        for row in report["differences"]
        if row["ours"] == ours
        and row["other"] in baselines
        and row["judged"]
        and row["deadline_ms"] is not None
        and row["load"] is not None
    ]
