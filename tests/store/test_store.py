"""Engines and latencies of this machine: kept, found again, or missed with a word why."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opa_trt import machine as machine_module
from opa_trt.backends import Backend, backend
from opa_trt.backends.envelope import unseal
from opa_trt.backends.null import NullBackend
from opa_trt.clock import VirtualClock
from opa_trt.errors import EngineError, EngineMismatch
from opa_trt.store import EngineStore, cache_folder, engine_key, fingerprint, processor
from opa_trt.store import store as store_module
from opa_trt.tree import FEATURES, Segment, Target

# --- where --------------------------------------------------------------------------------------


def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPA_TRT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert EngineStore().root == tmp_path / "mine"


def test_without_it_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPA_TRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "opa_trt"
    assert not list(tmp_path.iterdir())


def test_making_and_asking_a_store_writes_nothing(store: EngineStore) -> None:
    assert store.engine("k") is None
    assert store.profile("k") is None
    assert store.verified("k", "canary") is None
    assert store.entries() == []
    assert store.prune() == []
    store.drop_engine("k")
    assert not store.root.exists()


# --- engines ------------------------------------------------------------------------------------


def test_an_engine_comes_back(store: EngineStore, seal: Any) -> None:
    store.put_engine("k", seal(b"engine"))
    assert store.engine("k") == seal(b"engine")
    assert EngineStore(store.root).engine("k") == seal(b"engine")


def test_an_empty_engine_comes_back(store: EngineStore, seal: Any) -> None:
    store.put_engine("k", seal(b""))
    assert store.engine("k") == seal(b"")


def test_another_key_is_a_miss(store: EngineStore, seal: Any, caplog: Any) -> None:
    store.put_engine("k", seal())
    assert store.engine("l") is None
    assert caplog.text == ""


def test_a_dropped_engine_is_a_miss(store: EngineStore, seal: Any) -> None:
    store.put_engine("k", seal())
    store.drop_engine("k")
    assert store.engine("k") is None


def test_putting_again_replaces(store: EngineStore, seal: Any) -> None:
    store.put_engine("k", seal(b"old"))
    store.put_engine("k", seal(b"new"))
    assert store.engine("k") == seal(b"new")


def test_an_engine_that_is_asked_for_is_used_now(store: EngineStore, seal: Any, used: Any) -> None:
    store.put_engine("k", seal())
    used(store, "k", 1000)
    (path,) = (store.root / "engines").iterdir()
    store.engine("k")
    assert path.stat().st_mtime > 1000


def test_an_engine_that_cannot_be_touched_still_comes_back(
    store: EngineStore, seal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError

    store.put_engine("k", seal())
    monkeypatch.setattr(os, "utime", read_only)
    assert store.engine("k") == seal()


def test_a_profile_that_is_asked_for_is_used_now(store: EngineStore) -> None:
    store.put_profile("k", {"batches": [1]})
    (path,) = (store.root / "profiles").rglob("*.json")
    os.utime(path, (1000, 1000))
    store.profile("k")
    assert path.stat().st_mtime > 1000


# --- damaged, stale, another's ------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "cut in the header": lambda data: data[:40],
    "emptied": lambda data: b"",
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "flipped in the magic": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "flipped in the length": lambda data: data[:17] + bytes([data[17] ^ 1]) + data[18:],
    "longer": lambda data: data + b"\0",
    "of an earlier format": lambda data: b"\0" * 32 + data,
}


class Kept(NullBackend):
    """A null backend whose engines are worth keeping."""

    stored = True


VENDORS: dict[str, Callable[[], Backend]] = {
    "torchscript": lambda: backend("torchscript"),
    "null": Kept,
}


@dataclasses.dataclass
class Filled:
    """A store that holds one engine, and what is needed to load it."""

    store: EngineStore
    vendor: Backend
    segment: Segment
    target: Target

    @property
    def key(self) -> str:
        """Of the segment's engine."""
        return engine_key(self.segment, self.target, self.vendor)

    @property
    def path(self) -> Path:
        """Of the engine's file."""
        return self.store.root / "engines" / f"{self.key}.engine"

    def load(self) -> Any:
        """What a loader does."""
        data = self.store.engine(self.key)
        assert data is not None
        return self.vendor.load(data, self.segment, self.target)


