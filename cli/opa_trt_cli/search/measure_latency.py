"""``opa-trt search measure-latency``: a latency table of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.backends import Backend
    from opa_trt.search.latency_table import LatencyTable
    from opa_trt.supernet import Space

WHAT = {
    "alone": "the operators' engines, summed",
    "sum": "the operators, without what engines add",
    "corrected": "{line}, as the table predicts",
}


def _resolutions(ctx: click.Context, parameter: click.Parameter, text: str | None) -> list[int]:
    """``160,224``."""
    try:
        return [int(part) for part in text.split(",")] if text is not None else []
    except ValueError as exc:
        message = f"{text!r} is not a list of whole numbers such as 160,224."
        raise click.BadParameter(message) from exc


@click.command()
@options.space
@click.option(
    "--resolutions",
    callback=_resolutions,
    metavar="160,224,…",
    help="Of the network's input; the space's, or 160 to 224 in steps of 16 where they are many.",
)
@click.option(
    "--backend", "name", default="auto", show_default=True, help="auto is the fastest that works."
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images a run."
)
@options.threads
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=0.05,
    show_default=True,
    help="For timing each operator.",
)
@click.option(
    "--networks",
    type=click.IntRange(min=2),
    default=12,
    show_default=True,
    help="Random whole networks that the table is checked with.",
)
@click.option(
    "--out", type=options.PATH, metavar="FILE.json", help="The table; SPACE-BACKEND.json."
)
@options.seed
@options.as_json
def command(
    space: str | None,
    width: float | None,
    resolutions: list[int],
    name: str,
    batch: int,
    threads: int | None,
    seconds: float,
    networks: int,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Time every operator of a space on this machine, and say how well they predict networks.

    \b
    opa-trt search measure-latency --space digits --batch 32 --out latency.json

    What was measured is kept in FILE.json.work: stopped, the same command goes on.
    """
    import json
    import os

    import torch

    from opa_trt import atomic
    from opa_trt.clock import MonotonicClock
    from opa_trt.search.latency_table import table_to_dict
    from opa_trt.search.measure import Plan, choose_resolutions, measure_table
    from opa_trt.search.timings import open_timings
    from opa_trt_cli.console import StageLines, resumable, say_json

    clock = MonotonicClock()
    chosen = options.chosen_space(space, width)
    covered = choose_resolutions(chosen, resolutions)
    place = _checked_place(out or Path(f"{chosen.name}-{name}.json"))
    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    work = place.with_name(place.name + ".work")
    with resumable("The same command goes on after the last finished group of operators."):
        backend = _backend(name, work, chosen, batch, count)
        target = backend.target(max_batch=batch, threads=count)
        plan = Plan(chosen, covered, target, networks, seconds, seed)
        timings = open_timings(work, plan.identity())
        with StageLines(quiet=as_json) as lines:
            table = measure_table(plan, backend, timings, clock, lines, place.name)
        atomic.write_text(place, json.dumps(table_to_dict(table), indent=1))
        timings.discard()
    if as_json:
        say_json({"table": str(place), **_summary(table)})
    else:
        _show(place, table, f"--space {space}" + (f" --width {width:g}" if width else ""))


def _checked_place(place: Path) -> Path:
    """Where the table goes; refused at once where it could not be written or read back."""
    from opa_trt.builder.outputs import check_output
    from opa_trt.errors import ConfigError

    if place.suffix != ".json":
        message = f"--out is {place}."
        raise ConfigError(message, expected="a name that ends in .json.")
    check_output(place)
    return place


def _backend(name: str, work: Path, space: Space, batch: int, threads: int) -> Backend:
    """The one that is named, or that a stopped measurement began with, or the fastest."""
    from opa_trt.builder.compiling import vendors_for
    from opa_trt.clock import MonotonicClock
    from opa_trt.search.bench import fastest
    from opa_trt.search.timings import backend_of

    begun = backend_of(work) if name == "auto" else None
    return fastest(vendors_for((begun or name,)), space, batch, threads, MonotonicClock())


def _summary(table: LatencyTable) -> dict[str, Any]:
    known = ("backend", "backend_version", "batch", "threads", "load_spread", "held_out", "errors")
    return {
        "operators": len(table.by_resolution[table.resolutions[0]]),
        "resolutions": list(table.resolutions),
        "scale": table.scale,
        "offset": table.offset,
        **{key: table.facts[key] for key in known},
    }


def _show(place: Path, table: LatencyTable, space: str) -> None:
    from opa_trt_cli.console import say, say_table

    facts, summary = table.facts, _summary(table)
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    say(
        f"{place}: {summary['operators']} operators, {facts['backend']} "
        f"{facts['backend_version']}, batch {facts['batch']}, {threads}"
    )
    line = f"{table.scale:.3g} x sum {'-' if table.offset < 0 else '+'} {abs(table.offset):.3g} ms"
    columns = [(f"of {facts['held_out']} other networks", "left"), ("mean error", "right")]
    columns += [("worst", "right"), ("bias", "right"), ("rank correlation", "right")]
    rows = [
        (
            WHAT[what].format(line=line),
            f"{error['mean']:.1%}",
            f"{error['worst']:.1%}",
            f"{error['bias']:+.1%}",
            "-" if error["rank_correlation"] is None else f"{error['rank_correlation']:.2f}",
        )
        for what, error in facts["errors"].items()
    ]
    say()
    say_table(columns, rows)
    smallest, largest = (table.facts["networks"][place]["corrected"] for place in (0, 1))
    targets = ",".join(
        f"{smallest + (largest - smallest) * part:.2g}" for part in (0.25, 0.5, 0.75)
    )
    say()
    say(f"next: opa-trt search run {space} --accuracy FILE --latency {place} --targets {targets}")
