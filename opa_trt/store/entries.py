"""What is in a store, and whether this machine can use it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opa_trt.backends import Availability, Backend, backend
from opa_trt.backends.envelope import Stamp, unseal
from opa_trt.device import CPU
from opa_trt.errors import BackendError, EngineError, UnknownNameError
from opa_trt.store.layout import Layout, StoredFile
from opa_trt.tree import Target

STATES = USABLE, STALE, UNAVAILABLE, DAMAGED = "usable", "stale", "unavailable", "damaged"


@dataclass(frozen=True)
class Mark:
    """That an engine's outputs matched a canary on a machine.

    Args:
        canary: sha256 of the canary.
        difference: the largest from the canary, over its largest value (or 1).
        date: of the comparison, ISO 8601, UTC.
    """

    canary: str
    difference: float
    date: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Mark:
        """Read what ``dataclasses.asdict`` made; KeyError, TypeError or ValueError otherwise."""
        mark = cls(str(values["canary"]), float(values["difference"]), str(values["date"]))
        if not math.isfinite(mark.difference):
            message = f"a difference of {mark.difference}"
            raise ValueError(message)
        return mark


@dataclass(frozen=True)
class Entry:
    """One engine in a store.

    Args:
        key: its name there.
        path: its file.
        bytes: its size.
        used: when it was last read or written, in seconds since the epoch.
        stamp: what it was compiled from and for; None where it is damaged.
        damage: what is wrong with the file, else empty.
        profiled: whether its latencies on this machine are known.
        mark: that its canary matched on this machine, if it did.
    """

    key: str
    path: Path
    bytes: int
    used: float
    stamp: Stamp | None
    damage: str
    profiled: bool
    mark: Mark | None


@dataclass(frozen=True)
class Standing:
    """Whether this machine can use an engine.

    Args:
        state: ``usable``; ``stale`` if it never can again; ``unavailable`` if it could with
            another installation; ``damaged``.
        why: where it is not usable.
    """

    state: str
    why: str = ""


def read_entries(layout: Layout, machine: str) -> Iterator[Entry]:
    """Every engine of a store, the least recently used first; each is read and hashed.

    Raises:
        OSError: the folder is there and cannot be read.
    """
    for file in layout.engines():
        try:
            stamp, damage = _stamp(file)
        except FileNotFoundError:
            continue
        yield Entry(
            key=file.key,
            path=file.path,
            bytes=file.bytes,
            used=file.used_ns / 1e9,
            stamp=stamp,
            damage=damage,
            profiled=layout.profile(machine, file.key).is_file(),
            mark=read_mark(layout.mark(machine, file.key)),
        )


def read_mark(path: Path) -> Mark | None:
    """The mark in a file; None where there is none that can be read."""
    try:
        return Mark.from_dict(json.loads(path.read_bytes()))
    except (OSError, KeyError, TypeError, ValueError):
        return None


class Judge:
    """Compares engines with what is installed here; asks each vendor once."""

    def __init__(self) -> None:
        self._vendors: dict[tuple[str, str], tuple[Backend | None, Availability]] = {}

    def standing(self, entry: Entry) -> Standing:
        """Whether this machine can use the engine, and why not."""
        if entry.stamp is None:
            return Standing(DAMAGED, entry.damage)
        stamp, target = entry.stamp, entry.stamp.target
        vendor, state = self._vendor(target)
        if vendor is None or not state:
            return Standing(UNAVAILABLE, state.reason)
        if target.version != state.version:
            return Standing(
                STALE, f"for {target.backend} {target.version}; here is {state.version}"
            )
        if stamp.revision < vendor.revision:
            return Standing(STALE, "compiled by an earlier opa-trt")
        if stamp.revision > vendor.revision:
            return Standing(UNAVAILABLE, "compiled by a later opa-trt")
        if stamp.capability != vendor.capability():
            return _elsewhere(stamp.capability, vendor)
        try:
            if vendor.judges:
                vendor.check_plan(entry.path.read_bytes())
        except EngineError as exc:
            return Standing(STALE, exc.received)
        except OSError as exc:
            return Standing(DAMAGED, f"cannot be read: {exc.strerror}")
        return Standing(USABLE)

    def _vendor(self, target: Target) -> tuple[Backend | None, Availability]:
        name = target.backend, target.device
        if name not in self._vendors:
            self._vendors[name] = _ask(target)
        return self._vendors[name]


def _stamp(file: StoredFile) -> tuple[Stamp | None, str]:
    """The engine's stamp, or what is wrong with it."""
    try:
        return unseal(file.path.read_bytes()).stamp, ""
    except EngineError as exc:
        return None, exc.received
    except FileNotFoundError:
        raise
    except OSError as exc:
        return None, f"cannot be read: {exc.strerror}"


def _ask(target: Target) -> tuple[Backend | None, Availability]:
    try:
        made = backend(target.backend)
        if made.device != target.device:
            made = backend(f"{target.backend}:{target.device}")
    except (UnknownNameError, BackendError) as exc:
        return None, Availability(reason=exc.received)
    return made, made.availability()


def _elsewhere(capability: str, vendor: Backend) -> Standing:
    """Of an engine whose machine differs; a machine that says nothing of itself judges nothing."""
    if not vendor.capability():
        return Standing(UNAVAILABLE, f"nothing is known of this machine's {vendor.device}")
    if vendor.device == CPU:
        return Standing(STALE, "for another processor's instruction set")
    return Standing(STALE, f"for {capability}; here is {vendor.capability()}")
