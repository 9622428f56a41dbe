"""How little latency the largest network's accuracy takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.evaluate.compare.arms import largest_network
from opa_trt.evaluate.compare.cells import FRONTIER, Cell
from opa_trt.evaluate.compare.sections import Reader

Floats = npt.NDArray[np.float64]


def frontier_section(reader: Reader) -> dict[str, Any] | None:
    """Accuracy at finer deadlines, beside the largest network's on the same groups."""
    cells = reader.findings.of(FRONTIER)
    if not cells:
        return None
    load = cells[0].load
    largest = largest_network(reader.tree)
    trials = reader.findings.trials[load, cells[0].size]
    median = trials.median(largest)
    points = []
    for cell in cells:
        truth = _largest_accuracy(reader, cell)
        for arm in cell.taken:
            right, p50 = cell.accuracy(arm), float(np.median(cell.ms(arm)))
            points.append(
                {
                    "deadline_ms": cell.deadline_ms,
                    "deadline_ratio": cell.deadline_ms / median,
                    "arm": arm,
                    "accuracy": reader.mean(right).to_dict(),
                    "p50_ms": p50,
                    "latency_ratio": p50 / median,
                    "against_largest": reader.mean(right - truth).to_dict(),
                }
            )
    accuracy = float(_largest_accuracy(reader, cells[0]).mean())
    return {"load": load, "largest": {"median_ms": median, "accuracy": accuracy}, "points": points}


def _largest_accuracy(reader: Reader, cell: Cell) -> Floats:
    """``[G]`` accuracy of the largest network on a cell's groups, as recorded on the pool."""
    right = reader.answers.right[largest_network(reader.tree)]
    return np.array([right[draw.rows].mean() for draw in cell.draws[: cell.groups]])
