"""How many images a second a training step does, against the same step written plainly in torch.

    python benchmarks/train.py --out docs/results/train.md

The network is the CIFAR-10 super-network of the recipe ``cifar10`` at 32 px; the images are random
bytes, which cost what photographs do. *full* is a step of the full phase, *elastic* one of the last
phase with random sub-networks and a teacher. Ours is the library's ``train`` itself. The plain step
(benchmarks/plain_training.py) is also measured with each thing alone that ours has beyond it.

glibc reads what it keeps of freed memory when a process starts, so what is timed runs in processes
of their own, and those wait while another one trains. Images are loaded in the process that trains:
workers would read ahead while the other of a pair is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alternating import FEWEST, alternate, bracketed, finish, options, ratio, table, use_threads
from measuring import describe
from plain_training import (
    BFLOAT16,
    ELASTIC,
    FULL,
    KEPT,
    SEED,
    THINGS,
    left_out,
    random_images,
    setting,
    train_plainly,
)

from opa_trt.device import CPU, CUDA
from opa_trt.machine import capability, has_gpu
from opa_trt.progress import Progress
from opa_trt.training.shrinking import train
from opa_trt.training.state import TOLD_EVERY

STEPS = (FULL, ELASTIC)
PLAIN, OURS = "plain", "ours"
KEEPING = {  # as the recipe advises
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}
IMAGES = 45_000  # as CIFAR-10 has without what is held out
BLOCK = {CPU: 1, CUDA: TOLD_EVERY}  # steps that are timed together
WARM = 3  # blocks of a new training that are not counted
SETTLE = 0.02  # seconds in which the threads of another process stop spinning
Ask = Callable[[str], float]


def main() -> None:
    """Measure both steps in every way that this machine has, and print what they gave."""
    if sys.argv[1:] == ["--child"]:
        lines = (line.strip() for line in sys.stdin)
        serve(lines, lambda ms: print(ms, flush=True))
        return
    chosen = _options()
    use_threads(chosen.threads)
    missing = left_out(chosen.device)
    with ExitStack() as held:
        kinds = (PLAIN, OURS) if KEPT in missing else (PLAIN, OURS, KEPT)  # OURS: all others
        processes = {kind: held.enter_context(process(kind)) for kind in kinds}
        rows = [row for step in STEPS for row in compare(step, processes, missing, chosen)]
    finish(summary(rows, missing, chosen), page, chosen, ())


def _options() -> argparse.Namespace:
    parser = options(__doc__ or "")
    parser.add_argument("--batch", type=int, default=128, help="images of a step")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each row of the table")
    parser.add_argument("--device", choices=(CPU, CUDA), default=CPU)
    chosen = parser.parse_args()
    if chosen.device == CUDA and not has_gpu():
        parser.error("--device cuda: no GPU that torch can use.")
    if chosen.quick:
        chosen.batch, chosen.seconds = 4, 0.0
    return chosen


# --- in a process of its own ----------------------------------------------------------------------


class Ended(Exception):
    """No further block of this training is wanted; ``line`` is what was asked for instead."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


class Turns(Progress):
    """Answers with the ms of a step after every block of them, and waits for the next line.

    An empty line asks for one more block.
    """

    def __init__(self, lines: Iterator[str], answer: Callable[[float], None], device: str) -> None:
        self.lines, self.answer, self.device = lines, answer, device
        self.begun = 0.0

    def start(self, stage: str, total: int | None = None) -> None:
        self.begun = time.perf_counter()

    def advance(self, done: int, note: str = "") -> None:
        if done % BLOCK[self.device]:
            return
        if self.device == CUDA:
            torch.cuda.synchronize()
        self.answer(1e3 * (time.perf_counter() - self.begun) / BLOCK[self.device])
        if (line := next(self.lines, None)) != "":
            raise Ended(line or "")
        self.begun = time.perf_counter()


def serve(lines: Iterator[str], answer: Callable[[float], None]) -> None:
    """Run what every line asks for: a task's training from its start, or one block more of it."""
    line = next(lines, "")
    while line:
        task = json.loads(line)
        try:
            run(task, Turns(lines, answer, task["device"]))
        except Ended as ended:
            line = ended.line


def run(task: dict[str, Any], turns: Progress) -> None:
    """Train as ``task`` says until ``turns`` has enough."""
    use_threads(task["threads"])
    made = setting(task["step"], task["batch"], task["device"], tiny=task["quick"])
    count = max(task["batch"], 64 if task["quick"] else IMAGES)
    images = random_images(made.source.size, made.space.classes, count)
    if task["way"] != OURS:
        train_plainly(made, images, set(task["things"]), turns)
        return
    plan = replace(made.plan, precision=BFLOAT16 if BFLOAT16 in task["things"] else "float32")
    with tempfile.TemporaryDirectory() as folder:  # nothing is written there before the end
        train(
            made.space, made.source, images, images, plan, Path(folder),
            seed=SEED, device=made.device, progress=turns,
        )  # fmt: skip


# --- in the process that measures -----------------------------------------------------------------


