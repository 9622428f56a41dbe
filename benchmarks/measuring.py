"""What every benchmark shares: pairs in the order A B B A, intervals, and what it ran on."""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of one call, and what it returned."""
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


def in_pairs(
    first: Callable[[int], Result], second: Callable[[int], Result], pairs: int
) -> list[tuple[Result, Result]]:
    """``first(i)`` and ``second(i)`` for every pair i, in the order A B, B A, A B, …."""
    found = []
    for index in range(pairs):
        if index % 2 == 0:
            a, b = first(index), second(index)
        else:
            b, a = second(index), first(index)
        found.append((a, b))
    return found


def interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """The mean of ``values`` and its 95 % bootstrap interval: (mean, low, high)."""
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).choice(data, (10_000, len(data))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(data.mean()), float(low), float(high)


def met(low: float, high: float, goal: float) -> bool | None:
    """Whether a figure with this interval reaches ``goal``; None where it cannot be told."""
    if low >= goal:
        return True
    return False if high < goal else None


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, Python, and the versions of ``packages``."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


def describe(facts: dict[str, Any]) -> str:
    """``machine`` as a line of text."""
    rest = [f"{key} {value}" for key, value in facts.items() if key not in ("processor", "cores")]
    return f"{facts['cores']} cores of {facts['processor']}, {', '.join(rest)}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def wrapped(page: str) -> str:
    """``page`` (Markdown) with its paragraphs wrapped at 100 columns; tables stay as they are."""
    blocks = page.strip().split("\n\n")
    return "\n\n".join(block if block[0] in "|#" else _filled(block) for block in blocks) + "\n"


def _filled(block: str) -> str:
    """Never within a word: links would break."""
    return textwrap.fill(block, 100, break_on_hyphens=False, break_long_words=False)


def publish(report: dict[str, Any], page: str, *, out: Path | None, as_json: bool) -> None:
    """``page`` into ``out`` if that is given, and the report or the page onto stdout."""
    if out is not None:
        out.write_text(page, encoding="utf-8")
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if as_json else page)
