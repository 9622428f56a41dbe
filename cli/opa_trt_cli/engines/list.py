"""``opa-trt engines list``."""

from __future__ import annotations

from datetime import datetime

import click

from opa_trt_cli import options


@click.command()
@options.as_json
def command(as_json: bool) -> None:
    """List every engine that this machine keeps, the one used last first.

    \b
    opa-trt engines list
    """
    from opa_trt.store import EngineStore, format_size
    from opa_trt_cli.console import say, say_json, say_table
    from opa_trt_cli.engines.rows import canary, entry_facts, says_that_empty, store_facts, total
    from opa_trt_cli.engines.rows import target_cells as cells

    store = EngineStore()
    entries = store.entries()[::-1]
    if as_json:
        rows = [entry_facts(entry) for entry in entries]
        say_json(store_facts(store, entries) | {"engines": rows})
        return
    if says_that_empty(store, entries):
        return
    say_table(
        (
            *((head, "left") for head in ("key", "segment", "backend", "for")),
            ("size", "right"),
            *((head, "left") for head in ("last used", "latencies", "canary")),
        ),
        (
            (
                *cells(entry),
                format_size(entry.bytes),
                datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M"),
                "known" if entry.profiled else "",
                canary(entry),
            )
            for entry in entries
        ),
    )
    say(f"\n{total(store, entries)}")
