"""``opa-trt bench``: how long a bundle's nodes and routes take, by backend, batch and threads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.evaluate.bench import Row

COLUMNS = (
    ("what", "left"),
    ("name", "left"),
    ("backend", "left"),
    ("threads", "right"),
    ("batch", "right"),
    ("p50 ms", "right"),
    ("p95 ms", "right"),
    ("p99 ms", "right"),
    ("images/s", "right"),
    ("over one engine", "right"),
)


@click.command()
@click.argument("bundle", type=options.PATH)
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="auto by default; repeat."
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="Images; by default the bundle's buckets; repeat.",
)
@click.option(
    "--threads",
    "threads",
    type=click.IntRange(min=1),
    multiple=True,
    help="By default the bundle's; repeat.",
)
@click.option("--monolith", is_flag=True, help="Also the same networks as one engine each.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=0.3,
    show_default=True,
    help="Spent on each row, as far as 10 to 2,000 runs allow.",
)
@click.option("--picture", type=options.PATH, metavar="FILE", help="Save a PNG as well.")
@options.as_json
def command(
    bundle: Path,
    backends: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    monolith: bool,
    seconds: float,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Time every node and every route of BUNDLE, all taking turns.

    \b
    opa-trt bench digits.opa --monolith --picture bench.png

    A route is its engines one after the other, without a decision. With --monolith each is compared
    with the same network as one engine. p99 of fewer than 100 runs is close to the slowest of them.
    """
    from opa_trt.bundle import Bundle
    from opa_trt.clock import MonotonicClock
    from opa_trt.errors import ConfigError
    from opa_trt.evaluate.bench import run_bench
    from opa_trt.evaluate.picture import require_matplotlib
    from opa_trt.runtime import open_loader
    from opa_trt_cli.console import StageLines, say_json

    if picture is not None:
        require_matplotlib()
        if not picture.parent.is_dir():
            message = f"{picture.parent} is no folder."
            raise ConfigError(message, expected="a place for the picture.")
    opened = Bundle(bundle)
    loaders = [
        open_loader(opened, backend=name, threads=count)
        for name in dict.fromkeys(backends or ("auto",))
        for count in dict.fromkeys(threads or (None,))
    ]
    found = []
    with StageLines(quiet=True) as lines:
        for loader in loaders:
            found.append(
                run_bench(
                    loader,
                    batches or opened.manifest.buckets,
                    seconds=seconds,
                    monoliths=monolith,
                    clock=MonotonicClock(),
                    progress=lines,
                )
            )
    rows = [row for bench in found for row in bench.rows]
    if picture is not None:
        from opa_trt.evaluate.bench_picture import draw_bench

        draw_bench(picture, rows, opened.manifest.name)
    memory = [(bench.rows[0], bench.memory_bytes) for bench in found]
    if as_json:
        say_json(_facts(bundle, rows, memory, picture))
    else:
        _print(rows, memory, picture)


def _facts(
    bundle: Path, rows: list[Row], memory: list[tuple[Row, int]], picture: Path | None
) -> dict[str, Any]:
    import os

    import torch

    import opa_trt
    from opa_trt.evaluate.bench import ratios
    from opa_trt.machine import gpu, processor

    compared = ratios(rows)
    return {
        "bundle": str(bundle),
        "machine": {
            "processor": processor(),
            "gpu": gpu(),
            "cores": os.cpu_count() or 1,
            "torch": torch.__version__,
            "opa_trt": opa_trt.__version__,
        },
        "rows": [
            row.to_dict() | {"over_monolith": compared.get(_key(row))}
            if row.kind == "route"
            else row.to_dict()
            for row in rows
        ],
        "memory": [
            {"backend": row.backend, "threads": row.threads, "bytes": size} for row, size in memory
        ],
        "picture": None if picture is None else str(picture),
    }


def _key(row: Row) -> tuple[str, str, int, int]:
    return row.name, row.backend, row.threads, row.batch


def _print(rows: list[Row], memory: list[tuple[Row, int]], picture: Path | None) -> None:
    from opa_trt.evaluate.bench import ratios
    from opa_trt_cli.console import say, say_table

    compared = ratios(rows)
    say_table(COLUMNS, (_cells(row, compared) for row in rows))
    say()
    for first, size in memory:
        what = f"{first.backend}, {first.threads} thread{'' if first.threads == 1 else 's'}"
        say(f"{what}: the process grew by {size / 1e6:.0f} MB as the engines were loaded")
    if picture is not None:
        say(f"picture: {picture}")


def _cells(row: Row, compared: dict[tuple[str, str, int, int], float]) -> tuple[str, ...]:
    ratio = compared.get(_key(row)) if row.kind == "route" else None
    return (
        row.kind,
        row.name,
        row.backend,
        str(row.threads),
        str(row.batch),
        f"{row.p50_ms:.2f}",
        f"{row.p95_ms:.2f}",
        f"{row.p99_ms:.2f}",
        f"{row.images_per_s:,.0f}",
        "" if ratio is None else f"{ratio:.2f}",
    )