@contextmanager
def process(kind: str) -> Iterator[Ask]:
    """``serve`` in a new process (``KEPT`` keeps memory): takes a line, gives the answer."""
    plain = {name: value for name, value in os.environ.items() if name not in KEEPING}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "--child"],
        env=plain | (KEEPING if kind == KEPT else {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        write, read = child.stdin, child.stdout

        def ask(line: str) -> float:
            time.sleep(SETTLE)
            write.write(line + "\n")
            write.flush()
            if not (answer := read.readline()):
                raise SystemExit(f"the process that trains ended at: {line or 'one more block'}")
            return float(answer)

        yield ask


def compare(
    step: str, processes: dict[str, Ask], missing: dict[str, str], chosen: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for ours, and one for the plain step with each thing alone."""
    present = [thing for thing in THINGS if thing not in missing]
    ways = {OURS: present} | {thing: [thing] for thing in present}
    rows = []
    for way, things in ways.items():
        process = processes[KEPT if KEPT in things else OURS]
        plain = begin(processes[PLAIN], task_of(step, PLAIN, [], chosen))
        other = begin(process, task_of(step, way, things, chosen))
        pairs = alternate(plain, other, chosen.seconds, 2 if chosen.quick else FEWEST)
        rows.append({"step": step, "way": way, "things": things} | figures(pairs, chosen.batch))
    return rows


def task_of(step: str, way: str, things: list[str], chosen: argparse.Namespace) -> dict[str, Any]:
    """What a process is told."""
    facts = {key: getattr(chosen, key) for key in ("batch", "threads", "device", "quick")}
    return {"step": step, "way": way, "things": things} | facts


def begin(ask: Ask, task: dict[str, Any]) -> Callable[[], float]:
    """A training that is warm; every call gives the ms of a step of its next block."""
    ask(json.dumps(task))
    for _ in range(WARM - 1):
        ask("")
    return lambda: ask("")


def figures(pairs: list[tuple[float, float]], batch: int) -> dict[str, Any]:
    """Images/s of both, and how many times the plain step's the other's are, with its interval."""
    plain, other = np.median(np.array(pairs), axis=0)
    return {
        "pairs": len(pairs),
        "images_s": 1e3 * batch / float(other),
        "plain_images_s": 1e3 * batch / float(plain),
        "ratio": list(ratio(pairs)),
    }


def summary(
    rows: list[dict[str, Any]], missing: dict[str, str], chosen: argparse.Namespace
) -> dict[str, Any]:
    """All rows; there is no goal but to know."""
    return {
        "benchmark": "train",
        "peer": "the same step written plainly in torch",
        "device": chosen.device,
        "gpu": capability(CUDA) if chosen.device == CUDA else None,
        "batch": chosen.batch,
        "subnets": setting(ELASTIC, chosen.batch, tiny=chosen.quick).phase.subnets,
        "seconds": chosen.seconds,
        "rows": rows,
        "ratio": {row["step"]: row["ratio"] for row in rows if row["way"] == OURS},
        "left_out": missing,
        "goal": None,
        "met": None,
    }


PAGE = """# Images a second in training

`python benchmarks/train.py --out docs/results/train.md`, on {machine}, {threads} threads{gpu}.

A training step of the recipe `cifar10`: its super-network, {batch} images of 32 px (random bytes in
place of photographs), SGD with Nesterov momentum. *full*: the largest sub-network. *elastic*: the
last width phase, {subnets} random sub-networks and a teacher. *plain*: torch's default memory
format and precision, images augmented one by one in a data set and collated, the loss read every
step. *ours*: the library's `train`, with all that has a row of its own; such a row is the plain
step with that alone. Plain and other take turns, A B B A, in processes of their own. Images/s are
from medians; brackets hold the 95 % bootstrap interval of their ratio.

{rows}

Ours over plain: {ratios}. {kept} {left_out}
"""
KEPT_MEANS = "*{}* is glibc's, by {} in the environment; without them, ours lacks it."


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = ("step", "with", "pairs", "images/s", "plain images/s", "times plain")
    missing = [f"*{thing}* is left out: {why}." for thing, why in report["left_out"].items()]
    ratios = [f"{step} {bracketed(value, 2)}" for step, value in report["ratio"].items()]
    settings = " and ".join(f"`{name}={value}`" for name, value in KEEPING.items())
    values = report | {
        "machine": describe(report["machine"]),
        "gpu": f", on {report['gpu']}" if report["gpu"] else "",
        "rows": table(head, [_cells(row) for row in report["rows"]]),
        "ratios": ", ".join(ratios),
        "kept": "" if KEPT in report["left_out"] else KEPT_MEANS.format(KEPT, settings),
        "left_out": " ".join(missing),
    }
    return PAGE.format(**values)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["step"],
        row["way"],
        str(row["pairs"]),
        f"{row['images_s']:.0f}",
        f"{row['plain_images_s']:.0f}",
        bracketed(row["ratio"], 2),
    ]


if __name__ == "__main__":
    main()
