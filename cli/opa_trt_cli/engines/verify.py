"""``opa-trt engines verify``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.store import EngineStore, Entry, Standing


@click.command()
@options.as_json
def command(as_json: bool) -> None:
    """Check the hash and the stamp of every engine, and say which this machine can use.

    \b
    opa-trt engines verify

    Exit status 2 if any is damaged. No engine is run: `opa-trt show BUNDLE --verify` runs those of
    a bundle against its canary.
    """
    from opa_trt.store import STATES, EngineStore, Judge
    from opa_trt_cli.console import say_json
    from opa_trt_cli.engines.rows import entry_facts, says_that_empty, store_facts

    store, judge = EngineStore(), Judge()
    found = [(entry, judge.standing(entry)) for entry in store.entries()[::-1]]
    entries = [entry for entry, _ in found]
    counted = Counter(standing.state for _, standing in found)
    counts = {state: counted[state] for state in STATES}
    if as_json:
        rows = [entry_facts(entry) | asdict(standing) for entry, standing in found]
        say_json(store_facts(store, entries) | {"counts": counts, "engines": rows})
    elif not says_that_empty(store, entries):
        _print(store, found, counts)
    _refuse_damaged(store, counts["damaged"], len(entries))


def _print(store: EngineStore, found: list[tuple[Entry, Standing]], counts: dict[str, int]) -> None:
    from opa_trt_cli.console import say, say_table
    from opa_trt_cli.engines.rows import canary, target_cells, total

    say_table(
        [(h, "left") for h in ("key", "segment", "backend", "for", "here", "canary", "why not")],
        (
            (*target_cells(entry), standing.state, canary(entry), standing.why)
            for entry, standing in found
        ),
    )
    say(f"\n{total(store, [entry for entry, _ in found])}")
    say(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    say("To run a bundle's engines against its canary: opa-trt show BUNDLE --verify")


def _refuse_damaged(store: EngineStore, damaged: int, count: int) -> None:
    from opa_trt.errors import EngineError

    if damaged:
        message = f"damaged: {damaged} of {count} engines in {store.root}."
        raise EngineError(
            message,
            remedy="opa-trt engines prune; what is needed is compiled again as it is loaded.",
        )
