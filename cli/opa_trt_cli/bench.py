"""``opa-trt bench``: how long a bundle's engines take, by backend, batch size and threads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.evaluate.bench_rows import Found

AUTO = "auto"


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
    type=options.Seconds(),
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
    from opa_trt.evaluate.surroundings import machine_facts
    from opa_trt_cli.bench_tables import say_bench
    from opa_trt_cli.console import StageLines, say, say_json

    if picture is not None:
        require_matplotlib()
    opened = Bundle(bundle)
    largest = opened.manifest.max_batch
    measured = [min(bucket, largest) for bucket in opened.manifest.buckets]
    sizes = check_batches(batches or measured, largest)
    settings = open_settings(opened, backends, threads or (None,))
    with StageLines(quiet=True) as lines:
        found = bench(settings, sizes, monoliths=monolith, seconds=seconds, progress=lines)
    machine = machine_facts()
    if as_json:
        say_json(_facts(bundle, machine, found, picture))
    else:
        say_bench(found, machine)
    if picture is not None:
        draw_bench(picture, found.rows, f"{bundle.name} on {_where(found, machine)}")
        if not as_json:
            say(f"picture: {picture}")


def _where(found: Found, machine: dict[str, Any]) -> str:
    """The devices that engines ran on."""
    names = {
        "cpu": f"{machine['cores']} cores of {machine['processor']}",
        "cuda": machine["gpu"],
    }
    return " and ".join(dict.fromkeys(names[made["device"]] for made in found.sets))


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
