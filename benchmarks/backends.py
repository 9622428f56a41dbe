"""`auto` against OpenVINO, ONNX Runtime, Inductor and TorchScript run by hand, on whole networks.

    python benchmarks/backends.py --out docs/results/backends.md

`auto` is what a build does: the contest of backends on this machine, and the engines that it plans.
`auto, spinning` is the same plan with ONNX Runtime's threads allowed to spin, as they do by hand.
The peers are plain calls of the vendors (benchmarks/by_hand.py), each compiled for the very batch
size. All take turns; peers that a first trial shows to be far behind are timed in that trial alone.
Inductor's kernels are kept in the folder: the first run is some minutes longer.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from alternating import (
    VERDICTS,
    all_met,
    at_most,
    block_ms,
    bracketed,
    finish,
    options,
    ratio,
    table,
    use_threads,
    versions,
    with_folder,
    working,
)
from by_hand import PEERS, Whole
from measuring import describe
from ofa_network import Design, as_segment, tiny, whole

from opa_trt.backends import Engine
from opa_trt.backends.base import FP32
from opa_trt.backends.by_batch import joined
from opa_trt.backends.onnxruntime import OnnxRuntimeBackend
from opa_trt.builder.compiling import vendors_for
from opa_trt.builder.contest import Contest, Rival
from opa_trt.clock import MonotonicClock
from opa_trt.evaluate.background import applications
from opa_trt.tree import IMAGES, LOGITS, ONNX, TORCHSCRIPT, Segment, TensorSpec

AUTO, SPINNING = "auto", "auto, spinning"
LOADED, LOAD = ("smallest", 96), 2  # the network that is timed beside so many applications, too
OURS = (AUTO, SPINNING)
GOAL = 1.03
BEHIND = 1.5  # times the fastest in the first trial: not timed further
FEWEST, MOST = 6, 200  # rounds
QUICK_RUN_MS = 50.0  # runs that are faster come in blocks, of which the median counts
BLOCK = 5
CELLS = {96: (1, 16, 100), 224: (1, 16)}
LARGE = {224: (1, 16, 100)}  # with --large


def main() -> None:
    """Measure every network and batch size, and print what they gave."""
    chosen = _options()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(chosen.folder / "inductor"))
    use_threads(chosen.threads)
    names, missing = working(chosen.peers)
    rows = [
        row
        for design, batches in _cells(chosen)
        for size in ("smallest", "largest")
        for row in compare(design, size, batches, names, chosen)
    ]
    finish(summary(rows) | {"left_out": missing}, page, chosen, versions(names))


def _options() -> argparse.Namespace:
    parser = with_folder(options(__doc__ or ""))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--seconds", type=float, default=6.0, help="for each row of the table")
    parser.add_argument("--large", action="store_true", help="100 images of 224 px, too: slow")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seconds = 0.0
        chosen.peers = [name for name in chosen.peers if name != "inductor"]  # compiles too long
    return chosen


def _cells(chosen: argparse.Namespace) -> list[tuple[Design, tuple[int, ...]]]:
    if chosen.quick:
        return [(tiny(), (1, 4))]
    cells = CELLS | (LARGE if chosen.large else {})
    return [(Design(side, batches[-1], batches), batches) for side, batches in cells.items()]


def compare(
    design: Design,
    size: str,
    batches: tuple[int, ...],
    names: Sequence[str],
    chosen: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A row for every batch size of the space's smallest or largest network."""
    arch = getattr(design.space, size)(design.side)
    module = whole(design, arch)
    logits = (TensorSpec(LOGITS, (design.space.classes,)),)
    segment = as_segment(size, module, design.images(2), logits)
    auto, spinning = auto_engines(segment, module, design, batches, chosen.threads)
    forms = Whole(module, segment.forms[ONNX], segment.forms[TORCHSCRIPT], chosen.threads)
    rows = []
    for batch in batches:
        images = design.images(batch)
        arms = {AUTO: _by_engine(auto, images)} | {
            name: _by_vendor(name, forms, images.numpy()) for name in names
        }
        if _ran(auto, batch) == OnnxRuntimeBackend.name:
            arms[SPINNING] = _by_engine(spinning, images)
        _check(arms, module, images)
        facts = {"network": size, "side": design.side, "batch": batch, "ran": _ran(auto, batch)}
        rows.append(facts | {"load": 0} | figures(*take_turns(arms, chosen.seconds)))
        if (size, design.side) == LOADED and not chosen.quick:
            with applications(LOAD, "cpu", seconds=300):
                rows.append(facts | {"load": LOAD} | figures(*take_turns(arms, chosen.seconds)))
    auto.close()
    spinning.close()
    return rows


