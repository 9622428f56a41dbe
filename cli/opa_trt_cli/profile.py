"""``opa-trt profile``: how long a bundle's engines take on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.backends import Engine
    from opa_trt.runtime import EngineLoader
    from opa_trt.store import LatencyProfile

QUANTILES = (0.5, 0.99)


@click.command()
@click.argument("bundle", type=options.PATH)
@click.option("--backend", default="auto", show_default=True, help="One of `opa-trt doctor`.")
@options.threads
@click.option(
    "--seconds",
    type=options.Seconds(),
    default=0.5,
    show_default=True,
    help="Spent on each engine and batch size, as far as 7 to 300 runs allow.",
)
@options.as_json
def command(bundle: Path, backend: str, threads: int | None, seconds: float, as_json: bool) -> None:
    """Measure the latency of every node of BUNDLE on this machine again, and keep it.

    \b
    opa-trt profile digits.opa --seconds 1

    `opa-trt run` and opa_trt.load go by what is kept. Measure again when the machine has changed
    in a way that it does not tell: a frequency limit, a noisy neighbour that is gone.
    """
    from opa_trt.runtime import open_loader
    from opa_trt_cli.console import say_json

    loader = open_loader(bundle, backend=backend, threads=threads)
    engines = loader.engines()
    try:
        before = {name: loader.known_profile(engine) for name, engine in engines.items()}
        now = loader.profiles(engines, again=True, seconds=seconds)
    finally:
        for engine in engines.values():
            engine.close()
    by_node = {name: before[loader.bundle.tree[name].segment] for name in now}
    if as_json:
        say_json(_facts(loader, engines, by_node, now))
    else:
        _print(loader, engines, by_node, now)


def _facts(
    loader: EngineLoader,
    engines: dict[str, Engine],
    before: dict[str, LatencyProfile | None],
    now: dict[str, LatencyProfile],
) -> dict[str, Any]:
    return {
        "bundle": str(loader.bundle.path),
        "store": str(loader.store.root),
        "kept": _kept(loader, engines, now),
        "threads": loader.threads,
        "left_out": loader.left_out,
        "nodes": {
            name: {
                "backend": _backend(loader, engines, name),
                "now": profile.to_dict(),
                "before": None if (old := before[name]) is None else old.to_dict(),
            }
            for name, profile in now.items()
        },
    }


def _print(
    loader: EngineLoader,
    engines: dict[str, Engine],
    before: dict[str, LatencyProfile | None],
    now: dict[str, LatencyProfile],
) -> None:
    from opa_trt_cli.console import say, say_table

    say_table(
        (
            ("node", "left"),
            ("backend", "left"),
            ("batch", "right"),
            ("p50 ms", "right"),
            ("p99 ms", "right"),
            ("runs", "right"),
        ),
        (
            (
                name,
                _backend(loader, engines, name),
                str(batch),
                *(_cell(before[name], profile, batch, quantile) for quantile in QUANTILES),
                str(runs),
            )
            for name, profile in now.items()
            for batch, runs in zip(profile.batches, profile.runs, strict=True)
        ),
    )
    known = any(profile is not None for profile in before.values())
    threads = f"{loader.threads} thread{'' if loader.threads == 1 else 's'}"
    kept = f"kept in {loader.store.root}" if _kept(loader, engines, now) else "not kept"
    say(f"\n{threads}; {kept}{'; before → now' if known else ''}")
    for segment, why in loader.left_out.items():
        say(f"{segment} is left out: {why}")


def _kept(loader: EngineLoader, engines: dict[str, Engine], now: dict[str, LatencyProfile]) -> bool:
    """Whether the next load will find these: the store may be read-only, or full."""
    segments = {name: loader.bundle.tree[name].segment for name in now}
    return all(loader.known_profile(engines[segments[name]]) == now[name] for name in now)


def _backend(loader: EngineLoader, engines: dict[str, Engine], node: str) -> str:
    return engines[loader.bundle.tree[node].segment].target.backend


def _cell(before: LatencyProfile | None, now: LatencyProfile, batch: int, quantile: float) -> str:
    """ms now, after those of before."""
    text = f"{now.at(batch, quantile):.2f}"
    return text if before is None else f"{before.at(batch, quantile):.2f} → {text}"
