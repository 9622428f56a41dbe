"""What is in a store, and whether this machine can use it."""

from __future__ import annotations

from typing import Any

import pytest

from opa_trt.backends import Availability
from opa_trt.backends.tensorrt import TensorRTBackend
from opa_trt.backends.torchscript import TorchScriptBackend
from opa_trt.errors import EngineError
from opa_trt.store import EngineStore, Entry, Judge, Standing
from opa_trt.store import store as store_module


def only(store: EngineStore) -> Entry:
    """The one entry."""
    (entry,) = store.entries()
    return entry


def standing(store: EngineStore, data: bytes) -> Standing:
    """Of these bytes in a store."""
    store.put_engine("k", data)
    return Judge().standing(only(store))


# --- entries ------------------------------------------------------------------------------------


def test_an_entry_says_what_the_engine_is(store: EngineStore, seal: Any, used: Any) -> None:
    store.put_engine("k", seal(b"x" * 100))
    used(store, "k", 5000)
    entry = only(store)
    assert (entry.key, entry.bytes, entry.used) == ("k", len(seal(b"x" * 100)), 5000)
    assert entry.path == store.root / "engines" / "k.engine"
    assert entry.damage == ""
    assert entry.stamp is not None
    assert (entry.stamp.segment, entry.stamp.target.backend) == ("pioneer", "torchscript")


def test_the_least_recently_used_comes_first(store: EngineStore, seal: Any, used: Any) -> None:
    for key, when in {"a": 3000, "b": 1000, "c": 2000}.items():
        store.put_engine(key, seal())
        used(store, key, when)
    assert [entry.key for entry in store.entries()] == ["b", "c", "a"]


def test_listing_an_engine_does_not_use_it(store: EngineStore, seal: Any, used: Any) -> None:
    store.put_engine("k", seal())
    used(store, "k", 5000)
    store.entries()
    assert only(store).used == 5000


def test_an_entry_says_what_is_known_of_it_on_this_machine(
    store: EngineStore, seal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_engine("k", seal())
    assert (only(store).profiled, only(store).mark) == (False, None)
    store.put_profile("k", {"batches": [1]})
    store.mark_verified("k", "canary", 2e-6)
    entry = only(store)
    assert entry.profiled
    assert entry.mark is not None
    assert (entry.mark.canary, entry.mark.difference) == ("canary", 2e-6)
    monkeypatch.setattr(store_module, "fingerprint", lambda: "another")
    assert (only(store).profiled, only(store).mark) == (False, None)


def test_an_entry_says_what_is_wrong_with_the_file(store: EngineStore, seal: Any) -> None:
    store.put_engine("k", seal()[:-1])
    entry = only(store)
    assert entry.stamp is None
    assert "damaged" in entry.damage


def test_other_files_are_no_entries(store: EngineStore, seal: Any) -> None:
    store.put_engine("k", seal())
    (store.root / "engines" / ".l.engine.tmp").write_bytes(b"")
    (store.root / "engines" / ".hidden.engine").write_bytes(b"")
    (store.root / "engines" / "notes.txt").write_bytes(b"")
    assert only(store).key == "k"


# --- whether this machine can use them ----------------------------------------------------------


def test_an_engine_of_this_machine_is_usable(store: EngineStore, seal: Any) -> None:
    assert standing(store, seal()) == Standing("usable")


def test_a_damaged_one_is_damaged(store: EngineStore, seal: Any) -> None:
    found = standing(store, seal()[:-1])
    assert found.state == "damaged"
    assert "pioneer" in found.why


def test_one_of_another_version_is_stale(store: EngineStore, seal: Any) -> None:
    found = standing(store, seal(target={"version": "1.0"}))
    assert found.state == "stale"
    assert "for torchscript 1.0; here is " in found.why


def test_one_for_another_processor_is_stale(store: EngineStore, seal: Any) -> None:
    found = standing(store, seal(capability="avx9"))
    assert found == Standing("stale", "for another processor's instruction set")


def test_one_of_an_earlier_opa_trt_is_stale(store: EngineStore, seal: Any) -> None:
    assert standing(store, seal(revision=0)).state == "stale"


def test_one_of_a_later_opa_trt_is_not_stale(store: EngineStore, seal: Any) -> None:
    assert standing(store, seal(revision=99)) == Standing(
        "unavailable", "compiled by a later opa-trt"
    )


@pytest.mark.parametrize("target", [{"backend": "gone"}, {"device": "cuda"}])
def test_one_of_a_backend_that_does_not_exist_here_is_unavailable(
    store: EngineStore, seal: Any, target: dict[str, str]
) -> None:
    assert standing(store, seal(target=target)).state == "unavailable"


def test_one_of_a_backend_that_does_not_work_here_is_unavailable_and_says_why(
    store: EngineStore, seal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Availability(version="10", reason="no GPU.", compiles=True)
    monkeypatch.setattr(TensorRTBackend, "availability", lambda self: state)
    found = standing(store, seal(target={"backend": "tensorrt", "device": "cuda"}))
    assert found == Standing("unavailable", "no GPU.")


@pytest.mark.parametrize(
    ("here", "state", "why"),
    [
        ("H100, 9.0, driver 1", "stale", "for A100, 8.0, driver 1; here is H100, 9.0, driver 1"),
        ("", "unavailable", "nothing is known of this machine's cuda"),
        ("A100, 8.0, driver 1", "usable", ""),
    ],
)
def test_one_for_a_gpu_is_compared_with_the_gpu_that_is_here(
    store: EngineStore, seal: Any, monkeypatch: pytest.MonkeyPatch, here: str, state: str, why: str
) -> None:
    monkeypatch.setattr(TensorRTBackend, "availability", lambda self: Availability(version="10.0"))
    monkeypatch.setattr("opa_trt.machine.gpu", lambda: here)
    target = {"backend": "tensorrt", "version": "10.0", "device": "cuda"}
    revision = TensorRTBackend.revision
    data = seal(target=target, capability="A100, 8.0, driver 1", revision=revision)
    assert standing(store, data) == Standing(state, why)


@pytest.mark.parametrize(
    ("refusal", "found"),
    [
        (None, Standing("usable")),
        (EngineError("the vendor says: no."), Standing("stale", "the vendor says: no.")),
        (FileNotFoundError(2, "gone"), Standing("damaged", "cannot be read: gone")),
    ],
)
def test_a_vendor_that_judges_plans_is_asked(
    store: EngineStore,
    seal: Any,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Exception | None,
    found: Standing,
) -> None:
    data = seal()
    asked = []

    def check_plan(self: TorchScriptBackend, given: bytes) -> str:
        asked.append(given)
        if refusal is not None:
            raise refusal
        return "valid"

    monkeypatch.setattr(TorchScriptBackend, "judges", True)
    monkeypatch.setattr(TorchScriptBackend, "check_plan", check_plan)
    assert standing(store, data) == found
    assert asked == [data]


def test_each_vendor_is_asked_once(
    store: EngineStore, seal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def availability(self: TorchScriptBackend) -> Availability:
        asked.append(self.name)
        return Availability(version="1")

    monkeypatch.setattr(TorchScriptBackend, "availability", availability)
    for key in "abc":
        store.put_engine(key, seal())
    judge = Judge()
    assert {judge.standing(entry).state for entry in store.entries()} == {"stale"}
    assert asked == ["torchscript"]