@pytest.fixture(params=VENDORS)
def filled(request: pytest.FixtureRequest, store: EngineStore, toy: Any) -> Filled:
    vendor, segment = VENDORS[request.param](), toy.segment("tiny")
    made = Filled(store, vendor, segment, vendor.target(max_batch=8, threads=1))
    store.put_engine(made.key, vendor.compile(segment, made.target))
    return made


def test_what_was_kept_runs(filled: Filled) -> None:
    engine = filled.load()
    assert engine.key == filled.key
    assert engine.run({FEATURES: torch.rand(2, 4, 4, 4)})["logits"].shape == (2, 5)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_engine_is_a_miss_and_told(filled: Filled, caplog: Any, how: str) -> None:
    filled.path.write_bytes(DAMAGE[how](filled.path.read_bytes()))
    assert filled.store.engine(filled.key) is None
    assert f"stored engine {filled.path} cannot be used" in caplog.text
    with pytest.raises(EngineError):
        filled.vendor.load(filled.path.read_bytes(), filled.segment, filled.target)


@pytest.mark.parametrize("byte", range(17, 1017, 37))
def test_a_flipped_bit_anywhere_never_gives_a_running_engine(filled: Filled, byte: int) -> None:
    data = bytearray(filled.path.read_bytes())
    data[byte % len(data)] ^= 4
    filled.path.write_bytes(data)
    if filled.store.engine(filled.key) is None:
        return
    try:
        filled.load()
    except EngineError:
        return
    stamp = filled.vendor.stamp(filled.segment, filled.target)
    changed = unseal(bytes(data)).stamp  # the name is for messages: it alone may differ
    assert dataclasses.replace(changed, segment=stamp.segment) == stamp


def test_an_engine_of_another_version_is_not_found(filled: Filled) -> None:
    filled.target = dataclasses.replace(filled.target, version="9.9")
    assert filled.store.engine(filled.key) is None