def auto_engines(
    segment: Segment,
    module: torch.nn.Module,
    design: Design,
    batches: tuple[int, ...],
    threads: int,
) -> tuple[Engine, Engine]:
    """What a build makes of one segment for ``auto``: the contest's plan, compiled; and the same
    with ONNX Runtime's threads allowed to spin."""
    images = design.images(batches[-1])
    with torch.inference_mode():
        wanted = module(images[:2])

    def check(engine: Engine, rival: Rival) -> float:
        found = engine.run({IMAGES: images[:2]})[LOGITS]
        difference = float((found - wanted).abs().max() / max(1.0, float(wanted.abs().max())))
        if not difference <= (rival.vendor.tolerance or 0.0):
            raise SystemExit(f"{rival.label} differs from eager by {difference:.1e}")
        return difference

    rivals = [Rival(vendor, FP32, batches[-1], threads) for vendor in vendors_for((AUTO,))]
    cpu = [rival for rival in rivals if rival.vendor.device == "cpu"]
    contest = Contest(cpu, check, lambda _: {IMAGES: images}, batches, MonotonicClock())
    plan = contest.run({segment.name: segment}, [segment.name]).plan[segment.name]
    vendors = {rival.label: rival.vendor for rival in cpu}
    targets = [
        ({rival.label: rival for rival in cpu})[entry.backend].target(entry) for entry in plan
    ]
    made = []
    for more in ({}, {OnnxRuntimeBackend.name: OnnxRuntimeBackend(spin=True)}):
        chosen = [(vendors | more)[entry.backend] for entry in plan]
        made.append(
            joined(
                [
                    vendor.load(vendor.compile(segment, target), segment, target)
                    for vendor, target in zip(chosen, targets, strict=True)
                ]
            )
        )
    return made[0], made[1]


def _ran(engine: Engine, batch: int) -> str:
    """The backend that ``auto`` runs at this batch size."""
    parts = getattr(engine, "parts", (engine,))
    return str(next(part for part in parts if batch <= part.target.max_batch).target.backend)


def _by_engine(engine: Engine, images: torch.Tensor) -> Callable[[], Any]:
    given, out = {IMAGES: images}, engine.run({IMAGES: images})
    return lambda: engine.run(given, out)[LOGITS].numpy()


def _by_vendor(name: str, forms: Whole, images: Any) -> Callable[[], Any]:
    run = PEERS[name](forms, images)
    return lambda: run(images)


def _check(arms: dict[str, Callable[[], Any]], module: Any, images: torch.Tensor) -> None:
    """All must give the same logits."""
    with torch.inference_mode():
        wanted = module(images).numpy()
    for run in arms.values():
        np.testing.assert_allclose(
            run(), wanted, rtol=0, atol=1e-3 * max(1.0, np.abs(wanted).max())
        )


