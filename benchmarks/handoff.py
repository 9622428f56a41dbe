"""Pioneer, decision and tail against the plain sub-network as one engine of the same backend.

    python benchmarks/handoff.py --out docs/results/handoff.md

Ours is `session.infer` with the exit head, the real `opa` decision, the checks and the result; the
peer is one engine of the same sub-network without the exit head, run by hand into outputs that are
allocated beforehand. Both take turns in the order A B B A.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from alternating import (
    VERDICTS,
    all_met,
    alternate,
    at_most,
    block_ms,
    bracketed,
    finish,
    options,
    ratio,
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
from opa_trt.backends import Engine, backend
from opa_trt.store import EngineStore
from opa_trt.tree import IMAGES, LOGITS

BACKENDS = ("openvino", "torchscript", "onnxruntime")
JUDGED = ("openvino", "torchscript")
GOALS = {1: 1.10, 32: 1.05, 100: 1.05}  # by batch; 16 has none
BLOCK = {1: 5}  # runs in a row by batch, of which the median counts; 1 where it is not named


@dataclass
class Ours:
    """One side: a session steered to a tail, and where its time goes, group by group."""

    session: opa_trt.Session
    policy: Steered
    parts: list[tuple[float, float, float]] = field(default_factory=list)

    def run(self, images: Any, tail: str) -> float:
        """ms of one group; notes engines, decision and the rest."""
        self.policy.tail = tail
        begun = time.perf_counter()
        result = self.session.infer(images, math.inf)
        total = 1e3 * (time.perf_counter() - begun)
        engines = sum(step.measured_ms for step in result.steps)
        self.parts.append((engines, self.policy.ms, total - engines - self.policy.ms))
        return total

    def block(self, images: Any, tail: str, runs: int) -> float:
        """The median of so many groups in a row."""
        return float(np.median([self.run(images, tail) for _ in range(runs)]))


def main() -> None:
    """Measure every backend, batch and tail, and print what they gave."""
    chosen = _options()
    use_threads(chosen.threads)
    names, missing = working(chosen.backends)
    networks = {d: network(chosen.folder, d) for d in _designs(chosen.quick)}
    rows = [
        row
        for name in names
        for design, net in networks.items()
        for row in compare(net, name, _batches(design, chosen.quick), chosen)
    ]
    finish(summary(rows) | {"left_out": missing}, page, chosen, versions(names))


def _options() -> argparse.Namespace:
    parser = with_backends(with_folder(options(__doc__ or "")), BACKENDS)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row of the table")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seconds = 0.0
    return chosen


def _designs(quick: bool) -> list[Design]:
    if quick:
        return [tiny()]
    return [Design(224, 8, (1,)), Design(96, 100, (16,))]


def _batches(design: Design, quick: bool) -> tuple[int, ...]:
    if quick:
        return (1, design.max_batch)
    return (1,) if design.side == 224 else (16, 32, 100)


def compare(
    net: Network, name: str, batches: tuple[int, ...], chosen: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for every batch and tail on one backend."""
    store = EngineStore(chosen.folder / "store")
    rows = []
    with opa_trt.load(net.path, backend=name, threads=chosen.threads, store=store) as session:
        ours = Ours(session, steer(session))
        for tail in net.design.tail_names:
            whole = whole_engine(net, name, tail, chosen.threads)
            rows += [one_row(net, ours, whole, tail, batch, chosen.seconds) for batch in batches]
            whole.close()
    return rows


def whole_engine(net: Network, name: str, tail: str, threads: int) -> Engine:
    """The plain sub-network as one engine, for the same target as the bundle's engines."""
    vendor, segment = backend(name), net.monolith(tail)
    target = vendor.target(max_batch=net.design.max_batch, threads=threads)
    return vendor.load(vendor.compile(segment, target), segment, target)


