"""A store whose folder cannot be used: everything works without it, and it is told once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import opa_trt
from opa_trt import atomic
from opa_trt.store import EngineStore


def refuse(number: int) -> Callable[..., Any]:
    """What the system does where a disk is full or read-only."""

    def refusing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refusing


def use(store: EngineStore, seal: Any) -> None:
    """Everything that a session does with a store, twice."""
    for _ in range(2):
        store.engine("k")
        store.put_engine("k", seal())
        store.drop_engine("l")
        store.verified("k", "canary")
        store.mark_verified("k", "canary", 0.0)
        store.profile("k")
        store.put_profile("k", {"batches": [1]})


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_one_that_cannot_be_written_is_told_once(
    store: EngineStore, seal: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(atomic, "write_bytes", refuse(number))
    use(store, seal)
    assert len(caplog.records) == 1
    assert f"nothing is kept in {store.root}" in caplog.text
    assert os.strerror(number) in caplog.text
    assert store.engine("k") is None


def test_each_store_tells_it_for_itself(
    store: EngineStore, seal: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "write_bytes", refuse(errno.EROFS))
    use(store, seal)
    use(EngineStore(store.root), seal)
    assert len(caplog.records) == 2


def test_one_that_cannot_be_written_can_be_read(
    store: EngineStore, seal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_engine("k", seal())
    store.mark_verified("k", "canary", 0.0)
    monkeypatch.setattr(atomic, "write_bytes", refuse(errno.EROFS))
    monkeypatch.setattr(os, "utime", refuse(errno.EROFS))
    assert store.engine("k") == seal()
    assert store.verified("k", "canary") == 0.0


def test_one_that_cannot_be_read_is_told_once(
    store: EngineStore, seal: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_engine("k", seal())
    monkeypatch.setattr(Path, "read_bytes", refuse(errno.EACCES))
    assert [store.engine("k"), store.profile("k"), store.verified("k", "canary")] == [None] * 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_its_place_is_told_once(
    tmp_path: Path, seal: Any, caplog: Any, below: str
) -> None:
    (tmp_path / "file").write_text("mine")
    use(EngineStore(tmp_path / "file" / below), seal)
    assert len(caplog.records) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_in_its_place_is_an_error_of_the_commands(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for ask in (EngineStore(tmp_path / "file").entries, EngineStore(tmp_path / "file").prune):
        with pytest.raises(NotADirectoryError):
            ask()


def test_a_folder_in_an_engines_place_is_a_miss(store: EngineStore, seal: Any, caplog: Any) -> None:
    (store.root / "engines" / "k.engine").mkdir(parents=True)
    assert store.engine("k") is None
    store.put_engine("k", seal())
    assert len(caplog.records) == 1
    assert store.entries() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told_once(tmp_path: Path, seal: Any, caplog: Any) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    use(EngineStore(tmp_path / "closed"), seal)
    assert len(caplog.records) == 1


def test_a_bundle_is_served_without_a_store(
    toy: Any, toy_bundle: Path, tmp_path: Path, ticking: Any
) -> None:
    (tmp_path / "file").write_text("mine")
    store = EngineStore(tmp_path / "file")
    with opa_trt.load(toy_bundle, backend="torchscript", clock=ticking, store=store) as session:
        assert len(session.infer(toy.images(3), 1e6).labels) == 3
