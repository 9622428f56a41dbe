"""``opa-trt doctor``: what works on this machine."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from typing import Any

import click

from opa_trt_cli import options

EXTRAS = (
    ("scikit-learn", "sklearn", "build, train digits", "pip install 'opa-trt[build]'"),
    ("matplotlib", "matplotlib", "pictures", "pip install 'opa-trt[plots]'"),
)


@click.command()
@options.as_json
def command(as_json: bool) -> None:
    """Say which backends work here, and the line that installs each that does not.

    \b
    opa-trt doctor
    """
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
