"""What is removed from a store: what nobody can use any more, and what was not used for longest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from opa_trt.errors import ConfigError
from opa_trt.store.entries import DAMAGED, STALE, UNAVAILABLE, Judge, read_entries
from opa_trt.store.layout import Layout, StoredFile

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Removal:
    """A file that was removed, or would be.

    Args:
        path: where it is, or was.
        bytes: its size.
        why: it goes.
        error: why it could not be removed, else empty.
    """

    path: Path
    bytes: int
    why: str
    error: str = ""


def evict(layout: Layout, limit: int, keep: str) -> list[StoredFile]:
    """Remove engines, the least recently used first, until all take at most ``limit`` bytes.

    Args:
        layout: of the store.
        limit: in bytes.
        keep: key of the engine that stays in any case.

    Raises:
        OSError: the folder cannot be read.
    """
    files = layout.engines()
    room, gone = limit - sum(file.bytes for file in files), []
    for file in files:
        if room >= 0:
            break
        if file.key != keep and not _remove_engine(layout, file):
            gone.append(file)
            room += file.bytes
    return gone


@dataclass(frozen=True)
class Pruning:
    """What is to be removed from a store.

    Damaged engines, stale ones (of another version of their vendor, an earlier opa-trt, another
    processor or GPU) and files that were being written more than an hour ago go in any case.

    Args:
        limit: bytes that engines may take afterwards.
        unavailable: also engines of backends that do not work here.
        older_than_days: also engines, and latencies and marks without an engine, that were not
            used for so many days.
        now: seconds since the epoch; the present by default.

    Raises:
        ConfigError: a limit or an age below 0.
    """

    limit: int
    unavailable: bool = False
    older_than_days: float | None = None
    now: float | None = None

    def __post_init__(self) -> None:
        if self.limit < 0:
            message = f"a limit of {self.limit} bytes."
            raise ConfigError(message, expected="at least 0.")
        if self.older_than_days is not None and not self.older_than_days >= 0:
            message = f"engines older than {self.older_than_days} days."
            raise ConfigError(message, expected="at least 0.")

    def plan(self, layout: Layout, machine: str) -> Iterator[tuple[StoredFile, str]]:
        """What goes, and why. Latencies outlive their engine: it may be compiled again.

        Raises:
            OSError: the folder is there and cannot be read.
        """
        engines = {file.key: file for file in layout.engines()}
        staying = dict(engines)
        for key, why in self._unusable(layout, machine):
            if key in staying:
                yield staying.pop(key), why
        for file in list(staying.values()):
            if self._age(file) > self._oldest:
                yield staying.pop(file.key), f"not used for {self._age(file) / DAY:.0f} days"
        room = self.limit - sum(file.bytes for file in staying.values())
        for file in list(staying.values()):
            if room >= 0:
                break
            room += file.bytes
            yield staying.pop(file.key), "least recently used"
        for file in layout.beside():
            if file.key not in engines and self._age(file) > self._oldest:
                yield file, f"no engine, {self._age(file) / DAY:.0f} days old"
        for file in layout.half_written():
            if self._age(file) > HOUR:
                yield file, "left half-written"

    def run(self, layout: Layout, machine: str, *, dry: bool) -> list[Removal]:
        """Remove it, unless ``dry``; what another process has used meanwhile stays.

        Raises:
            OSError: as ``plan`` says.
        """
        removals = []
        for file, why in list(self.plan(layout, machine)):
            removal = Removal(file.path, file.bytes, why)
            if dry:
                removals.append(removal)
            elif file.unchanged():
                removals.append(replace(removal, error=_remove(layout, file)))
        return removals

    def _unusable(self, layout: Layout, machine: str) -> Iterator[tuple[str, str]]:
        judge = Judge()
        going = {DAMAGED, STALE, *([UNAVAILABLE] if self.unavailable else [])}
        for entry in read_entries(layout, machine):
            standing = judge.standing(entry)
            if standing.state in going:
                yield entry.key, standing.why

    def _age(self, file: StoredFile) -> float:
        return (time.time() if self.now is None else self.now) - file.used_ns / 1e9

    @property
    def _oldest(self) -> float:
        return float("inf") if self.older_than_days is None else self.older_than_days * DAY


def _remove(layout: Layout, file: StoredFile) -> str:
    """Remove a file of the store; why that failed, else empty."""
    if file.path == layout.engine(file.key):
        return _remove_engine(layout, file)
    try:
        file.path.unlink(missing_ok=True)
    except OSError as exc:
        return _reason(exc)
    return ""


def _remove_engine(layout: Layout, file: StoredFile) -> str:
    try:
        layout.remove_engine(file.key)
    except OSError as exc:
        return _reason(exc)
    return ""


def _reason(exc: OSError) -> str:
    return exc.strerror or type(exc).__name__
