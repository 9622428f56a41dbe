"""``opa-trt bench``: how long a bundle's engines take, by backend, batch size and threads."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.evaluate.bench_rows import Found, Ratio, Row

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


def _number(context: click.Context, option: click.Parameter, value: float) -> float:
    """Refuses nan, which every range lets through."""
    if math.isnan(value):
        message = "nan is not a number of seconds."
        raise click.BadParameter(message, context, option)
    return value


def _place(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """Refuses a picture that could not be saved, before minutes of measuring."""
    if value is not None and not value.parent.is_dir():
        message = f"the folder {value.parent} does not exist."
        raise click.BadParameter(message, context, option)
    if value is not None and value.is_dir():
        message = f"{value} is a folder; name a file, as bench.png."
        raise click.BadParameter(message, context, option)
    return value


@click.command()
@click.argument("bundle", type=options.PATH)
@click.option(
    "--backend",
    "backends",
    metavar="NAME",
    multiple=True,
    default=(AUTO,),
    help="One of `opa-trt doctor`; again for another. By default auto: the bundle's plan.",
)
@click.option(
    "--batch",
    "batches",
    metavar="N",
    multiple=True,
    type=click.IntRange(min=1),
    help="Images a run; again for another size. By default those that the build measured.",
)
@click.option(
    "--threads",
    metavar="N",
    multiple=True,
    type=click.IntRange(min=1),
    help="For torch and the backend; again for another number. By default the bundle's.",
)
@click.option("--monolith", is_flag=True, help="Time every route's sub-network as one engine, too.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    callback=_number,
    default=1.0,
    show_default=True,
    help="Spent on each row, as far as 10 to 500 runs allow.",
)
@click.option(
    "--picture", type=options.PATH, metavar="FILE", callback=_place, help="Draw a PNG as well."
)
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
    """Time every node and every route of BUNDLE on this machine.

    \b
    opa-trt bench digits.opa --backend openvino --backend torchscript --batch 1 --batch 32

    A route is its engines one after the other on the same features, timed as one. With --monolith
    the sub-network that it was cut from is timed beside it. All take turns, so that a passing load
    hits all alike. p99 of fewer than 100 runs is little else than the slowest: give it more
    --seconds.
    """
    from opa_trt.bundle import Bundle
    from opa_trt.evaluate.bench import bench, check_batches
    from opa_trt.evaluate.bench_picture import draw_bench
    from opa_trt.evaluate.engine_set import open_settings
    from opa_trt.evaluate.picture import require_matplotlib
    from opa_trt_cli.console import StageLines, say, say_json

    if picture is not None:
        require_matplotlib()
    opened = Bundle(bundle)
    sizes = check_batches(batches or opened.manifest.buckets, opened.manifest.max_batch)
    settings = open_settings(opened, backends, threads or (None,))
    with StageLines(quiet=True) as lines:
        found = bench(settings, sizes, monoliths=monolith, seconds=seconds, progress=lines)
    machine = _machine()
    if as_json:
        say_json(_facts(bundle, machine, found, picture))
    else:
        _print(found, machine)
    if picture is not None:
        cores = f"{machine['cores']} cores of {machine['gpu'] or machine['processor']}"
        draw_bench(picture, found.rows, f"{bundle.name} on {cores}")
        if not as_json:
            say(f"picture: {picture}")


def _machine() -> dict[str, Any]:
    import torch

    import opa_trt
    from opa_trt.machine import gpu, processor

    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "gpu": gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opa_trt": opa_trt.__version__,
    }


def _facts(
    bundle: Path, machine: dict[str, Any], found: Found, picture: Path | None
) -> dict[str, Any]:
    return {
        "bundle": str(bundle),
        "machine": machine,
        "sets": list(found.sets),
        "rows": [row.to_dict() for row in found.rows],
        "ratios": [ratio.to_dict() for ratio in found.ratios()],
        "picture": None if picture is None else str(picture),
    }


def _print(found: Found, machine: dict[str, Any]) -> None:
    from opa_trt_cli.console import say, say_table

    several = len({row.chosen for row in found.rows}) > 1
    say_table(COLUMNS, (_cells(row, several) for row in found.rows))
    if ratios := found.ratios():
        say("\nroute over the same sub-network as one engine, median [95 % interval]")
        _print_ratios(ratios)
    say()
    for made in found.sets:
        say(_told(made))
    fewest = min(len(row.ms) for row in found.rows)
    if fewest < ENOUGH:
        say(f"p99 of {fewest} runs is little else than the slowest: more --seconds")
    say(f"{machine['cores']} cores of {machine['processor']}, {machine['system']}")
    if machine["gpu"]:
        say(machine["gpu"])


def _cells(row: Row, several: bool) -> tuple[str, ...]:
    from opa_trt.evaluate.bench_rows import MONOLITH

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
    from opa_trt_cli.console import say_table

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


def _told(made: Any) -> str:
    """A line on a set of engines: versions, threads, memory, what found no room."""
    versions = " and ".join(f"{label} {version}" for label, version in made["versions"].items())
    threads = f"{made['threads']} thread{'' if made['threads'] == 1 else 's'}"
    line = f"{versions}, {threads}: {_size(made['memory'])}"
    if made["monolith_memory"] is not None:
        line += f"; as one engine each {_size(made['monolith_memory'])}"
    for segment, why in made["left_out"].items():
        line += f"; {segment} is left out: {why}"
    return line


def _size(memory: dict[str, int | None]) -> str:
    """What loading took, as far as it is known."""
    told = []
    if memory["engine_bytes"] is not None:
        told.append(f"engines of {memory['engine_bytes'] / 1e6:.1f} MB")
    told.append(f"from {(memory['form_bytes'] or 0) / 1e6:.1f} MB of portable segments")
    if memory["process_bytes"] is not None:
        told.append(f"loading them took {memory['process_bytes'] / 1e6:.1f} MB of memory")
    if memory["device_bytes"] is not None:
        told.append(f"and {memory['device_bytes'] / 1e6:.1f} MB of the GPU's")
    return ", ".join(told)
