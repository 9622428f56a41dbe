"""Engines and latency profiles of this machine, content-addressed, in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
from torch import Tensor

from opa_trt import atomic
from opa_trt.backends import Backend, Engine
from opa_trt.clock import Clock
from opa_trt.store.latency import LatencyProfile, measure
from opa_trt.machine import fingerprint
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
    return backend.stamp(segment, target).key(segment)


class EngineStore:
    """A folder of engines and latency profiles; nothing is written before the first ``put``."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_folder() if root is None else root

    def engine(self, key: str) -> bytes | None:
        """The engine under ``key``, or None: a miss, or a file whose hash does not match."""
        path = self._engine_path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() != digest:
            log.warning("stored engine %s is damaged; it is compiled again", path)
            return None
        return body

    def put_engine(self, key: str, data: bytes) -> None:
        """Keep an engine, atomically; two processes may do so at once."""
        atomic.write_bytes(self._engine_path(key), hashlib.sha256(data).digest() + data)

    def drop_engine(self, key: str) -> None:
        """Forget an engine."""
        self._engine_path(key).unlink(missing_ok=True)

    def profile(self, key: str) -> dict[str, Any] | None:
        """The latency profile of the engine under ``key`` on this machine, or None."""
        try:
            found = json.loads(self._profile_path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put_profile(self, key: str, values: Mapping[str, Any]) -> None:
        """Keep a latency profile, atomically."""
        atomic.write_text(self._profile_path(key), json.dumps(dict(values), indent=1))

    def measure(
        self,
        engines: Mapping[str, tuple[Engine, Mapping[str, Tensor]]],
        backend: Backend,
        batches: Sequence[int],
        clock: Clock,
        seconds: float,
    ) -> dict[str, LatencyProfile]:
        """``latency.measure`` engines of ``backend``, and keep what is found for the next time."""
        found = measure(engines, batches, clock, seconds)
        if backend.stored:
            for name, profile in found.items():
                engine, _ = engines[name]
                self.put_profile(engine.key, profile.to_dict())
        return found

    def _engine_path(self, key: str) -> Path:
        return self.root / "engines" / f"{key}.engine"

    def _profile_path(self, key: str) -> Path:
        return self.root / "profiles" / fingerprint() / f"{key}.json"
