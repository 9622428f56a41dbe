"""Ours against every other arm, paired by group."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.evaluate.compare.arms import OPA_ARM, SPLIT
from opa_trt.evaluate.compare.cells import STREAM, Cell
from opa_trt.evaluate.compare.intervals import EXACT, Interval
from opa_trt.evaluate.compare.sections import Reader, over

Floats = npt.NDArray[np.float64]
OURS = (SPLIT, OPA_ARM)
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
BINS = 20


def in_time_gain(cells: list[Cell], ours: str, other: str) -> Floats:
    """``[G]`` in-time accuracy of ours less that of the other, means over cells."""
    return over([cell.in_time_accuracy(ours) - cell.in_time_accuracy(other) for cell in cells])


def difference(reader: Reader, cells: list[Cell], ours: str, other: str) -> Interval:
    """The mean of ``in_time_gain``, and its interval."""
    return reader.mean(in_time_gain(cells, ours, other))


def differences(reader: Reader) -> list[dict[str, Any]]:
    """A row for each deadline; for the judged deadlines of a load, and of all loads, together.

    Intervals are over groups, each its mean over the deadlines; all else is of single answers.
    """
    wanted: list[tuple[int | None, float | None, bool, list[Cell]]] = [
        (cell.load, cell.deadline_ms, cell.judged, [cell]) for cell in reader.findings.of(STREAM)
    ]
    wanted += [(load, None, True, reader.judged(load)) for load in (*reader.loads(), None)]
    arms = reader.findings.arms
    return [
        {
            "load": load,
            "deadline_ms": deadline,
            "judged": judged,
            "ours": ours,
            "other": other,
            **_row(reader, cells, ours, other),
        }
        for ours in OURS
        if ours in arms
        for other in arms
        if other != ours
        for load, deadline, judged, cells in wanted
        if cells
    ]


def _row(reader: Reader, cells: list[Cell], ours: str, other: str) -> dict[str, Any]:
    plain = over([cell.accuracy(ours) - cell.accuracy(other) for cell in cells])
    gain = np.concatenate([in_time_gain([cell], ours, other) for cell in cells])
    counts, edges = np.histogram(gain, BINS, _range(gain))
    return {
        "accuracy": reader.mean(plain).to_dict(),
        "in_time_accuracy": difference(reader, cells, ours, other).to_dict(),
        "better": float(np.mean(gain > EXACT)),
        "equal": float(np.mean(np.abs(gain) <= EXACT)),
        "worse": float(np.mean(gain < -EXACT)),
        "quantiles": {f"{q:g}": float(np.quantile(gain, q)) for q in QUANTILES},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _range(gain: Floats) -> tuple[float, float]:
    """Symmetric around 0, in whole tenths: bins of several rows can be laid over each other."""
    reach = max(0.1, float(np.ceil(np.abs(gain).max() * 10 - EXACT) / 10))
    return -reach, reach
