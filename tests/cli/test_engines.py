"""``opa-trt engines``: what this machine keeps, whether it can be used, and what may go."""

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

OWN = Target("torchscript", torch.__version__, max_batch=8)
Put = Callable[..., Path]


@pytest.fixture
def store() -> EngineStore:
    """The one that commands use."""
    return EngineStore()


@pytest.fixture
def put(store: EngineStore) -> Put:
    """Puts an engine of this machine's, last used at ``when`` s, its target or bytes changed."""

    def put_engine(key: str, when: float = 1e9, *, damaged: bool = False, **target: Any) -> Path:
        stamp = Stamp(
            f"tail-{key[0]}",
            "content",
            (),
            (),
            "torchscript",
            replace(OWN, **target),
            TorchScriptBackend.revision,
            capability("cpu"),
        )
        data = Envelope(stamp, b"x" * 2000).seal()
        store.put_engine(key, data[:-1] if damaged else data)
        path = store.root / "engines" / f"{key}.engine"
        os.utime(path, (when, when))
        return path

    return put_engine


def lines(text: str) -> list[list[str]]:
    """Words of every line."""
    return [line.split() for line in text.splitlines()]


# --- list ---------------------------------------------------------------------------------------


def test_an_empty_store_says_so_and_where_it_is(call: Any, store: EngineStore) -> None:
    for command in ("list", "verify"):
        called = call("engines", command)
        assert called.code == 0
        assert f"No engines in {store.root}." in called.out
    assert not store.root.exists()


def test_list_names_every_engine_the_last_used_first(call: Any, put: Put) -> None:
    for key, when in {"a" * 64: 1e9, "b" * 64: 3e9, "c" * 64: 2e9}.items():
        put(key, when)
    called = call("engines", "list")
    assert called.code == 0
    keys = [words[0] for words in lines(called.out)[1:4]]
    assert keys == ["b" * 12, "c" * 12, "a" * 12]


def test_list_says_what_an_engine_is_for(call: Any, store: EngineStore, put: Put) -> None:
    put("abc")
    store.put_profile("abc", {"batches": [1]})
    store.mark_verified("abc", "canary", 2e-6)
    line = " ".join(lines(call("engines", "list").out)[1])
    assert f"abc tail-a torchscript {torch.__version__} cpu fp32, batch 1 to 8, 1 thread" in line
    assert line.endswith("known matched, 2e-06")


def test_list_says_how_full_the_store_is(
    call: Any, put: Put, monkeypatch: pytest.MonkeyPatch, store: EngineStore
) -> None:
    monkeypatch.setenv("OPA_TRT_CACHE_LIMIT", "500 MB")
    size = put("abc").stat().st_size / 1000
    assert f"1 engine, {size:.1f} kB of 500 MB, in {store.root}" in call("engines", "list").out


def test_list_writes_one_json_object(call: Any, store: EngineStore, put: Put) -> None:
    path = put("abc", 1e9)
    store.mark_verified("abc", "canary", 2e-6)
    found = call("engines", "list", "--json").json()
    (engine,) = found["engines"]
    assert found["store"] == str(store.root)
    assert found["bytes"] == engine["bytes"] == path.stat().st_size
    assert (engine["key"], engine["path"]) == ("abc", str(path))
    assert engine["last_used"] == "2001-09-09T01:46:40+00:00"
    assert engine["stamp"]["target"]["backend"] == "torchscript"
    assert engine["verified"]["difference"] == 2e-6
    assert engine["latencies_known"] is False


def test_an_empty_store_is_json_as_well(call: Any) -> None:
    assert call("engines", "list", "--json").json()["engines"] == []


# --- verify -------------------------------------------------------------------------------------


def test_verify_says_which_engines_this_machine_can_use(call: Any, put: Put) -> None:
    put("a", 3e9)
    put("b", 2e9, version="1.0")
    put("c", 1e9, backend="gone")
    called = call("engines", "verify")
    assert called.code == 0
    first, second, third = lines(called.out)[1:4]
    assert "usable" in first
    assert "stale" in second
    assert "for torchscript 1.0; here is" in " ".join(second)
    assert "unavailable" in third
    assert "1 usable, 1 stale, 1 unavailable" in called.out
    assert "opa-trt show BUNDLE --verify" in called.out


def test_verify_says_whether_the_canary_matched(call: Any, store: EngineStore, put: Put) -> None:
    put("a", 2e9)
    put("b", 1e9)
    store.mark_verified("a", "canary", 2e-6)
    first, second = lines(call("engines", "verify").out)[1:3]
    assert "matched, 2e-06" in " ".join(first)
    assert "not run yet" in " ".join(second)


