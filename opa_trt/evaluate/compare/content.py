"""Content that changes over time: by what was done to the images, and group after group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opa_trt.evaluate.compare.cells import CONTENT, STREAM, Cell
from opa_trt.evaluate.compare.sections import Reader, over


def content(reader: Reader) -> dict[str, Any]:
    """Figures of each condition over the judged deadlines, and the middle one group by group."""
    phase = STREAM if reader.settings.families else CONTENT
    cells = reader.findings.of(phase)
    by_family, timelines = [], []
    for load in sorted({cell.load for cell in cells}):
        own = [cell for cell in cells if cell.load == load]
        judged = [cell for cell in own if cell.judged] or own
        by_family += _by_family(reader, load, judged)
        timelines.append(_timeline(reader, judged[len(judged) // 2]))
    return {"by_family": by_family, "timelines": timelines}


def _by_family(reader: Reader, load: int, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """All cells of a load have the same groups."""
    groups = min(cell.groups for cell in cells)
    pairs = [(draw.family, draw.severity) for draw in cells[0].draws[:groups]]
    found = []
    for family, severity in sorted(set(pairs), key=lambda pair: (pair[1] > 0, *pair)):
        rows = [index for index, pair in enumerate(pairs) if pair == (family, severity)]
        for arm in reader.findings.arms:
            right = over([cell.accuracy(arm) for cell in cells])[rows]
            in_time = over([cell.in_time_accuracy(arm) for cell in cells])[rows]
            found.append(
                {
                    "load": load,
                    "arm": arm,
                    "family": family,
                    "severity": severity,
                    "groups": len(rows) * len(cells),
                    "accuracy": reader.mean(right).to_dict(),
                    "in_time_accuracy": reader.mean(in_time).to_dict(),
                }
            )
    return found


def _timeline(reader: Reader, cell: Cell) -> dict[str, Any]:
    draws, names = cell.draws[: cell.groups], reader.findings.nodes
    return {
        "load": cell.load,
        "deadline_ms": cell.deadline_ms,
        "families": [draw.family for draw in draws],
        "severities": [draw.severity for draw in draws],
        "arms": {
            arm: {
                "accuracy": cell.accuracy(arm).tolist(),
                "in_time": [bool(met) for met in cell.in_time(arm)],
                "ms": cell.ms(arm).tolist(),
                "node": [names[taken.main] for taken in cell.taken[arm][: cell.groups]],
            }
            for arm in reader.findings.arms
        },
    }
