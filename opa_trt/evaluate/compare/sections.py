"""The report's tables, computed from what was run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.evaluate.compare.answers import Answers
from opa_trt.evaluate.compare.arms import largest_of, pioneer_of, static_ends
from opa_trt.evaluate.compare.cells import SIZE, STREAM, Cell, Findings
from opa_trt.evaluate.compare.deadlines import bounds_of, make_deadline
from opa_trt.evaluate.compare.intervals import Interval, bootstrap, wilson
from opa_trt.evaluate.compare.settings import Settings
from opa_trt.tree import Tree

Floats = npt.NDArray[np.float64]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Reader:
    """Reads tables from findings.

    Args:
        findings: what was run.
        settings: how much was run.
        tree: the bundle's.
        answers: of every node on the pool.
    """

    findings: Findings
    settings: Settings
    tree: Tree
    answers: Answers

    def mean(self, values: Floats) -> Interval:
        """The mean over groups, and its interval."""
        return bootstrap(values, self.settings.draws, self.settings.seed)

    def judged(self, load: int | None = None) -> list[Cell]:
        """The stream's cells that count for goals: one that was cut short only if all were."""
        cells = [cell for cell in self.findings.of(STREAM, load) if cell.judged]
        return [cell for cell in cells if cell.complete] or cells

    def loads(self) -> list[int]:
        """Those under which the stream was run, ascending."""
        return sorted({cell.load for cell in self.findings.of(STREAM)})

    # --- loads, results, means ----------------------------------------------------------------

    def load_rows(self) -> Rows:
        """What the trials say of each load, and the deadlines that follow."""
        size, found = self.settings.group_size, []
        unloaded = self.findings.trials.get((0, size))
        for (load, of), trials in self.findings.trials.items():
            if of != size:
                continue
            bounds, ends = bounds_of(self.tree, trials), static_ends(self.tree)
            medians = {node: trials.median(node) for node in ends}
            largest = trials.median(largest_of(self.tree))
            before = None if unloaded is None else unloaded.median(largest_of(self.tree))
            found.append(
                {
                    "load": load,
                    "pioneer_p99_ms": trials.p99(pioneer_of(self.tree)),
                    "largest_median_ms": largest,
                    "fastest_median_ms": min(medians.values()),
                    "low_ms": bounds.low,
                    "high_ms": bounds.high,
                    "slowdown": largest / before if before else None,
                    "routes": [
                        {
                            "node": node,
                            "median_ms": medians[node],
                            "p99_ms": trials.p99(node),
                            "fit_accuracy": self.tree[node].accuracy,
                        }
                        for node in ends
                    ],
                    "deadlines": [
                        {
                            "deadline_ms": cell.deadline_ms,
                            "judged": cell.judged,
                            "static_best": cell.static_best,
                            "fits": make_deadline(self.tree, trials, cell.deadline_ms, False).fits,
                        }
                        for cell in self.findings.of(STREAM, load)
                    ],
                }
            )
        return found

    def results(self) -> Rows:
        """A row for each load, deadline and arm."""
        return [
            {
                **_where(cell),
                "arm": arm,
                **self._figures([cell], arm),
                "p50_ms": float(np.quantile(cell.ms(arm), 0.5)),
                "p99_ms": float(np.quantile(cell.ms(arm), 0.99)),
                "nodes": self._nodes(cell, arm),
            }
            for cell in self.findings.of(STREAM)
            for arm in self.findings.arms
        ]

    def means(self) -> Rows:
        """Each arm over the judged deadlines of a load, and over all loads."""
        return [
            {"load": load, "arm": arm, **self._figures(cells, arm)}
            for load in (*self.loads(), None)
            if (cells := self.judged(load))
            for arm in self.findings.arms
        ]

    def _figures(self, cells: Sequence[Cell], arm: str) -> dict[str, Any]:
        """Accuracies by group, means over the cells; deadlines met by Wilson's interval."""
        met = np.concatenate([cell.in_time(arm) for cell in cells])
        return {
            "groups": len(met),
            "accuracy": self.mean(over([cell.accuracy(arm) for cell in cells])).to_dict(),
            "in_time_accuracy": self.mean(
                over([cell.in_time_accuracy(arm) for cell in cells])
            ).to_dict(),
            "deadlines_met": wilson(float(met.sum()), len(met)).to_dict(),
            "mean_ms": float(np.concatenate([cell.ms(arm) for cell in cells]).mean()),
        }

    def _nodes(self, cell: Cell, arm: str) -> dict[str, float]:
        """The share of images that each node answered."""
        answered = np.concatenate([taken.node for taken in cell.taken[arm][: cell.groups]])
        places, counts = np.unique(answered, return_counts=True)
        names = self.findings.nodes
        return {
            names[place]: float(count / len(answered))
            for place, count in zip(places.tolist(), counts.tolist(), strict=True)
        }

    # --- overhead, violations -----------------------------------------------------------------

    def overhead(self) -> Rows:
        """What deciding and switching take of a group's time, over the judged deadlines."""
        found = []
        for load in self.loads():
            for arm in self.findings.arms:
                cells = self.judged(load)
                if not cells:
                    continue
                taken = [each for cell in cells for each in cell.taken[arm][: cell.groups]]
                decision = np.array([each.decision_ms for each in taken])
                switch = np.array([each.switch_ms for each in taken])
                whole = np.array([each.ms for each in taken])
                found.append(
                    {
                        "load": load,
                        "arm": arm,
                        "decision_ms": _quantiles(decision),
                        "switch_ms": _quantiles(switch),
                        "engines_ms": _quantiles(np.array([each.engines_ms for each in taken])),
                        "share": float(np.median(_share(decision + switch, whole))),
                        "switches": float(np.mean([_switches(cell, arm) for cell in cells])),
                    }
                )
        return found

    def violations(self) -> Rows:
        """Deadlines that were missed: how many, by how much, and how many in a row."""
        found = []
        for cell in self.findings.of(STREAM):
            for arm in self.findings.arms:
                late = cell.in_time(arm) == 0
                excess = cell.ms(arm)[late] - cell.deadline_ms
                found.append(
                    {
                        **_where(cell),
                        "arm": arm,
                        "groups": cell.groups,
                        "missed": int(late.sum()),
                        "missed_share": wilson(float(late.sum()), cell.groups).to_dict(),
                        "worst_ms": float(excess.max()) if len(excess) else 0.0,
                        "mean_excess_ms": float(excess.mean()) if len(excess) else None,
                        "longest_run": _longest_run(late),
                    }
                )
        return found

    # --- group sizes --------------------------------------------------------------------------

    def group_sizes(self) -> Rows:
        """Accuracy and overhead an image by group size."""
        found = []
        for cell in self.findings.of(SIZE):
            for arm in cell.taken:
                ms = cell.ms(arm)
                own = cell.values(arm, lambda each: each.decision_ms + each.switch_ms)
                figures = self._figures([cell], arm)
                figures.pop("mean_ms")
                found.append(
                    {
                        "size": cell.size,
                        "deadline_ms": cell.deadline_ms,
                        "arm": arm,
                        **figures,
                        "p50_ms": float(np.median(ms)),
                        "overhead_ms_an_image": float(own.mean() / cell.size),
                        "ms_an_image": float(ms.mean() / cell.size),
                        "share": float(np.median(_share(own, ms))),
                    }
                )
        return found


def over(values: Sequence[Floats]) -> Floats:
    """``[G]`` the mean of each group over several cells on the same groups, as far as all go."""
    groups = min(len(each) for each in values)
    mean: Floats = np.mean([each[:groups] for each in values], axis=0)
    return mean


def _where(cell: Cell) -> dict[str, Any]:
    return {"load": cell.load, "deadline_ms": cell.deadline_ms, "judged": cell.judged}


def _quantiles(values: Floats) -> dict[str, float]:
    return {"p50": float(np.quantile(values, 0.5)), "p99": float(np.quantile(values, 0.99))}


def _share(part: Floats, whole: Floats) -> Floats:
    share: Floats = part / np.maximum(whole, 1e-9)
    return share


def _switches(cell: Cell, arm: str) -> float:
    """The share of groups, from the second on, whose main node is not the one before."""
    main = np.array([taken.main for taken in cell.taken[arm][: cell.groups]])
    return float(np.mean(main[1:] != main[:-1])) if len(main) > 1 else 0.0


def _longest_run(late: npt.NDArray[np.bool_]) -> int:
    return max((len([*run]) for missed, run in groupby(late.tolist()) if missed), default=0)
