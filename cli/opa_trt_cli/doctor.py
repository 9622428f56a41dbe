"""``opa-trt doctor``: what works on this machine, and whether a bundle's adapting pays on it."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.evaluate.doctor import Diagnosis

EXTRAS = (
    ("scikit-learn", "sklearn", "build, train digits", "pip install 'opa-trt[build]'"),
    ("matplotlib", "matplotlib", "pictures", "pip install 'opa-trt[plots]'"),
)


def _sizes(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    try:
        return tuple(int(each) for each in value.split(",")) if value else ()
    except ValueError:
        message = f"{value!r} is no list of whole numbers, as 1,32,100."
        raise click.BadParameter(message, context, option) from None


@click.command()
@click.argument("bundle", type=options.PATH, required=False)
@click.option(
    "--batch",
    "batches",
    metavar="N,…",
    callback=_sizes,
    help="Images a group, of BUNDLE. By default what its latencies are measured at.",
)
@click.option("--backend", metavar="NAME", help="For BUNDLE; by default its plan.")
@options.threads
@click.option(
    "--seconds",
    type=options.Seconds(),
    help="Spent on each route and batch that is timed.  [default: 0.5]",
)
@options.as_json
def command(
    bundle: Path | None,
    batches: tuple[int, ...],
    backend: str | None,
    threads: int | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Say which backends work here, and the line that installs each that does not; or, with
    BUNDLE, whether adapting is worth it here.

    \b
    opa-trt doctor digits.opa --batch 1,32,100

    With BUNDLE: how far its routes lie apart, what cutting and deciding cost, the memory, and
    what accuracy may be expected by deadline and group size. `opa-trt compare` measures that.
    """
    if bundle is not None:
        _examine(bundle, batches, backend, threads, seconds, as_json)
        return
    given = {"--batch": batches, "--backend": backend, "--threads": threads, "--seconds": seconds}
    if named := [name for name, value in given.items() if value]:
        message = f"{' and '.join(named)} without BUNDLE."
        raise click.UsageError(message)
    _machine(as_json)


def _machine(as_json: bool) -> None:
    """What works here."""
    import torch

    import opa_trt
    from opa_trt.backends import backend, every_backend
    from opa_trt.store import cache_folder, processor
    from opa_trt_cli.console import say, say_json, say_table

    states = {found.label: found.availability() for found in [*every_backend(), backend("null")]}
    machine = {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opa_trt": opa_trt.__version__,
        "cache": str(cache_folder()),
    }
    extras = {name: find_spec(module) is not None for name, module, _, _ in EXTRAS}
    if as_json:
        backends = {
            name: {
                "works": bool(state),
                "compiles": bool(state) or state.compiles,
                "version": state.version,
                "reason": state.reason,
                "install": state.install,
            }
            for name, state in states.items()
        }
        say_json({"machine": machine, "backends": backends, "extras": extras})
        return
    say(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}")
    say(f"opa-trt {machine['opa_trt']}, Python {machine['python']}, torch {machine['torch']}")
    say(f"engines and latencies of this machine: {machine['cache']}\n")
    say_table(
        (("backend", "left"), ("works", "left"), ("version, or why not", "left"), ("", "left")),
        (
            (name, _works(state), state.reason or state.version, state.install)
            for name, state in states.items()
        ),
    )
    say()
    say_table(
        (("package", "left"), ("there", "left"), ("needed for", "left"), ("", "left")),
        (
            (name, "yes" if extras[name] else "no", what, "" if extras[name] else install)
            for name, _, what, install in EXTRAS
        ),
    )


def _works(state: Any) -> str:
    return "yes" if state else "compiles" if state.compiles else "no"


def _examine(
    path: Path,
    batches: tuple[int, ...],
    backend: str | None,
    threads: int | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Whether adapting is worth it with this bundle."""
    from opa_trt.bundle import Bundle
    from opa_trt.evaluate.bench import check_batches
    from opa_trt.evaluate.doctor import SECONDS, diagnose
    from opa_trt.evaluate.engine_set import open_settings
    from opa_trt.runtime.session import read_knowledge
    from opa_trt_cli.console import StageLines, say_json
    from opa_trt_cli.doctor_tables import say_diagnosis

    opened = Bundle(path)
    largest = opened.manifest.max_batch
    measured = [min(bucket, largest) for bucket in opened.manifest.buckets]
    sizes = check_batches(batches or measured, largest)
    (setting,) = open_settings(opened, [backend or "auto"], [threads])
    with StageLines(quiet=True) as lines:
        found = diagnose(
            setting, read_knowledge(opened), sizes, seconds=seconds or SECONDS, progress=lines
        )
    if as_json:
        say_json(_facts(path, found))
    else:
        say_diagnosis(found)


def _facts(path: Path, found: Diagnosis) -> dict[str, Any]:
    return {"bundle": str(path), **found.to_dict()}
