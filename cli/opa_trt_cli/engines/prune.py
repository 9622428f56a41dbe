"""``opa-trt engines prune``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.store import EngineStore, Removal


@click.command()
@click.option(
    "--all", "unavailable", is_flag=True, help="Also those of backends that do not work here."
)
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Also those, and latencies without an engine, that were not used for so long.",
)
@click.option(
    "--limit",
    metavar="SIZE",
    help='Then, least recently used first, until the rest fits: "2 GiB".',
)
@click.option("--dry-run", "dry", is_flag=True, help="Only say what would be removed.")
@options.as_json
def command(
    unavailable: bool, days: float | None, limit: str | None, dry: bool, as_json: bool
) -> None:
    """Remove engines that are damaged, or that this machine cannot use any more.

    \b
    opa-trt engines prune --older-than 30 --dry-run

    Those are engines of another version of their backend than is installed, of an earlier opa-trt,
    or for another processor or GPU. --limit 0 removes every engine.
    """
    from opa_trt.store import EngineStore, Pruning, parse_size
    from opa_trt_cli.console import say_json

    store = EngineStore()
    size = store.limit_bytes if limit is None else parse_size(limit, "--limit")
    removals = store.prune(Pruning(size, unavailable, days), dry=dry)
    if as_json:
        rows = [asdict(removal) | {"path": str(removal.path)} for removal in removals]
        say_json({"store": str(store.root), "dry_run": dry, "removed": rows})
    else:
        _print(store, removals, dry)
    _refuse_failures(removals)


def _print(store: EngineStore, removals: list[Removal], dry: bool) -> None:
    from opa_trt.store import format_size
    from opa_trt_cli.console import say, say_table
    from opa_trt_cli.engines.rows import shortened

    if not removals:
        say(f"Nothing to remove in {store.root}.")
        return
    say_table(
        (("file", "left"), ("size", "right"), ("why", "left")),
        ((shortened(each.path.name), format_size(each.bytes), each.why) for each in removals),
    )
    gone = [each for each in removals if not each.error]
    files = f"{len(gone)} file{'' if len(gone) == 1 else 's'}"
    size = format_size(sum(each.bytes for each in gone))
    say(f"\n{files}, {size}, {'would be removed' if dry else 'removed'} from {store.root}")


def _refuse_failures(removals: list[Removal]) -> None:
    for each in removals:
        if each.error:
            raise OSError(None, f"cannot be removed: {each.error}", str(each.path))
