"""Engines that are only bytes, in a store of the test's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opa_trt.backends.envelope import Envelope, Stamp
from opa_trt.backends.torchscript import TorchScriptBackend
from opa_trt.machine import capability
from opa_trt.store import EngineStore
from opa_trt.tree import Target

Seal = Callable[..., bytes]


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


@pytest.fixture
def seal() -> Seal:
    """Seals a payload as torchscript of this machine would; stamp and target may be changed."""

    def sealed(payload: bytes = b"engine", *, target: Any = (), **changes: Any) -> bytes:
        own = Target("torchscript", torch.__version__, max_batch=8)
        stamp = Stamp(
            "pioneer",
            "content",
            (),
            (),
            "torchscript",
            own,
            TorchScriptBackend.revision,
            capability("cpu"),
        )
        stamp = replace(stamp, target=replace(own, **dict(target)))
        return Envelope(replace(stamp, **changes), payload).seal()

    return sealed


@pytest.fixture
def used() -> Callable[[EngineStore, str, float], None]:
    """Says when an engine was last used, in seconds since the epoch."""

    def set_used(store: EngineStore, key: str, seconds: float) -> None:
        os.utime(store.root / "engines" / f"{key}.engine", (seconds, seconds))

    return set_used