def test_verify_ends_with_2_where_an_engine_is_damaged(call: Any, put: Put) -> None:
    put("a")
    put("b", damaged=True)
    called = call("engines", "verify")
    assert called.code == 2
    assert "1 usable, 1 damaged" in called.out
    assert "damaged: 1 of 2 engines" in called.err
    assert "opa-trt engines prune" in called.err


def test_verify_writes_one_json_object(call: Any, put: Put) -> None:
    put("a", 2e9)
    put("b", 1e9, damaged=True)
    called = call("engines", "verify", "--json")
    assert called.code == 2
    found = called.json()
    assert found["counts"] == {"usable": 1, "stale": 0, "unavailable": 0, "damaged": 1}
    assert [engine["state"] for engine in found["engines"]] == ["usable", "damaged"]
    assert "the engine of tail-b is damaged" in found["engines"][1]["why"]


# --- prune --------------------------------------------------------------------------------------


def test_prune_removes_what_cannot_be_used(call: Any, put: Put, store: EngineStore) -> None:
    put("a")
    stale, damaged = put("b", version="1.0"), put("c", damaged=True)
    called = call("engines", "prune")
    assert called.code == 0
    assert not stale.exists()
    assert not damaged.exists()
    assert "2 files" in called.out
    assert [entry.key for entry in store.entries()] == ["a"]
    assert f"Nothing to remove in {store.root}." in call("engines", "prune").out


def test_a_dry_run_only_says_what_would_go(call: Any, put: Put) -> None:
    path = put("b", version="1.0")
    called = call("engines", "prune", "--dry-run")
    assert path.exists()
    assert "b.engine" in called.out
    assert "would be removed" in called.out


def test_all_takes_unavailable_backends_too(call: Any, put: Put) -> None:
    path = put("c", backend="gone")
    call("engines", "prune")
    assert path.exists()
    call("engines", "prune", "--all")
    assert not path.exists()


def test_older_than_takes_what_was_not_used_for_so_long(call: Any, put: Put) -> None:
    old, new = put("a", 1e9), put("b", 4e9)
    call("engines", "prune", "--older-than", 30)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_limit_leaves_what_fits(call: Any, put: Put) -> None:
    old, new = put("a", 1e9), put("b", 2e9)
    call("engines", "prune", "--limit", f"{new.stat().st_size} B")
    assert (old.exists(), new.exists()) == (False, True)
    call("engines", "prune", "--limit", 0)
    assert not new.exists()


def test_prune_writes_one_json_object(call: Any, put: Put, store: EngineStore) -> None:
    path = put("c", damaged=True)
    size = path.stat().st_size
    found = call("engines", "prune", "--json").json()
    (removed,) = found["removed"]
    assert (found["store"], found["dry_run"]) == (str(store.root), False)
    assert (removed["path"], removed["bytes"], removed["error"]) == (str(path), size, "")
    assert "is damaged" in removed["why"]


def test_what_cannot_be_removed_is_an_error(
    call: Any, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    path = put("c", damaged=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        called = call("engines", "prune")
    assert called.code == 2
    assert f"{path}: cannot be removed: Permission denied" in called.err
    assert "0 files" in called.out


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prune", "--limit", "much"), "'much' for --limit"),
        (("prune", "--older-than", "-1"), "--older-than"),
        (("prune", "--older-than", "week"), "--older-than"),
        (("prune", "--older-than", "nan"), "older than nan days"),
        (("lsit",), "lsit"),
        (("list", "extra"), "extra"),
    ],
)
def test_bad_input_is_refused(call: Any, arguments: tuple[str, ...], said: str) -> None:
    called = call("engines", *arguments)
    assert called.code == 2
    assert said in called.err
    assert called.out == ""


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_limit_that_is_no_size_is_refused(
    call: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("OPA_TRT_CACHE_LIMIT", "plenty")
    called = call("engines", command)
    assert called.code == 2
    assert "'plenty' for OPA_TRT_CACHE_LIMIT" in called.err
    assert "500 MB" in called.err


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_cache_that_is_a_file_is_refused(call: Any, store: EngineStore, command: str) -> None:
    store.root.write_text("mine")
    called = call("engines", command)
    assert called.code == 2
    assert f"{store.root}" in called.err
    assert "Not a directory" in called.err


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_every_command_offers_json_and_an_example(call: Any, command: str) -> None:
    text = call("engines", command, "--help").out
    assert "--json" in text
    assert f"opa-trt engines {command}" in text.split("Options:")[0].split("\n", 1)[1]
