"""Pruning: what nobody can use goes; what might be used stays unless it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opa_trt.errors import ConfigError
from opa_trt.store import EngineStore, Pruning
from opa_trt.store.layout import Layout

NOW, DAY, HOUR = 1_000_000_000.0, 86_400.0, 3600.0
AMPLE = 10**9
Put = Callable[..., Path]


@pytest.fixture
def put(store: EngineStore, used: Any) -> Put:
    """Puts an engine that was last used so many days ago."""

    def put_aged(key: str, data: bytes, days: float = 0.0) -> Path:
        store.put_engine(key, data)
        used(store, key, NOW - days * DAY)
        return store.root / "engines" / f"{key}.engine"

    return put_aged


def prune(
    store: EngineStore, limit: int = AMPLE, *, dry: bool = False, **options: Any
) -> list[str]:
    """Names of the files that go."""
    removals = store.prune(Pruning(limit, now=NOW, **options), dry=dry)
    return [removal.path.name for removal in removals]


def test_a_usable_engine_stays(store: EngineStore, seal: Any, put: Put) -> None:
    path = put("k", seal(), days=1000)
    assert prune(store) == []
    assert path.exists()


UNUSABLE: dict[str, Callable[[Any], bytes]] = {
    "damaged": lambda seal: seal()[:-1],
    "of an earlier format": lambda seal: b"\0" * 32 + b"engine",
    "of another version": lambda seal: seal(target={"version": "1.0"}),
    "for another processor": lambda seal: seal(capability="avx9"),
    "of an earlier opa-trt": lambda seal: seal(revision=0),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_engine_that_cannot_be_used_again_goes(
    store: EngineStore, seal: Any, put: Put, what: str
) -> None:
    put("good", seal())
    put("bad", UNUSABLE[what](seal))
    assert prune(store) == ["bad.engine"]
    assert [entry.key for entry in store.entries()] == ["good"]


def test_it_is_said_why(store: EngineStore, seal: Any, put: Put) -> None:
    put("k", seal(target={"version": "1.0"}))
    (removal,) = store.prune()
    assert removal.why.startswith("for torchscript 1.0; here is")
    assert removal.bytes == len(seal(target={"version": "1.0"}))
    assert removal.error == ""


def test_an_engine_of_a_backend_that_is_not_here_goes_only_with_all(
    store: EngineStore, seal: Any, put: Put
) -> None:
    put("k", seal(target={"backend": "gone"}))
    assert prune(store) == []
    assert prune(store, unavailable=True) == ["k.engine"]


def test_old_engines_go_whatever_they_are(store: EngineStore, seal: Any, put: Put) -> None:
    put("new", seal(), days=29)
    put("old", seal(), days=31)
    put("gone", seal(target={"backend": "gone"}), days=31)
    assert sorted(prune(store, older_than_days=30)) == ["gone.engine", "old.engine"]


def test_then_the_least_recently_used_go_until_the_rest_fits(
    store: EngineStore, seal: Any, put: Put
) -> None:
    for days, key in enumerate("abc"):
        put(key, seal(), days)
    put("bad", seal()[:-1], days=0)
    assert prune(store, 2 * len(seal())) == ["bad.engine", "c.engine"]
    assert prune(store, 0) == ["b.engine", "a.engine"]


def test_by_default_it_fits_the_stores_own_limit(store: EngineStore, seal: Any, put: Put) -> None:
    put("old", seal(), days=2)
    put("new", seal(), days=1)
    small = EngineStore(store.root, limit_bytes=len(seal()))
    assert [removal.path.name for removal in small.prune()] == ["old.engine"]


def test_a_dry_run_says_the_same_and_removes_nothing(
    store: EngineStore, seal: Any, put: Put
) -> None:
    put("bad", seal()[:-1])
    put("old", seal(), days=31)
    before = sorted(store.root.rglob("*"))
    said = prune(store, older_than_days=30, dry=True)
    assert sorted(store.root.rglob("*")) == before
    assert prune(store, older_than_days=30) == said == ["bad.engine", "old.engine"]


def test_what_goes_takes_its_marks_along(store: EngineStore, seal: Any, put: Put) -> None:
    put("k", seal(target={"version": "1.0"}))
    store.mark_verified("k", "canary", 0.0)
    prune(store)
    assert store.verified("k", "canary") is None


@pytest.mark.parametrize("name", [".k.engine.abc123", ".k.json.abc123"])
def test_what_was_left_half_written_goes_after_an_hour(
    store: EngineStore, seal: Any, put: Put, name: str
) -> None:
    folder = put("k", seal()).parent
    if "json" in name:
        store.put_profile("k", {"batches": [1]})
        folder = next((store.root / "profiles").iterdir())
    (folder / name).write_bytes(b"half")
    os.utime(folder / name, (NOW - HOUR / 2, NOW - HOUR / 2))
    assert prune(store) == []
    os.utime(folder / name, (NOW - 2 * HOUR, NOW - 2 * HOUR))
    assert prune(store) == [name]


def test_latencies_without_an_engine_go_only_when_old(
    store: EngineStore, seal: Any, put: Put
) -> None:
    put("k", seal())
    for key in ("k", "bundled"):
        store.put_profile(key, {"batches": [1]})
        store.mark_verified(key, "canary", 0.0)
    for path in store.root.rglob("*.json"):
        os.utime(path, (NOW - 31 * DAY, NOW - 31 * DAY))
    assert prune(store) == []
    assert prune(store, older_than_days=40) == []
    assert prune(store, older_than_days=30) == ["bundled.json", "bundled.json"]
    assert store.profile("k") == {"batches": [1]}


def test_what_is_not_ours_stays(store: EngineStore, seal: Any, put: Put) -> None:
    folder = put("k", seal()).parent
    for name in ("notes.txt", ".hidden", "x.engine.bak"):
        (folder / name).write_bytes(b"mine")
        os.utime(folder / name, (NOW - 99 * DAY, NOW - 99 * DAY))
    (folder / "folder.engine").mkdir()
    assert prune(store, 0, unavailable=True, older_than_days=1) == ["k.engine"]
    assert len(list(folder.iterdir())) == 4


def test_what_is_used_meanwhile_stays(
    store: EngineStore, seal: Any, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("k", seal(), days=31)
    half_written = Layout.half_written

    def meanwhile(layout: Layout) -> Any:  # the last thing that is looked at
        assert EngineStore(layout.root).engine("k") is not None
        return half_written(layout)

    monkeypatch.setattr(Layout, "half_written", meanwhile)
    assert prune(store, older_than_days=30) == []
    assert store.engine("k") is not None


def test_what_cannot_be_removed_is_said(
    store: EngineStore, seal: Any, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    put("k", seal()[:-1])
    monkeypatch.setattr(Path, "unlink", refused)
    (removal,) = store.prune()
    assert removal.error == "Permission denied"


@pytest.mark.parametrize("options", [{"limit": -1}, {"older_than_days": -1}])
def test_what_is_below_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        Pruning(**{"limit": AMPLE, **options})
