"""Deadlines met while background applications start and stop, beside Dynamic-OFA's manager.

    python benchmarks/deadlines.py --out docs/results/deadlines.md

Groups of 100 digits whose content drifts, under three deadlines from 1.2 times the pioneer's p99
under that load to 1.2 times the largest route's median under it. Every policy has a session of its
own over the same engines, and they take turns group by group. With one and with two applications,
stretches without any come between those with them.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from alternating import (
    VERDICTS,
    all_met,
    finish,
    options,
    table,
    use_threads,
    versions,
    with_folder,
)
from bundles import GROUP_SIZE, digits_bundle, digits_stream
from measuring import describe

import opa_trt
from opa_trt import Session
from opa_trt.evaluate.background import applications
from opa_trt.evaluate.compare.intervals import wilson
from opa_trt.evaluate.stream import StreamGroup
from opa_trt.store import EngineStore

POLICIES = ("opa", "opa_split", "dynamic_ofa")
JUDGED = ("opa", "opa_split")
LOADS = (0, 1, 2)
STRETCHES = 8  # of a run; every other one with applications
FRACTIONS = (0.0, 0.5, 1.0)  # where a deadline lies between the tightest and the widest
TRIALS = 100  # groups that the deadlines are measured on
GOAL = 0.99
SETTLED = 5  # deadlines met in a row after a load began: the policy has reacted


@dataclass
class Arm:
    """One policy under one deadline: its session, and what became of its groups."""

    policy: str
    deadline_ms: float
    session: Session
    ms: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    after: list[int] = field(default_factory=list)  # how many groups ago a load began, or -1

    def run(self, group: StreamGroup, since: int) -> None:
        """Answer a group, ``since`` groups after applications started."""
        result = self.session.infer(group.pixels, self.deadline_ms)
        self.ms.append(result.measured_ms)
        self.right.append(result.accuracy(group.labels))
        self.after.append(since)


def main() -> None:
    """Measure every load and print what became of the deadlines."""
    chosen = _options()
    use_threads(chosen.threads)
    path = digits_bundle(chosen.folder, chosen.backend, chosen.threads)
    stream = digits_stream(chosen.groups)
    store = EngineStore(chosen.folder / "store")
    rows = []
    with opa_trt.load(path, backend=chosen.backend, threads=chosen.threads, store=store) as session:
        for load in chosen.loads:
            rows += under_load(session, load, stream, chosen)
        ran = session.backend
    finish(summary(rows) | {"backend": ran}, page, chosen, versions(ran.split("+")))


def _options() -> argparse.Namespace:
    parser = with_folder(options(__doc__ or ""))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--groups", type=int, default=1000, help="of each policy and deadline")
    parser.add_argument("--loads", type=int, nargs="+", default=list(LOADS))
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.groups, chosen.loads = 16, chosen.loads[:2]
    return chosen


def under_load(
    session: Session, load: int, stream: list[StreamGroup], chosen: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for every deadline and policy, with ``load`` applications that come and go."""
    with _applications(load):
        deadlines = measured_deadlines(session, stream, 10 if chosen.quick else TRIALS)
    arms = [_arm(session, policy, deadline) for deadline in deadlines for policy in POLICIES]
    per_stretch = max(1, len(stream) // STRETCHES)
    for stretch in range(STRETCHES):
        begin = stretch * per_stretch
        end = len(stream) if stretch == STRETCHES - 1 else begin + per_stretch
        busy = stretch % 2 == 1
        with _applications(load if busy else 0):
            for index in range(begin, end):
                for place in range(len(arms)):
                    arm = arms[(index + place) % len(arms)]
                    arm.run(stream[index], index - begin if busy and load else -1)
    for arm in arms:
        arm.session.close()
    return [_row(arm, load) for arm in arms]


def measured_deadlines(session: Session, stream: list[StreamGroup], trials: int) -> list[float]:
    """The tightest, the middle and the widest deadline in ms, under the present load."""
    times: dict[str, list[float]] = {"pioneer": [], "largest": []}
    for index in range(trials):
        for name, found in times.items():
            session.use(f"static:{name}")
            found.append(session.infer(stream[index % len(stream)].pixels, np.inf).measured_ms)
    low = 1.2 * float(np.quantile(times["pioneer"], 0.99))
    high = max(low, 1.2 * float(np.median(times["largest"])))
    return [low + fraction * (high - low) for fraction in FRACTIONS]


def _arm(session: Session, policy: str, deadline: float) -> Arm:
    own = session.fork()
    own.use(policy)
    return Arm(policy, deadline, own)


@contextlib.contextmanager
def _applications(count: int) -> Iterator[None]:
    if not count:
        yield
        return
    with applications(count, "cpu", seconds=600):
        yield


def _row(arm: Arm, load: int) -> dict[str, Any]:
    ms, right = np.array(arm.ms), np.array(arm.right)
    in_time = ms <= arm.deadline_ms
    met = wilson(float(in_time.sum()), len(ms))
    return {
        "load": load,
        "deadline_ms": arm.deadline_ms,
        "policy": arm.policy,
        "groups": len(ms),
        "met_share": met.mean,
        "met_interval": [met.low, met.high],
        "p50_ms": float(np.median(ms)),
        "p99_ms": float(np.quantile(ms, 0.99)),
        "accuracy": float(right.mean()),
        "in_time_accuracy": float((right * in_time).mean()),
        "reaction_groups": reaction(in_time, arm.after),
        "judged": arm.policy in JUDGED,
        "goal": GOAL,
        "met": met.reaches(GOAL),
    }


def reaction(in_time: Any, after: list[int]) -> float | None:
    """Groups from a load's start until ``SETTLED`` deadlines were met in a row: the median."""
    found = []
    for start in (place for place, since in enumerate(after) if since == 0):
        rest = after[start + 1 :]
        length = 1 + next((i for i, since in enumerate(rest) if since <= 0), len(rest))
        met = [bool(ok) for ok in in_time[start : start + length]]
        runs = range(len(met) - SETTLED + 1)
        found.append(next((i for i in runs if all(met[i : i + SETTLED])), length))
    return float(np.median(found)) if found else None


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows, and whether the goal is met in all that are judged."""
    judged = [row["met"] for row in rows if row["judged"]]
    return {
        "benchmark": "deadlines",
        "peer": "Dynamic-OFA's reactive manager on the same engines",
        "rows": rows,
        "goal": f"at least {GOAL:.0%} of groups in time, for {' and '.join(JUDGED)}",
        "met": all_met(judged),
    }


PAGE = """# Deadlines met under a load that comes and goes

`python benchmarks/deadlines.py --out docs/results/deadlines.md`, on {machine}, {threads} threads,
{backend}.

Groups of {size} digits whose content drifts from clean to hard and back. Deadlines lie between 1.2
times the pioneer's p99 and 1.2 times the largest route's median, both measured under that load. The
applications (three-layer networks in a loop) run in every other of {stretches} stretches and are
really started and ended. Every policy and deadline has a session of its own over the same engines;
they take turns group by group. *right in time* counts an answer after its deadline as wrong;
*reaction* is how many groups after a start it took until {settled} deadlines in a row were met
(median over the starts). Brackets hold Wilson's 95 % interval, and a goal is met if all of it is.

{rows}

Goal: {goal}: **{verdict}**.
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = ("applications", "deadline ms", "policy", "groups", "in time", "right in time", "right",
            "p50 ms", "p99 ms", "reaction", "goal")  # fmt: skip
    values = report | {
        "machine": describe(report["machine"]),
        "size": GROUP_SIZE,
        "stretches": STRETCHES,
        "settled": SETTLED,
        "rows": table(head, [_cells(row) for row in report["rows"]]),
        "verdict": VERDICTS[report["met"]],
    }
    return PAGE.format(**values)


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = (f"{100 * value:.1f}" for value in row["met_interval"])
    groups = row["reaction_groups"]
    return [
        str(row["load"]),
        f"{row['deadline_ms']:.1f}",
        row["policy"],
        str(row["groups"]),
        f"{100 * row['met_share']:.1f} % [{low}, {high}]",
        f"{100 * row['in_time_accuracy']:.1f} %",
        f"{100 * row['accuracy']:.1f} %",
        f"{row['p50_ms']:.2f}",
        f"{row['p99_ms']:.2f}",
        "–" if groups is None else f"{groups:g}",
        (f"≥ {GOAL:.0%}: {VERDICTS[row['met']]}" if row["judged"] else "–"),
    ]


if __name__ == "__main__":
    main()