def take_turns(
    arms: dict[str, Callable[[], Any]], seconds: float
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """ms of a first trial of every arm; then of those not far behind, round by round.

    A block's first run is not counted: another vendor's threads may still be spinning.
    """
    trial = {name: block_ms(run, 1, warm=1) for name, run in arms.items()}
    fastest = min(trial.values())
    left = [n for n, ms in trial.items() if n in OURS or ms <= BEHIND * fastest]
    runs = BLOCK if fastest < QUICK_RUN_MS else 1
    found: dict[str, list[float]] = {name: [] for name in left}
    begun = time.perf_counter()
    for place in range(MOST):
        if place >= FEWEST and time.perf_counter() - begun > seconds:
            break
        for name in left[:: 1 if place % 2 == 0 else -1]:
            found[name].append(block_ms(arms[name], runs, warm=1))
    return trial, found


def figures(trial: dict[str, float], found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in ms, and the ratio of ``auto`` to the fastest peer."""
    ms = {name: float(np.median(times)) for name, times in found.items()}
    peers = [name for name in ms if name not in OURS]
    rest = {name: first for name, first in trial.items() if name not in ms}
    if not peers:  # the trial showed every peer to be far behind
        peer = min(rest, key=lambda name: rest[name])
        values = (ms[AUTO] / rest[peer],) * 3
    else:
        peer = min(peers, key=lambda name: ms[name])
        values = ratio(list(zip(found[AUTO], found[peer], strict=True)))
    return {
        "rounds": len(found[AUTO]),
        "ms": ms,
        "trial_ms": rest,
        "fastest": peer,
        "ratio": values[0],
        "ratio_interval": list(values[1:]),
        "met": at_most(values[1], values[2], GOAL),
        "spinning_ratio": ms[SPINNING] / (ms | rest)[peer] if SPINNING in ms else None,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows, and whether ``auto`` keeps up everywhere."""
    return {
        "benchmark": "backends",
        "peer": "the fastest of OpenVINO, ONNX Runtime, Inductor and TorchScript, run by hand",
        "rows": rows,
        "goal": f"at most {GOAL:g} times the fastest peer",
        "met": all_met([row["met"] for row in rows if not row["load"]]),
    }


PAGE = """# `auto` against every vendor run by hand

`python benchmarks/backends.py --out docs/results/backends.md`, on {machine}, {threads} threads.

Whole networks of once-for-all's MobileNetV3 space (width 1.0), random weights, from uint8 images to
1,000 logits. `auto` is the contest that a build runs, and one engine of what it plans for all batch
sizes. ONNX Runtime's threads do not spin there, which other work on the machine would pay for, and
get back at us (the second table); *spinning* is the ratio of the same plan where they may
(`OnnxRuntimeBackend(spin=True)`). Peers are plain calls of the vendors with the vendors' own
defaults, compiled anew for every batch size. Median ms; in parentheses where a first trial showed a
peer more than {behind:g} times behind, and it was not timed further. Brackets hold the 95 %
bootstrap interval of the ratio of medians over the rounds.

{rows}

Goal: {goal}: **{verdict}**. {left_out}

Beside {load} applications that compute all the time (three-layer networks in a loop), not judged:

{loaded}
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = report["rows"]
    names = [n for n in PEERS if any(n in {**row["ms"], **row["trial_ms"]} for row in rows)]
    head = ("network", "batch, px", "auto ms", "runs on", *names, "rounds", "ratio to the fastest",
            "spinning")  # fmt: skip
    left_out = [f"{name} is left out: {why}" for name, why in report["left_out"].items()]
    values = report | {
        "machine": describe(report["machine"]),
        "rows": table((*head, "goal"), [_line(row, names) for row in rows if not row["load"]]),
        "loaded": table((*head, "goal"), [_line(row, names) for row in rows if row["load"]]),
        "load": LOAD,
        "verdict": VERDICTS[report["met"]],
        "behind": BEHIND,
        "left_out": " ".join(left_out),
    }
    return PAGE.format(**values)


def _line(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    def peer(name: str) -> str:
        if name in row["ms"]:
            return f"{row['ms'][name]:.2f}"
        return f"({row['trial_ms'][name]:.2f})" if name in row["trial_ms"] else "–"

    return [
        row["network"],
        f"{row['batch']}, {row['side']}",
        f"{row['ms'][AUTO]:.2f}",
        row["ran"],
        *map(peer, names),
        str(row["rounds"]),
        f"{bracketed([row['ratio'], *row['ratio_interval']])} ({row['fastest']})",
        "–" if row["spinning_ratio"] is None else f"{row['spinning_ratio']:.3f}",
        "–" if row["load"] else VERDICTS[row["met"]],
    ]


if __name__ == "__main__":
    main()
