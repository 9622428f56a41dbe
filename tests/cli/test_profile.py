"""``opa-trt profile``: latencies of this machine, measured again and kept."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from opa_trt import atomic
from opa_trt.bundle import Bundle
from opa_trt.store import EngineStore

QUICK = ("--seconds", 0.001)


@pytest.fixture
def nodes(bundle: Path) -> list[str]:
    return [node.name for node in Bundle(bundle).manifest.nodes]


@pytest.fixture
def own_cache(shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the build left in the cache, to be changed."""
    shutil.copytree(shared_cache, tmp_path / "own")
    monkeypatch.setenv("OPA_TRT_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


def test_every_node_and_batch_bucket_is_told(call: Any, bundle: Path, nodes: list[str]) -> None:
    called = call("profile", bundle, *QUICK)
    assert called.code == 0
    rows = [line.split() for line in called.out.splitlines()[1:]][: 2 * len(nodes)]
    assert [row[0] for row in rows] == [name for name in nodes for _ in (1, 8)]
    assert {row[1] for row in rows} == {"torchscript"}
    assert [row[2] for row in rows] == ["1", "8"] * len(nodes)
    for row in rows:
        assert 0 < float(row[3]) <= float(row[4])


def test_what_is_measured_is_kept(call: Any, bundle: Path, nodes: list[str]) -> None:
    called = call("profile", bundle, *QUICK)
    assert f"kept in {EngineStore().root}" in called.out
    assert "→" not in called.out
    kept = list((EngineStore().root / "profiles").rglob("*.json"))
    assert len(kept) == len(nodes)


def test_what_was_known_is_told_beside_it(
    call: Any, bundle: Path, nodes: list[str], own_cache: Path
) -> None:
    called = call("profile", bundle, *QUICK)
    assert len(re.findall(r"\d\.\d\d → \d", called.out)) == 2 * 2 * len(nodes)
    assert "before → now" in called.out


def test_it_measures_again_each_time(call: Any, bundle: Path, nodes: list[str]) -> None:
    first = call("profile", bundle, *QUICK, "--json").json()
    second = call("profile", bundle, *QUICK, "--json").json()
    for name in nodes:
        assert first["nodes"][name]["before"] is None
        assert second["nodes"][name]["before"] == first["nodes"][name]["now"]
        assert second["nodes"][name]["now"]["ms"] != first["nodes"][name]["now"]["ms"]


def test_the_next_load_goes_by_it(
    call: Any, bundle: Path, nodes: list[str], ticking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import opa_trt

    found = call("profile", bundle, *QUICK, "--json").json()
    monkeypatch.setattr(EngineStore, "measure", lambda *_: pytest.fail("measured again"))
    with opa_trt.load(bundle, clock=ticking) as session:
        for name in nodes:
            now = found["nodes"][name]["now"]
            assert [list(row) for row in session.profiles[name].ms] == now["ms"]


def test_json_is_one_object(call: Any, bundle: Path, nodes: list[str]) -> None:
    found = call("profile", bundle, *QUICK, "--backend", "torchscript", "--json").json()
    assert found["bundle"] == str(bundle)
    assert found["store"] == str(EngineStore().root)
    assert (found["kept"], found["threads"], found["left_out"]) == (True, 1, {})
    assert list(found["nodes"]) == nodes
    assert {node["backend"] for node in found["nodes"].values()} == {"torchscript"}
    assert found["nodes"][nodes[0]]["now"]["batches"] == [1, 8]


def test_other_threads_are_other_engines(call: Any, bundle: Path, nodes: list[str]) -> None:
    call("profile", bundle, *QUICK)
    found = call("profile", bundle, *QUICK, "--threads", 2, "--json").json()
    assert found["threads"] == 2
    assert found["nodes"][nodes[0]]["before"] is None
    engines = call("engines", "verify", "--json").json()
    assert engines["counts"]["usable"] == len(engines["engines"]) == len(nodes)
    assert all(engine["latencies_known"] for engine in engines["engines"])
    assert all(engine["verified"] for engine in engines["engines"])


def test_torch_has_the_targets_threads(call: Any, bundle: Path) -> None:
    torch.set_num_threads(2)
    call("profile", bundle, *QUICK)  # TorchScript would be measured with two
    assert torch.get_num_threads() == 1


def test_where_nothing_can_be_kept_it_says_so(
    call: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(atomic, "write_bytes", read_only)
    called = call("profile", bundle, *QUICK)
    assert called.code == 0
    assert "1 thread; not kept" in called.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seconds", 0), "--seconds"),
        (("--seconds", "nan"), "--seconds"),
        (("--threads", 0), "--threads"),
        (("--backend", "openvion"), "openvino"),
    ],
)
def test_bad_input_is_refused(
    call: Any, bundle: Path, arguments: tuple[object, ...], said: str
) -> None:
    called = call("profile", bundle, *arguments)
    assert called.code == 2
    assert said in called.err
    assert called.out == ""
    assert not EngineStore().root.exists()


def test_a_bundle_that_does_not_exist_is_refused(call: Any) -> None:
    called = call("profile", "nowhere.opa")
    assert called.code == 2
    assert "nowhere.opa" in called.err
