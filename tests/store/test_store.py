"""Engines and latencies of this machine: found again by what they depend on, or not at all."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opa_trt import atomic
from opa_trt.backends import backend
from opa_trt.backends.null import NullBackend
from opa_trt.store import EngineStore, cache_folder, engine_key, fingerprint, processor
from opa_trt.store import machine as machine_module
from opa_trt.store import store as store_module
from opa_trt.tree import Segment, Target, TensorSpec

SEGMENT = Segment(
    "pioneer",
    (TensorSpec("images", (3, 16, 16), "uint8"),),
    (TensorSpec("logits", (5,)),),
    {"torchscript": b"container bytes"},
    "hash of graph and weights",
)
TARGET = Target("torchscript", "2.0", max_batch=8, threads=1)


def key(segment: Segment = SEGMENT, target: Target = TARGET) -> str:
    return engine_key(segment, target, backend("torchscript"))


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_is_the_same_each_time() -> None:
    assert key() == key(dataclasses.replace(SEGMENT))
    assert len(key()) == 64


def test_container_bytes_and_names_do_not_count() -> None:
    assert key(dataclasses.replace(SEGMENT, forms={"torchscript": b"another save"})) == key()
    assert key(dataclasses.replace(SEGMENT, name="renamed")) == key()


SEGMENTS: dict[str, dict[str, Any]] = {
    "weights": {"content": "other weights"},
    "input shape": {"inputs": (TensorSpec("images", (3, 32, 32), "uint8"),)},
    "input dtype": {"inputs": (TensorSpec("images", (3, 16, 16), "float32"),)},
    "outputs": {"outputs": (TensorSpec("logits", (6,)),)},
    "output's name": {"outputs": (TensorSpec("features", (5,)),)},
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_another_segment_has_another_key(name: str) -> None:
    assert key(dataclasses.replace(SEGMENT, **SEGMENTS[name])) != key()


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2},
        {"precision": "fp16"},
        {"version": "2.1"},
        {"backend": "openvino"},
        {"device": "gpu"},
        {"min_batch": 2},
        {"max_batch": 16},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_target_has_another_key(change: dict[str, Any]) -> None:
    assert key(target=dataclasses.replace(TARGET, **change)) != key()


def test_another_revision_of_our_code_has_another_key() -> None:
    older, newer = NullBackend(), NullBackend()
    newer.revision += 1
    assert engine_key(SEGMENT, TARGET, older) != engine_key(SEGMENT, TARGET, newer)


def test_another_instruction_set_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    here = key()
    monkeypatch.setattr(store_module, "instruction_set", lambda: "avx9")
    assert key() != here


def test_all_these_keys_differ_from_each_other() -> None:
    segments = [SEGMENT, *(dataclasses.replace(SEGMENT, **c) for c in SEGMENTS.values())]
    targets = [TARGET, *(dataclasses.replace(TARGET, threads=n) for n in range(2, 9))]
    keys = [key(segment, target) for segment in segments for target in targets]
    assert len(set(keys)) == len(keys)


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
    store.drop_engine("k")
    assert not store.root.exists()


# --- engines ------------------------------------------------------------------------------------


def test_an_engine_comes_back(store: EngineStore) -> None:
    store.put_engine("k", b"engine")
    assert store.engine("k") == b"engine"
    assert EngineStore(store.root).engine("k") == b"engine"


def test_an_empty_engine_comes_back(store: EngineStore) -> None:
    store.put_engine("k", b"")
    assert store.engine("k") == b""


def test_another_key_is_a_miss(store: EngineStore) -> None:
    store.put_engine("k", b"engine")
    assert store.engine("l") is None


def test_a_dropped_engine_is_a_miss(store: EngineStore) -> None:
    store.put_engine("k", b"engine")
    store.drop_engine("k")
    assert store.engine("k") is None


def test_putting_again_replaces(store: EngineStore) -> None:
    store.put_engine("k", b"old")
    store.put_engine("k", b"new")
    assert store.engine("k") == b"new"


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "cut in the hash": lambda data: data[:10],
    "emptied": lambda data: b"",
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "flipped hash": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_engine_is_a_miss_and_told(
    store: EngineStore, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    store.put_engine("k", b"engine")
    (path,) = (store.root / "engines").iterdir()
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    assert store.engine("k") is None
    assert "is damaged" in caplog.text


def test_a_folder_in_its_place_is_a_miss(store: EngineStore) -> None:
    (store.root / "engines" / "k.engine").mkdir(parents=True)
    assert store.engine("k") is None


# --- two at once --------------------------------------------------------------------------------


def test_threads_that_put_at_once_leave_one_whole_engine(store: EngineStore) -> None:
    engines = [bytes([i]) * 50_000 for i in range(8)]
    barrier, seen = threading.Barrier(len(engines)), []

    def put(data: bytes) -> None:
        barrier.wait()
        store.put_engine("k", data)
        seen.append(store.engine("k"))

    workers = [threading.Thread(target=put, args=(data,)) for data in engines]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(seen) <= set(engines)
    assert store.engine("k") in engines
    assert [path.name for path in (store.root / "engines").iterdir()] == ["k.engine"]


def test_processes_that_put_at_once_leave_one_whole_engine(store: EngineStore) -> None:
    code = (  # the file by itself: importing the package would take longer than the test
        "import hashlib, runpy, sys; from pathlib import Path\n"
        "write_bytes = runpy.run_path(sys.argv[3])['write_bytes']\n"
        "data = sys.argv[2].encode() * 50_000\n"
        "for _ in range(20):\n"
        "    write_bytes(Path(sys.argv[1]), hashlib.sha256(data).digest() + data)\n"
    )
    store.put_engine("k", b"first")
    (path,) = (store.root / "engines").iterdir()
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen([*command, letter, atomic.__file__]) for letter in "ab"]
    found = set()
    while any(process.poll() is None for process in running):
        found.add(store.engine("k"))
    assert [process.returncode for process in running] == [0, 0]
    assert found | {store.engine("k")} <= {b"first", b"a" * 50_000, b"b" * 50_000}
    assert [path.name for path in (store.root / "engines").iterdir()] == ["k.engine"]


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
