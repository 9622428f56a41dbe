"""What ``opa-trt bench`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opa_trt.evaluate.bench_rows import MONOLITH, Found, Ratio, Row
from opa_trt_cli.console import say, say_table

AUTO = "auto"
ENOUGH = 100  # runs for a p99 that is not just the slowest
AS_ONE = " as one engine"
COLUMNS = (
    ("what", "left"),
    ("backend", "left"),
    ("threads", "right"),
    ("batch", "right"),
    ("p50 ms", "right"),
    ("p95 ms", "right"),
    ("p99 ms", "right"),
    ("images/s", "right"),
    ("runs", "right"),
)


def say_bench(found: Found, machine: Mapping[str, Any]) -> None:
    """Every row, ratios where there are monoliths, what was loaded, and where it ran."""
    several = len({row.chosen for row in found.rows}) > 1
    say_table(COLUMNS, (_cells(row, several) for row in found.rows))
    if ratios := found.ratios():
        say("\nroute over the same sub-network as one engine, median [95 % interval]")
        _print_ratios(ratios)
    say()
    _print_sets(found)
    say()
    fewest = min(len(row.ms) for row in found.rows)
    if fewest < ENOUGH:
        say(f"p99 of {fewest} runs is little else than the slowest: more --seconds")
    say(f"{machine['cores']} cores of {machine['processor']}, {machine['system']}")
    if machine["gpu"]:
        say(machine["gpu"])


def _cells(row: Row, several: bool) -> tuple[str, ...]:
    return (
        row.name + (AS_ONE if row.kind == MONOLITH else ""),
        _backend(row, several),
        str(row.threads),
        str(row.batch),
        *(f"{row.at(quantile):.3f}" for quantile in (0.5, 0.95, 0.99)),
        f"{row.images_per_s:,.0f}",
        str(len(row.ms)),
    )


def _backend(row: Row, several: bool) -> str:
    """Who ran it; where several backends were asked for, that ``auto`` chose it."""
    return f"{AUTO}: {row.backend}" if several and row.chosen == AUTO else row.backend


def _print_ratios(ratios: Sequence[Ratio]) -> None:
    """A line a tail, backend and number of threads; a column a batch size."""
    batches = sorted({ratio.route.batch for ratio in ratios})
    lines: dict[tuple[str, str, int], dict[int, str]] = {}
    for ratio in ratios:
        row = ratio.route
        line = lines.setdefault((row.name, row.chosen, row.threads), {})
        line[row.batch] = f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    say_table(
        (
            ("route", "left"),
            ("backend", "left"),
            ("threads", "right"),
            *((f"batch {batch}", "right") for batch in batches),
        ),
        (
            (name, backend, str(threads), *(line.get(batch, "") for batch in batches))
            for (name, backend, threads), line in lines.items()
        ),
    )


def _print_sets(found: Found) -> None:
    """What was loaded, how large it is, and what the process and the GPU's memory grew by."""
    rows = [
        (made, what, made[key])
        for made in found.sets
        for what, key in (("segments", "memory"), ("monoliths", "monolith_memory"))
        if made[key] is not None
    ]
    away = any(memory["device_bytes"] is not None for _, _, memory in rows)
    say_table(
        (
            ("loaded", "left"),
            ("threads", "right"),
            ("engines of", "left"),
            ("engine files", "right"),
            ("portable forms", "right"),
            ("process grew by", "right"),
            *((("GPU memory grew by", "right"),) if away else ()),
        ),
        (
            (
                " and ".join(" ".join(pair) for pair in made["versions"].items()),
                str(made["threads"]),
                what,
                _size(memory["engine_bytes"]),
                _size(memory["form_bytes"]),
                _size(memory["process_bytes"]),
                *((_size(memory["device_bytes"]),) if away else ()),
            )
            for made, what, memory in rows
        ),
    )
    for made in found.sets:
        for segment, why in made["left_out"].items():
            say(f"{made['chosen']}: {segment} is left out: {why}")


def _size(count: int | None) -> str:
    """MB; nothing where it is not known."""
    return "" if count is None else f"{count / 1e6:.2f} MB"
