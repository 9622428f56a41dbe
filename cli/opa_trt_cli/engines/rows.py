"""How the engines of a store are shown, in tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from opa_trt.device import CPU
from opa_trt.store import EngineStore, Entry, format_size
from opa_trt_cli.console import say

DIGITS = 12  # of a key, in tables


def store_facts(store: EngineStore, entries: Sequence[Entry]) -> dict[str, Any]:
    """Where the store is, and how full."""
    return {
        "store": str(store.root),
        "limit_bytes": store.limit_bytes,
        "bytes": sum(entry.bytes for entry in entries),
    }


def entry_facts(entry: Entry) -> dict[str, Any]:
    """An engine, as plain values."""
    mark = entry.mark
    return {
        "key": entry.key,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "last_used": datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds"),
        "stamp": None if entry.stamp is None else asdict(entry.stamp),
        "damage": entry.damage,
        "latencies_known": entry.profiled,
        "verified": None if mark is None else {"difference": mark.difference, "date": mark.date},
    }


def says_that_empty(store: EngineStore, entries: Sequence[Entry]) -> bool:
    """Whether there are no engines, which it then says."""
    if not entries:
        say(f"No engines in {store.root}. Building and loading bundles leaves some there.")
    return not entries


def total(store: EngineStore, entries: Sequence[Entry]) -> str:
    """How many there are, and how much room they take."""
    size, limit = sum(entry.bytes for entry in entries), store.limit_bytes
    engines = f"{len(entries)} engine{'' if len(entries) == 1 else 's'}"
    return f"{engines}, {format_size(size)} of {format_size(limit)}, in {store.root}"


def target_cells(entry: Entry) -> tuple[str, str, str, str]:
    """Key, segment, backend with version, and what it was compiled for."""
    if entry.stamp is None:
        return entry.key[:DIGITS], "", "", ""
    target = entry.stamp.target
    threads = f", {target.threads} thread{'' if target.threads == 1 else 's'}"
    return (
        entry.key[:DIGITS],
        entry.stamp.segment,
        f"{target.backend} {target.version}",
        f"{target.device} {target.precision}, batch {target.min_batch} to {target.max_batch}"
        f"{threads if target.device == CPU else ''}",
    )


def canary(entry: Entry) -> str:
    """Whether its outputs matched here."""
    if entry.stamp is None:
        return ""
    return "not run yet" if entry.mark is None else f"matched, {entry.mark.difference:.0e}"


def shortened(name: str) -> str:
    """A file's name with the first digits of its key."""
    stem, dot, suffix = name.partition(".")
    return f"{stem[:DIGITS]}{dot}{suffix}" if stem else name
