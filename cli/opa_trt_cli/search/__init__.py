"""``opa-trt search``: predictors of accuracy and latency, and searches that use them."""

from __future__ import annotations

import click

from opa_trt_cli.lazy import LazyGroup


@click.group(
    cls=LazyGroup,
    package="opa_trt_cli.search",
    names=("run", "fit-accuracy", "measure-latency"),
)
def command() -> None:
    """Find the best archs for many latency targets, and measure what that needs.

    \b
    opa-trt search fit-accuracy digits --out accuracy.safetensors
    opa-trt search measure-latency --space digits --out latency.json
    opa-trt search run --accuracy accuracy.safetensors --latency latency.json --targets 2,4
    """
