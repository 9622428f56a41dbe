"""The first group after a change of tail against the groups after it.

    python benchmarks/switch.py --out docs/results/switch.md

Every engine is loaded and warm, so a switch loads nothing. What may be left is the tail's weights,
which have gone out of the processor's caches while another ran; the control tells that from the
runtime's own share: the same tail again, after another session has run the other tail.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from alternating import (
    VERDICTS,
    all_met,
    at_most,
    bracketed,
    extra,
    finish,
    options,
    table,
    use_threads,
    versions,
    with_backends,
    with_folder,
    working,
)
from measuring import describe
from ofa_network import Design, Network, network, tiny
from steering import Steered, steer

import opa_trt
from opa_trt.store import EngineStore

BACKENDS = ("openvino", "torchscript", "onnxruntime")
GOAL = 0.1  # ms, at batch 1
PAPERS = {"OPA": 2.52, "Dynamic-OFA": 17.0}  # ms, as the OPA paper has them
FEWEST, MOST = 6, 400  # rounds
Round = dict[str, float]  # ms by what came before: "switched", "settled", "control"


@dataclass
class Stream:
    """A session that answers groups by the tail it is told."""

    session: opa_trt.Session
    policy: Steered
    images: Any

    def group(self, tail: str) -> float:
        """ms of one group."""
        self.policy.tail = tail
        begun = time.perf_counter()
        self.session.infer(self.images, math.inf)
        return 1e3 * (time.perf_counter() - begun)


def main() -> None:
    """Measure both directions on every backend and batch, and print what they gave."""
    chosen = _options()
    use_threads(chosen.threads)
    names, missing = working(chosen.backends)
    rows = [
        row
        for design, batch in _settings(chosen.quick)
        for name in names
        for row in compare(network(chosen.folder, design), name, batch, chosen)
    ]
    finish(summary(rows) | {"left_out": missing}, page, chosen, versions(names))


def _options() -> argparse.Namespace:
    parser = with_backends(with_folder(options(__doc__ or "")), BACKENDS)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each row of the table")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seconds = 0.0
    return chosen


def _settings(quick: bool) -> list[tuple[Design, int]]:
    if quick:
        return [(tiny(), 1)]
    return [(Design(224, 8, (1,)), 1), (Design(96, 100, (16,)), 32)]


def compare(
    net: Network, name: str, batch: int, chosen: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each direction between the smallest and the largest tail."""
    store, images = EngineStore(chosen.folder / "store"), net.design.images(batch)
    small, large = net.design.tail_names[0], net.design.tail_names[-1]

    def load() -> opa_trt.Session:
        return opa_trt.load(net.path, backend=name, threads=chosen.threads, store=store)

    with load() as first, load() as second:
        stream, other = (Stream(s, steer(s), images) for s in (first, second))
        found = {
            (a, b): rounds(stream, other, a, b, chosen.seconds)
            for a, b in ((small, large), (large, small))
        }
    facts = {"backend": name, "side": net.design.side, "batch": batch}
    return [facts | {"from": a, "to": b} | figures(runs, batch) for (a, b), runs in found.items()]


def rounds(stream: Stream, other: Stream, before: str, after: str, seconds: float) -> list[Round]:
    """Rounds of three figures for the tail ``after``, whose order turns from round to round."""

    def switched() -> float:
        stream.group(before)
        return stream.group(after)

    def settled() -> float:
        stream.group(after)
        return stream.group(after)

    def control() -> float:
        stream.group(after)
        other.group(before)  # as much other work as a switch has, but the stream keeps its tail
        return stream.group(after)

    arms: dict[str, Callable[[], float]] = {
        "switched": switched,
        "settled": settled,
        "control": control,
    }
    found: list[Round] = []
    begun = time.perf_counter()
    while len(found) < FEWEST or (len(found) < MOST and time.perf_counter() - begun < seconds):
        order = list(arms)[:: 1 if len(found) % 2 == 0 else -1]
        made = {arm: arms[arm]() for arm in order}
        found.append(made)
    return found


def figures(found: list[Round], batch: int) -> dict[str, Any]:
    """Medians in ms, and what a switch and the control take beyond a settled group."""
    switch = extra([(r["switched"], r["settled"]) for r in found])
    control = extra([(r["control"], r["settled"]) for r in found])
    own = extra([(r["switched"], r["control"]) for r in found])
    return {
        "rounds": len(found),
        **{f"{arm}_ms": float(np.median([r[arm] for r in found])) for arm in found[0]},
        "extra_ms": switch[0],
        "extra_interval": list(switch[1:]),
        "control_extra_ms": control[0],
        "control_interval": list(control[1:]),
        "beyond_control_ms": own[0],
        "beyond_control_interval": list(own[1:]),
        "met": at_most(switch[1], switch[2], GOAL) if batch == 1 else None,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows, and whether the goal is met at batch 1."""
    return {
        "benchmark": "switch",
        "peer": "the same tail's following groups",
        "quoted_ms": PAPERS,
        "rows": rows,
        "goal": f"at most {GOAL:g} ms beyond the following groups, at batch 1",
        "met": all_met([row["met"] for row in rows if row["batch"] == 1]),
    }


PAGE = """# What changing the tail costs

`python benchmarks/switch.py --out docs/results/switch.md`, on {machine}, {threads} threads.

Once-for-all's MobileNetV3 (width 1.0), random weights. *switched* is a group after a group of the
other tail; *settled* one after a group of its own; *control* one after a group of its own and then
one of the other tail on another session, which puts the weights out of the processor's caches as a
switch does while nothing is switched. The three take turns, every other round in reverse order.
Brackets hold the 95 % bootstrap interval of the median of the rounds' differences, in ms.

{rows}

Goal: {goal}: **{verdict}**. For comparison, as the OPA paper has them: OPA 2.52 ms, Dynamic-OFA
17 ms, on its own machine and engines.

What *beyond control* leaves is the runtime's own share of a switch; what *control* has beyond
*settled* is cold caches, which any two engines that take turns pay. {left_out}
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = (
        "backend",
        "batch, px",
        "to",
        "rounds",
        "settled ms",
        "switched ms",
        "control ms",
        "switched beyond settled",
        "control beyond settled",
        "beyond control",
        "goal",
    )
    left_out = [f"{name} is left out: {why}" for name, why in report["left_out"].items()]
    values = report | {
        "machine": describe(report["machine"]),
        "rows": table(head, [_cells(row) for row in report["rows"]]),
        "verdict": VERDICTS[report["met"]],
        "left_out": " ".join(left_out),
    }
    return PAGE.format(**values)


def _cells(row: dict[str, Any]) -> list[str]:
    judged = row["batch"] == 1
    return [
        row["backend"],
        f"{row['batch']}, {row['side']}",
        row["to"],
        str(row["rounds"]),
        f"{row['settled_ms']:.2f}",
        f"{row['switched_ms']:.2f}",
        f"{row['control_ms']:.2f}",
        bracketed([row["extra_ms"], *row["extra_interval"]]),
        bracketed([row["control_extra_ms"], *row["control_interval"]]),
        bracketed([row["beyond_control_ms"], *row["beyond_control_interval"]]),
        f"≤ {GOAL:g} ms: {VERDICTS[row['met']]}" if judged else "–",
    ]


if __name__ == "__main__":
    main()
