"""Engines and latency profiles of this machine, content-addressed, in the user's cache."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
from torch import Tensor

from opa_trt import atomic
from opa_trt.backends import Backend, Engine
from opa_trt.backends.envelope import unseal
from opa_trt.clock import Clock
from opa_trt.errors import ConfigError, EngineError
from opa_trt.machine import fingerprint
from opa_trt.store.entries import Entry, Mark, read_entries, read_mark
from opa_trt.store.eviction import Pruning, Removal, evict
from opa_trt.store.latency import LatencyProfile, measure
from opa_trt.store.layout import Layout, touch
from opa_trt.store.sizes import cache_limit, format_size
from opa_trt.tree import Segment, Target

log = logging.getLogger(__name__)

CACHE_VARIABLE = "OPA_TRT_CACHE"


def cache_folder() -> Path:
    """``$OPA_TRT_CACHE``, or the user's cache folder for opa_trt."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else platformdirs.user_cache_path("opa_trt")


def engine_key(segment: Segment, target: Target, backend: Backend) -> str:
    """The name under which an engine is kept: a hash of all that its outputs depend on.

    Canonical graph and weights (never container bytes), tensors, portable form, target (backend,
    version, device, precision, batch range, threads), our compile code's revision, and the
    machine's capability (instruction set, or GPU and driver).

    Raises:
        CompileError: the segment has no form that the backend reads.
    """
    return backend.stamp(segment, target).key()


class EngineStore:
    """A folder of engines and latency profiles; nothing is written before the first ``put``.

    It only saves time: where it cannot be read or written, that is told once, and everything is
    compiled and measured each time. Several processes may use one folder at once.

    Args:
        root: the folder; the user's cache by default.
        limit_bytes: of all engines together, beyond which those that were not used for longest
            are removed; 0 keeps none. By default ``$OPA_TRT_CACHE_LIMIT``, or 8 GiB.

    Raises:
        ConfigError: a limit that is no size.
    """

    def __init__(self, root: Path | None = None, limit_bytes: int | None = None) -> None:
        self.root = cache_folder() if root is None else root
        self.limit_bytes = cache_limit() if limit_bytes is None else limit_bytes
        if self.limit_bytes < 0:
            message = f"limit_bytes = {limit_bytes}."
            raise ConfigError(message, expected="at least 0.")
        self._layout = Layout(self.root)
        self._told: set[str] = set()

    def engine(self, key: str) -> bytes | None:
        """The sealed engine under ``key``, or None: a miss, or damaged, which is told.

        ``Backend.load`` compares its stamp with what is wanted.
        """
        path = self._layout.engine(key)
        data = self._read(path)
        if data is None:
            return None
        try:
            unseal(data)
        except EngineError as exc:
            log.warning("stored engine %s cannot be used: %s", path, exc)
            return None
        touch(path)
        return data

    def put_engine(self, key: str, data: bytes) -> None:
        """Keep a sealed engine, and remove others until all are within the limit."""
        if len(data) > self.limit_bytes:
            size, limit = format_size(len(data)), format_size(self.limit_bytes)
            self._tell_once("limit", f"engines as large as {size} are not kept: the limit of "
                            f"{self.root} is {limit}")  # fmt: skip
            return
        with self._tolerant():
            atomic.write_bytes(self._layout.engine(key), data)
            for file in evict(self._layout, self.limit_bytes, keep=key):
                log.info("%s removed to make room, %s", file.path, format_size(file.bytes))

    def drop_engine(self, key: str) -> None:
        """Forget an engine, and that its canary ever matched."""
        with self._tolerant():
            self._layout.remove_engine(key)

    def verified(self, key: str, canary: str) -> float | None:
        """The engine's difference from this canary (a sha256) when it matched on this machine."""
        mark = read_mark(self._layout.mark(fingerprint(), key))
        return mark.difference if mark is not None and mark.canary == canary else None

    def mark_verified(self, key: str, canary: str, difference: float) -> None:
        """Note that the engine's canary matched here; a difference that is no number never does."""
        if math.isfinite(difference):
            mark = Mark(canary, difference, datetime.now(UTC).isoformat(timespec="seconds"))
            self._write(self._layout.mark(fingerprint(), key), asdict(mark))

    def profile(self, key: str) -> dict[str, Any] | None:
        """The latency profile of the engine under ``key`` on this machine, or None."""
        path = self._layout.profile(fingerprint(), key)
        try:
            found = json.loads(self._read(path) or b"")
        except ValueError:
            return None
        touch(path)
        return found if isinstance(found, dict) else None

    def put_profile(self, key: str, values: Mapping[str, Any]) -> None:
        """Keep a latency profile."""
        self._write(self._layout.profile(fingerprint(), key), values)

    def measure(
        self,
        engines: Mapping[str, tuple[Engine, Mapping[str, Tensor]]],
        batches: Sequence[int],
        clock: Clock,
        seconds: float,
    ) -> dict[str, LatencyProfile]:
        """``latency.measure`` engines; what has a key is kept for the next time."""
        found = measure(engines, batches, clock, seconds)
        for name, profile in found.items():
            engine, _ = engines[name]
            if engine.key:
                self.put_profile(engine.key, {**profile.to_dict(), "engine": engine.key})
        return found

    def entries(self) -> list[Entry]:
        """Every engine, the least recently used first; each is read and hashed.

        Raises:
            OSError: the folder is there and cannot be read.
        """
        return list(read_entries(self._layout, fingerprint()))

    def prune(self, pruning: Pruning | None = None, *, dry: bool = False) -> list[Removal]:
        """Remove what ``pruning`` says (by default to the store's limit), or only say what.

        Raises:
            OSError: the folder is there and cannot be read.
        """
        chosen = pruning or Pruning(self.limit_bytes)
        return chosen.run(self._layout, fingerprint(), dry=dry)

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            self._refused(exc)
            return None

    def _write(self, path: Path, values: Mapping[str, Any]) -> None:
        with self._tolerant():
            atomic.write_text(path, json.dumps(dict(values), indent=1))

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Whatever the folder refuses is told once, and nothing more happens."""
        try:
            yield
        except OSError as exc:
            self._refused(exc)

    def _refused(self, exc: OSError) -> None:
        self._tell_once("folder", f"nothing is kept in {self.root}, which cannot be used: {exc}")

    def _tell_once(self, subject: str, message: str) -> None:
        if subject not in self._told:
            self._told.add(subject)
            log.warning("%s", message)
