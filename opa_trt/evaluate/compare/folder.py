"""A comparison's folder: the report, its groups as CSV, its records, and a page for people."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opa_trt import atomic
from opa_trt.errors import ConfigError, OpaError
from opa_trt.evaluate.compare.cells import Findings
from opa_trt.evaluate.compare.comparison import Comparison
from opa_trt.evaluate.compare.records import RECORDS

REPORT, GROUPS = "compare.json", "groups.csv"
PAGE = "opa_trt.evaluate.compare_page"
COLUMNS = (
    "phase", "load", "deadline_ms", "judged", "group", "images", "family", "severity", "arm",
    "accuracy", "in_time", "in_time_accuracy", "ms", "decision_ms", "switch_ms", "engines_ms",
    "node",
)  # fmt: skip


def check_new(out: Path) -> None:
    """Refuse a place where something stands already.

    Raises:
        ConfigError: a file or a folder, one below a file, or where nothing can be written.
    """
    if out.exists():
        message = f"{out} exists."
        raise ConfigError(message, expected="a new folder.", remedy="name another with --out.")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        message = f"{out} lies below a file, {above}."
        raise ConfigError(message, expected="a new folder.", remedy="name another with --out.")
    if not os.access(above, os.W_OK | os.X_OK):
        message = f"{above} cannot be written to."
        raise ConfigError(message, expected="a new folder.", remedy="name another with --out.")


def write(comparison: Comparison, out: Path) -> str:
    """Write everything to the new folder ``out``: beside first, then renamed; then the page.

    Returns:
        Why there is no page; "" where there is one.

    Raises:
        ConfigError: ``out`` exists.
    """
    check_new(out)
    report = plain(comparison.report)
    with atomic.folder(out) as beside:
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        (beside / REPORT).write_text(text, encoding="utf-8")
        (beside / GROUPS).write_text(groups_csv(comparison.findings), encoding="utf-8")
        (beside / RECORDS).write_bytes(comparison.records)
    return _page(report, out)


def _page(report: dict[str, Any], out: Path) -> str:
    try:
        page = importlib.import_module(PAGE)
    except ModuleNotFoundError as exc:
        if exc.name != PAGE:
            raise
        return f"{PAGE} is missing."
    try:
        page.write_page(report, out)
    except OpaError as exc:  # without matplotlib the figures stand all the same
        return str(exc)
    return ""


def groups_csv(findings: Findings) -> str:
    """A row for each group and arm, in the order in which they were run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(findings))
    return text.getvalue()


def _rows(findings: Findings) -> Iterator[dict[str, Any]]:
    for cell in findings.cells:
        for index in range(cell.groups):
            draw = cell.draws[index]
            for arm, given in cell.taken.items():
                taken = given[index]
                yield {
                    "phase": cell.phase,
                    "load": cell.load,
                    "deadline_ms": round(cell.deadline_ms, 6),
                    "judged": int(cell.judged),
                    "group": index,
                    "images": cell.size,
                    "family": draw.family,
                    "severity": draw.severity,
                    "arm": arm,
                    "accuracy": round(taken.accuracy, 6),
                    "in_time": int(taken.in_time),
                    "in_time_accuracy": round(taken.accuracy * taken.in_time, 6),
                    "ms": round(taken.ms, 6),
                    "decision_ms": round(taken.decision_ms, 6),
                    "switch_ms": round(taken.switch_ms, 6),
                    "engines_ms": round(taken.engines_ms, 6),
                    "node": findings.nodes[taken.main],
                }


def plain(value: Any) -> Any:
    """Lists, dictionaries with text for keys, and None where a number is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