CHANGES: dict[str, dict[str, Any]] = {
    "version": {"version": "9.9"},
    "device": {"device": "cuda"},
    "precision": {"precision": "fp16"},
    "max_batch": {"max_batch": 16},
    "threads": {"threads": 2},
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_engine_for_another_target_is_refused_even_under_the_right_key(
    filled: Filled, what: str
) -> None:
    other = filled.path
    filled.target = dataclasses.replace(filled.target, **CHANGES[what])
    other.rename(filled.path)  # copied by hand
    with pytest.raises(EngineMismatch, match=what):
        filled.load()


def test_an_engine_of_another_machine_is_refused_even_under_the_right_key(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = filled.path
    monkeypatch.setattr(machine_module, "instruction_set", lambda: "avx9")
    assert filled.store.engine(filled.key) is None
    other.rename(filled.path)
    with pytest.raises(EngineMismatch, match="machine"):
        filled.load()


def test_an_engine_of_an_earlier_opa_trt_is_refused_even_under_the_right_key(
    filled: Filled,
) -> None:
    other = filled.path
    filled.vendor.revision += 1
    assert filled.store.engine(filled.key) is None
    other.rename(filled.path)
    with pytest.raises(EngineMismatch, match="revision"):
        filled.load()


def test_another_segments_engine_is_refused_even_under_the_right_key(
    filled: Filled, toy: Any
) -> None:
    other = filled.path
    filled.segment = toy.segment("small")
    other.rename(filled.path)
    with pytest.raises(EngineMismatch, match="content: tiny"):
        filled.load()


# --- latency profiles ---------------------------------------------------------------------------


def test_a_profile_comes_back(store: EngineStore) -> None:
    store.put_profile("k", {"batches": [1, 8], "ms": [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]})
    assert store.profile("k") == {"batches": [1, 8], "ms": [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]}


def test_a_profile_of_another_machine_is_a_miss(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_profile("k", {"batches": [1]})
    monkeypatch.setattr(store_module, "fingerprint", lambda: "another")
    assert store.profile("k") is None


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b"3"])
def test_a_damaged_profile_is_a_miss(store: EngineStore, data: bytes) -> None:
    store.put_profile("k", {})
    (path,) = (store.root / "profiles").rglob("*.json")
    path.write_bytes(data)
    assert store.profile("k") is None


def test_a_profile_outlives_its_engine(store: EngineStore, seal: Any) -> None:
    store.put_engine("k", seal())
    store.put_profile("k", {"batches": [1]})
    store.drop_engine("k")
    assert store.profile("k") == {"batches": [1]}


def test_what_is_measured_is_kept_where_engines_have_keys(store: EngineStore, toy: Any) -> None:
    clock = VirtualClock()
    vendor, engines = Kept(clock, lambda name, batch: 2.0 * batch), {}
    target = vendor.target(max_batch=4, threads=1)
    for name in ("tiny", "small"):
        segment = toy.segment(name)
        engine = vendor.load(vendor.compile(segment, target), segment, target)
        engine.key = name if name == "tiny" else ""
        engines[name] = (engine, {FEATURES: torch.zeros(1, 4, 4, 4)})
    found = store.measure(engines, (1, 4), clock, 0.0)
    assert [row[0] for row in found["small"].ms] == pytest.approx([2.0, 8.0])
    assert store.profile("tiny") is not None
    assert len(list((store.root / "profiles").rglob("*.json"))) == 1


# --- marks --------------------------------------------------------------------------------------


def test_an_engine_that_matched_its_canary_is_marked(store: EngineStore) -> None:
    store.mark_verified("k", "canary", 3e-6)
    assert store.verified("k", "canary") == 3e-6
    assert EngineStore(store.root).verified("k", "canary") == 3e-6


def test_a_mark_holds_for_its_own_canary_only(store: EngineStore) -> None:
    store.mark_verified("k", "canary", 3e-6)
    assert store.verified("k", "another canary") is None
    assert store.verified("l", "canary") is None


def test_a_mark_of_another_machine_does_not_hold(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.mark_verified("k", "canary", 3e-6)
    monkeypatch.setattr(store_module, "fingerprint", lambda: "another")
    assert store.verified("k", "canary") is None


def test_a_dropped_engine_loses_its_marks_on_every_machine(
    store: EngineStore, seal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_engine("k", seal())
    store.mark_verified("k", "canary", 0.0)
    store.mark_verified("l", "canary", 0.0)
    monkeypatch.setattr(store_module, "fingerprint", lambda: "another")
    store.mark_verified("k", "canary", 0.0)
    store.drop_engine("k")
    assert [path.name for path in (store.root / "verified").rglob("*.json")] == ["l.json"]


@pytest.mark.parametrize("difference", [float("nan"), float("inf")])
def test_a_difference_that_is_no_number_is_no_match(store: EngineStore, difference: float) -> None:
    store.mark_verified("k", "canary", difference)
    assert store.verified("k", "canary") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"canary": "canary"}',
        b'{"canary": "canary", "difference": NaN, "date": ""}',
        b'{"canary": "canary", "difference": "small", "date": ""}',
    ],
)
def test_a_damaged_mark_does_not_hold(store: EngineStore, data: bytes) -> None:
    store.mark_verified("k", "canary", 0.0)
    (path,) = (store.root / "verified").rglob("*.json")
    path.write_bytes(data)
    assert store.verified("k", "canary") is None


# --- this machine -------------------------------------------------------------------------------


def test_the_fingerprint_is_short_and_the_same_each_time() -> None:
    assert fingerprint() == fingerprint.__wrapped__()
    assert len(fingerprint()) == 16


def test_the_processor_has_a_name() -> None:
    assert processor()


def test_a_system_without_cpuinfo_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert machine_module.instruction_set.__wrapped__() == ""
    assert isinstance(processor.__wrapped__(), str)


def test_a_fact_that_the_system_does_not_tell_is_empty() -> None:
    assert machine_module._cpuinfo("no such fact") == ""


def test_another_processor_has_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    here = fingerprint()
    monkeypatch.setattr(machine_module, "processor", lambda: "another")
    assert fingerprint.__wrapped__() != here
