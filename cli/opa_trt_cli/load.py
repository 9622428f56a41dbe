"""``opa-trt load``: background applications, for experiments under load."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.evaluate.background import Ended

HOW = {
    "limit": "ended at its limit",
    "stopped": "was ended",
    "killed": "hung and was killed",
    "failed": "failed",
}


@click.command()
@click.option(
    "--apps",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Applications at once.",
)
@click.option(
    "--kind",
    type=click.Choice(("cpu", "cuda")),
    default="cpu",
    show_default=True,
    help="What they load.",
)
@click.option(
    "--seconds",
    type=options.Seconds(),
    default=60.0,
    show_default=True,
    help="After which each ends by itself.",
)
@options.as_json
def command(apps: int, kind: str, seconds: float, as_json: bool) -> None:
    """Load this machine with background applications.

    \b
    opa-trt load --apps 2 --kind cpu --seconds 60

    Each is a process that computes a three-layer network again and again, on one core or on the
    GPU. It ends after --seconds, with Ctrl-C, or when this command has gone, even if that is
    killed.
    """
    from opa_trt.evaluate.background import applications
    from opa_trt_cli.console import INTERRUPTED, say, say_json

    interrupted = False
    with applications(apps, kind, seconds=seconds) as running:
        if not as_json:
            pids = ", ".join(map(str, running.pids))
            many = "application" if apps == 1 else "applications"
            say(f"started {apps} {kind} {many} for {seconds:g} s: process {pids}")
        try:
            ended = running.wait()
        except KeyboardInterrupt:
            ended, interrupted = running.stop(), True
    if as_json:
        rows = [asdict(found) for found in ended]
        say_json({"kind": kind, "seconds": seconds, "applications": rows})
    else:
        for found in ended:
            say(_line(found))
    if interrupted:
        raise click.exceptions.Exit(INTERRUPTED)


def _line(found: Ended) -> str:
    line = f"process {found.pid} {HOW[found.how]}"
    if found.runs is not None and found.seconds is not None:
        line += f" after {found.seconds:.1f} s and {found.runs:,} runs"
    return line
