"""``opa-trt engines``: what this machine has compiled and keeps."""

from __future__ import annotations

import click

from opa_trt_cli.lazy import LazyGroup


@click.group(
    cls=LazyGroup,
    package="opa_trt_cli.engines",
    names=("list", "verify", "prune"),
)
def command() -> None:
    """List, check and remove the engines that this machine keeps, to compile each but once.

    \b
    opa-trt engines list
    opa-trt engines verify
    opa-trt engines prune --older-than 30 --dry-run

    They are in $OPA_TRT_CACHE, or the user's cache folder, and take at most $OPA_TRT_CACHE_LIMIT
    ("500 MB", "2 GiB", 0 for none), or 8 GiB; beyond that, those not used for longest go.
    """