def one_row(
    net: Network, ours: Ours, whole: Engine, tail: str, batch: int, seconds: float
) -> dict[str, Any]:
    """Pairs of (ours, the whole) in ms, and where the difference goes."""
    images, runs = net.design.images(batch), BLOCK.get(batch, 1)
    given, out = {IMAGES: images}, whole.run({IMAGES: images})
    _check(ours, images, tail, out[LOGITS].numpy())
    by_hand: Callable[[], Any] = lambda: whole.run(given, out)  # noqa: E731
    ours.parts.clear()
    pairs = alternate(
        lambda: ours.block(images, tail, runs), lambda: block_ms(by_hand, runs), seconds
    )
    engines, decision, rest = np.median(ours.parts, axis=0)
    theirs = float(np.median([b for _, b in pairs]))
    middle, low, high = ratio(pairs)
    backend_name, goal = whole.target.backend, GOALS.get(batch)
    return {
        "backend": backend_name,
        "side": net.design.side,
        "batch": batch,
        "tail": tail,
        "pairs": len(pairs),
        "our_ms": float(np.median([a for a, _ in pairs])),
        "their_ms": theirs,
        "ratio": middle,
        "ratio_interval": [low, high],
        "cut_ms": float(engines) - theirs,
        "decision_ms": float(decision),
        "rest_ms": float(rest),
        "goal": goal,
        "judged": backend_name in JUDGED and goal is not None,
        "met": at_most(low, high, goal) if goal else None,
    }


def _check(ours: Ours, images: Any, tail: str, logits: Any) -> None:
    """Both sides must give the same logits."""
    ours.policy.tail = tail
    found = ours.session.infer(images, math.inf).logits
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-3 * max(1.0, np.abs(logits).max()))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows, and whether the goal is met in all that are judged."""
    return {
        "benchmark": "handoff",
        "peer": "the same sub-network as one engine of the same backend, run by hand",
        "rows": rows,
        "goal": "at most 1.10 times the plain sub-network at batch 1, 1.05 at batch 32 and more, "
        "on openvino and torchscript",
        "met": all_met([row["met"] for row in rows if row["judged"]]),
    }


PAGE = """# What cutting a network and deciding costs

`python benchmarks/handoff.py --out docs/results/handoff.md`, on {machine}, {threads} threads.

Once-for-all's MobileNetV3 (width 1.0), random weights, from uint8 images to 1,000 logits. Ours is
`session.infer`: pioneer with its exit head, the real `opa` decision, tail, checks and result. The
peer is {peer} into outputs allocated beforehand, without the exit head, compiled for the same
batches and threads. They take turns in the order A B B A; brackets hold the 95 % bootstrap interval
of the ratio of medians. Tails are the smallest, the middle and the largest of the space.

{rows}

Goal: {goal}: **{verdict}**.

Where the difference goes: *cut* is what pioneer and tail take together beyond the whole (the exit
head and the hand-over of the features; below 0, cutting was faster), *decision* is the policy,
*rest* is the runtime itself: checks, latency model, buffers, result. {left_out}
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = ("backend", "batch, px", "tail", "pairs", "ours ms", "whole ms", "ratio", "goal",
            "cut ms", "decision ms", "rest ms")  # fmt: skip
    left_out = [f"{name} is left out: {why}" for name, why in report["left_out"].items()]
    values = report | {
        "machine": describe(report["machine"]),
        "rows": table(head, [_cells(row) for row in report["rows"]]),
        "verdict": VERDICTS[report["met"]],
        "left_out": " ".join(left_out),
    }
    return PAGE.format(**values)


def _cells(row: dict[str, Any]) -> list[str]:
    goal = f"≤ {row['goal']:.2f}: {VERDICTS[row['met']]}" if row["judged"] else "–"
    return [
        row["backend"],
        f"{row['batch']}, {row['side']}",
        row["tail"],
        str(row["pairs"]),
        f"{row['our_ms']:.2f}",
        f"{row['their_ms']:.2f}",
        bracketed([row["ratio"], *row["ratio_interval"]]),
        goal,
        f"{row['cut_ms']:+.2f}",
        f"{row['decision_ms']:.2f}",
        f"{row['rest_ms']:.2f}",
    ]


if __name__ == "__main__":
    main()
