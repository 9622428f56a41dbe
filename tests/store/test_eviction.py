"""The limit: beyond it, engines that were not used for longest go."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from opa_trt.store import EngineStore
from opa_trt.store import layout as layout_module

ROOM = 3


@pytest.fixture
def engine(seal: Any) -> bytes:
    """One that takes a third of the limit."""
    return bytes(seal(b"x" * 100))


@pytest.fixture
def store(tmp_path: Path, engine: bytes, used: Any) -> EngineStore:
    """Full: three engines, last used at 1000, 2000 and 3000 s."""
    made = EngineStore(tmp_path / "store", limit_bytes=ROOM * len(engine))
    for when, key in enumerate("abc", 1):
        made.put_engine(key, engine)
        used(made, key, 1000 * when)
    return made


def kept(store: EngineStore) -> str:
    return "".join(sorted(path.stem for path in (store.root / "engines").iterdir()))


def test_up_to_the_limit_all_stay(store: EngineStore) -> None:
    assert kept(store) == "abc"


def test_beyond_it_the_least_recently_used_goes(store: EngineStore, engine: bytes) -> None:
    store.put_engine("d", engine)
    assert kept(store) == "bcd"


def test_to_be_asked_for_is_to_be_used(store: EngineStore, engine: bytes) -> None:
    assert store.engine("a") is not None
    store.put_engine("d", engine)
    assert kept(store) == "acd"


def test_to_be_put_again_is_to_be_used(store: EngineStore, engine: bytes) -> None:
    store.put_engine("a", engine)
    store.put_engine("d", engine)
    assert kept(store) == "acd"


def test_as_many_go_as_must(store: EngineStore, seal: Any) -> None:
    store.put_engine("d", seal(b"x" * 150))
    assert kept(store) == "cd"


def test_the_one_just_put_stays_whatever_its_time(
    store: EngineStore, engine: bytes, used: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in "abc":
        used(store, key, 4e9)  # a clock that was wrong, far in the future
    store.put_engine("d", engine)
    assert kept(store) == "bcd"


def test_one_that_is_larger_than_the_limit_is_not_kept_and_told_once(
    store: EngineStore, seal: Any, caplog: Any
) -> None:
    for _ in range(2):
        store.put_engine("d", seal(b"x" * 10_000))
    assert kept(store) == "abc"
    assert len(caplog.records) == 1
    assert "are not kept: the limit" in caplog.text


def test_a_limit_of_0_keeps_no_engine_but_latencies(tmp_path: Path, engine: bytes) -> None:
    store = EngineStore(tmp_path / "none", limit_bytes=0)
    store.put_engine("a", engine)
    store.put_profile("a", {"batches": [1]})
    assert store.engine("a") is None
    assert store.profile("a") == {"batches": [1]}


def test_what_goes_takes_its_marks_along_but_not_its_latencies(
    store: EngineStore, engine: bytes
) -> None:
    for key in "ab":
        store.mark_verified(key, "canary", 0.0)
        store.put_profile(key, {"batches": [1]})
    store.put_engine("d", engine)
    assert store.verified("a", "canary") is None
    assert store.verified("b", "canary") == 0.0
    assert store.profile("a") == {"batches": [1]}


def test_what_is_not_an_engine_neither_counts_nor_goes(store: EngineStore, engine: bytes) -> None:
    (store.root / "engines" / "README").write_bytes(b"x" * 10_000)
    (store.root / "engines" / ".z.engine.abcd").write_bytes(b"x" * 10_000)
    store.put_engine("a", engine)
    assert kept(store) == ".z.engineREADMEabc"


def test_what_goes_is_logged(store: EngineStore, engine: bytes, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    store.put_engine("d", engine)
    assert "a.engine removed to make room" in caplog.text


def test_one_that_cannot_be_removed_is_passed_over(
    store: EngineStore, engine: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def stubborn(path: Path, missing_ok: bool = False) -> None:
        if path.stem == "a":
            raise PermissionError
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", stubborn)
    store.put_engine("d", engine)
    assert kept(store) == "acd"


def test_files_that_vanish_while_the_folder_is_read_are_no_error(
    store: EngineStore, engine: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = layout_module._entries

    def racing(folder: Path) -> Any:
        found = entries(folder)
        (folder / "a.engine").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(layout_module, "_entries", racing)
    store.put_engine("d", engine)
    assert kept(store) == "bcd"
    assert [entry.key for entry in store.entries()] == ["b", "c", "d"]
