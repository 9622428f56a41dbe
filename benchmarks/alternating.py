"""What the benchmarks of latency share: A B B A for a while, ratios of medians, options, tables."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, met, publish, wrapped

from opa_trt.backends import backend
from opa_trt.store import cache_folder

DRAWS = 2000
FEWEST, MOST = 6, 400  # pairs
TRIAL = "A trial on a tiny network: these figures say nothing.\n\n"
VERDICTS = {True: "met", False: "not met", None: "not resolved"}

Pairs = list[tuple[float, float]]


def options(doc: str, *, threads: int | None = None) -> argparse.ArgumentParser:
    """The options that all of them have, under the first line of ``doc``."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--threads", type=int, default=threads or os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="seconds, on a tiny network: a trial")
    parser.add_argument("--out", type=Path, help="write the page here, too")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    return parser


def with_folder(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the folder in which networks and engines are kept for the next run."""
    parser.add_argument(
        "--folder", type=Path, default=cache_folder() / "benchmarks", help="keeps networks, engines"
    )
    return parser


def with_backends(parser: argparse.ArgumentParser, names: Sequence[str]) -> argparse.ArgumentParser:
    """Adds the backends to compare on; those that do not work here are left out, and named."""
    parser.add_argument("--backends", nargs="+", default=list(names))
    return parser


def working(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The backends that work here, and of the others why not."""
    found = {name: backend(name).availability() for name in names}
    missing = {name: there.reason for name, there in found.items() if not there}
    return [name for name, there in found.items() if there], missing


def versions(names: Sequence[str]) -> tuple[str, ...]:
    """The packages of these backends whose versions belong on a page."""
    return tuple(name for name in names if name in ("openvino", "onnxruntime"))


def scratch(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder of this run's own, below ``parent``."""
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="run-", dir=parent)


def block_ms(run: Callable[[], Any], runs: int, *, warm: int = 0) -> float:
    """The median of ``runs`` runs in a row, in ms, after ``warm`` that are not counted."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(times))


def alternate(
    first: Callable[[], float], second: Callable[[], float], seconds: float, fewest: int = FEWEST
) -> Pairs:
    """Pairs of ms in the order A B, B A, A B, … for so many seconds, at least ``fewest`` pairs.

    Both run once before, uncounted.
    """
    first(), second()
    found: Pairs = []
    begun = time.perf_counter()
    while len(found) < fewest or (len(found) < MOST and time.perf_counter() - begun < seconds):
        if len(found) % 2 == 0:
            a, b = first(), second()
        else:
            b, a = second(), first()
        found.append((a, b))
    return found


def ratio(pairs: Pairs, *, seed: int = 0) -> tuple[float, float, float]:
    """Median of the first over median of the second, and its 95 % bootstrap interval over pairs.

    Medians, because a run that something else on the machine delayed says nothing of either.
    """
    return _bootstrap(pairs, lambda a, b: np.median(a, axis=-1) / np.median(b, axis=-1), seed)


def extra(pairs: Pairs, *, seed: int = 0) -> tuple[float, float, float]:
    """The median of first minus second, and its 95 % bootstrap interval over pairs."""
    return _bootstrap(pairs, lambda a, b: np.median(a - b, axis=-1), seed)


def _bootstrap(
    pairs: Pairs, figure: Callable[[Any, Any], Any], seed: int
) -> tuple[float, float, float]:
    first, second = np.array(pairs, dtype=np.float64).T
    rows = np.random.default_rng(seed).integers(0, len(pairs), (DRAWS, len(pairs)))
    low, high = np.percentile(figure(first[rows], second[rows]), [2.5, 97.5])
    return float(figure(first, second)), float(low), float(high)


def at_most(low: float, high: float, goal: float) -> bool | None:
    """Whether a figure with this interval stays at or below ``goal``; None: it cannot be told."""
    return met(-high, -low, -goal)


def all_met(verdicts: Sequence[bool | None]) -> bool | None:
    """Whether every goal is met: False if one is missed, None if one cannot be told."""
    if False in verdicts:
        return False
    return None if None in verdicts or not verdicts else True


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bracketed(values: Sequence[float], digits: int = 3) -> str:
    """A figure and its interval."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} [{low}, {high}]"


def use_threads(count: int) -> None:
    """For torch, and with it for every engine of ours."""
    torch.set_num_threads(count)


def name_of(out: Path | None, otherwise: str) -> str:
    """Of the page ``out``, and of the folder of its pictures."""
    return otherwise if out is None else out.stem


def pictures_of(out: Path) -> Path:
    """The folder beside the page ``out`` that is called as the page; made where it is missing."""
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remarks(out: Path | None) -> str:
    """What people found when they read the page ``out``: it stands beside its pictures."""
    path = None if out is None else out.with_suffix("") / "reading.md"
    if path is None or not path.is_file():
        return ""
    return path.read_text(encoding="utf-8").strip() + "\n\n"


def finish(
    report: dict[str, Any],
    page: Callable[[dict[str, Any]], str],
    chosen: argparse.Namespace,
    packages: Sequence[str],
) -> None:
    """Add what it ran on, and publish; a trial's verdict is none."""
    report |= {"threads": chosen.threads, "quick": chosen.quick}
    report["machine"] = machine("numpy", "torch", *packages, "opa-trt")
    if chosen.quick:
        report["met"] = None
    text = wrapped((TRIAL if chosen.quick else "") + page(report))
    publish(report, text, out=chosen.out, as_json=chosen.json)
