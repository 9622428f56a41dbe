"""``opa-trt build`` and ``opa-trt show``: a bundle is made, interrupted, taken up, looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opa_trt.builder import STAGES, Recipe
from opa_trt.bundle import Bundle
from opa_trt.tree import PlanEntry
from opa_trt_cli.console import StageLines

Arguments = tuple[object, ...]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def arguments(recipe: Path, shared_photos: Path) -> Arguments:
    """The tiny build, in the words of the command line."""
    return ("build", recipe, "--data", shared_photos, "--out", "tiny.opa", "--backend", "null")


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Ctrl-C as a stage finishes; an empty name lets go."""
    finish = StageLines.finish

    def at(stop: str) -> None:
        def interrupted(self: StageLines, stage: str, found: str) -> None:
            finish(self, stage, found)
            if stage == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(StageLines, "finish", interrupted)

    return at


# --- build --------------------------------------------------------------------------------------


def test_build_makes_a_bundle_and_nothing_else(call: Any, arguments: Arguments, here: Path) -> None:
    called = call(*arguments)
    assert called.code == 0
    assert names(here) == ["tiny.opa"]
    assert Bundle(here / "tiny.opa").manifest.backend == "null"


def test_build_tells_every_stage_on_stderr_and_what_is_next_on_stdout(
    call: Any, arguments: Arguments
) -> None:
    called = call(*arguments)
    told = [line.split()[0] for line in called.err.splitlines() if line.startswith(" ")]
    assert told == [*STAGES, "pack"]
    assert "opa-trt show tiny.opa" in called.out


def test_build_writes_one_json_object_and_is_quiet(call: Any, arguments: Arguments) -> None:
    called = call(*arguments, "--json")
    found = called.json()
    assert (found["bundle"], found["backend"], found["nodes"]) == ("tiny.opa", "null", 4)
    assert sorted(found["report"]) == sorted(STAGES)
    assert "tails" not in called.err


def test_the_bundle_is_named_after_the_recipe(
    call: Any, recipe: Path, shared_photos: Path, here: Path
) -> None:
    call("build", recipe, "--data", shared_photos, "--backend", "null")
    assert names(here) == ["tiny.opa"]


def test_build_takes_weights_of_another_place(
    call: Any, arguments: Arguments, altered: Any, recipe: Path, here: Path
) -> None:
    lost = altered("tiny.safetensors", "lost.safetensors")
    weights = recipe.with_suffix(".safetensors")
    assert call("build", lost, *arguments[2:], "--checkpoint", weights).code == 0
    assert Bundle(here / "tiny.opa").manifest.recipe["checkpoint"] == "tiny.safetensors"


def test_build_takes_another_number_of_threads(
    call: Any, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def stopped(recipe: Recipe, *others: object, **options: object) -> None:
        asked.append(recipe.compile.threads)
        raise KeyboardInterrupt

    monkeypatch.setattr("opa_trt.builder.build", stopped)
    call(*arguments, "--threads", 2)
    assert asked == [2]


def test_build_leaves_out_bad_images_if_asked(
    call: Any, arguments: Arguments, photos: Path, here: Path
) -> None:
    bad = photos / "train" / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    called = call(*arguments, "--data", photos, "--skip-bad-images")
    assert called.code == 0
    assert "1 unreadable" in called.err


def test_ctrl_c_says_how_to_go_on(
    call: Any, arguments: Arguments, here: Path, interrupt: Callable[[str], None]
) -> None:
    interrupt("tails")
    called = call(*arguments)
    assert called.code == 130
    assert "The same command goes on" in called.err.splitlines()[-1]
    assert names(here) == ["tiny.opa.work"]


def test_the_same_command_goes_on(
    call: Any, arguments: Arguments, here: Path, interrupt: Callable[[str], None]
) -> None:
    interrupt("tails")
    call(*arguments)
    interrupt("")
    called = call(*arguments)
    assert called.code == 0
    found = [line.split()[0] for line in called.err.splitlines() if "(found before)" in line]
    assert found == ["data", "supernet", "pioneer", "tails"]
    assert names(here) == ["tiny.opa"]


# --- show ---------------------------------------------------------------------------------------


def test_show_tells_what_is_in_a_bundle(call: Any, bundle: Path) -> None:
    called = call("show", bundle)
    assert called.code == 0
    assert "tiny, built by opa-trt" in called.out
    assert "images 16×16 uint8, 3 classes" in called.out


def test_show_lists_every_route(call: Any, bundle: Path) -> None:
    lines = call("show", bundle).out.splitlines()
    routes = [line.split("  ")[0] for line in lines if line.startswith("pioneer")]
    assert routes == ["pioneer", *(f"pioneer → tail{i}" for i in (1, 2, 3))]


def test_show_tells_what_every_stage_found(call: Any, bundle: Path) -> None:
    lines = call("show", bundle).out.splitlines()
    told = [line.split()[0] for line in lines if line.startswith(" ") and line.strip()]
    assert [stage for stage in told if stage in STAGES] == list(STAGES)


def test_show_prints_who_runs_what_and_what_the_contest_measured(
    call: Any, toy: Any, tmp_path: Path
) -> None:
    parts = (PlanEntry("openvino", "fp32", 1, 4), PlanEntry("torchscript", "fp32", 5, 8))
    ms = {"tiny": {1: {"openvino": 0.25, "torchscript": 0.5}, 8: {"openvino": 2.0}}}
    plan = dict.fromkeys(toy.forms, parts)
    path = toy.pack(tmp_path / "t.opa", plan=plan, report={"compile": {"line": "", "ms": ms}})
    rows = [line.split() for line in call("show", path).out.splitlines()]
    assert ["tiny", "1", "openvino", "0.25", "0.50"] in rows
    assert ["tiny", "8", "torchscript", "2.00"] in rows
    found = call("show", path, "--json").json()
    assert found["plan"]["tiny"][1]["min_batch"] == 5
    assert found["contest_ms"]["tiny"]["1"]["openvino"] == 0.25


def test_show_leaves_out_segments_that_were_compared_and_not_kept(
    call: Any, toy: Any, tmp_path: Path
) -> None:
    """A build of shallow alternatives compares all of them, and keeps those on its routes."""
    ms = {"tiny": {1: {"null": 0.25}}, "left": {1: {"null": 0.75}}}
    path = toy.pack(tmp_path / "t.opa", report={"compile": {"line": "", "ms": ms}})
    called = call("show", path)
    assert called.code == 0
    assert "0.25" in called.out
    assert "0.75" not in called.out


def test_show_verifies_a_strangers_bundle_without_its_code(
    call: Any, bundle: Path, known_machine: None
) -> None:
    found = call("show", bundle, "--verify", "--untrusted", "--json").json()["verified"]
    names = {row["backend"].partition(":")[0] for row in found}
    assert names
    assert names <= {"openvino", "onnxruntime"}


def test_show_writes_one_json_object(call: Any, bundle: Path) -> None:
    found = call("show", bundle, "--json").json()
    assert found["classes"] == ["cat", "dog", "owl"]
    assert [node["name"] for node in found["nodes"]] == ["pioneer", "tail1", "tail2", "tail3"]
    assert found["verified"] is None


def test_show_says_which_systems_a_bundle_has(call: Any, toy: Any, tmp_path: Path) -> None:
    whole = replace(toy.nodes[0], name="all", successors=(), system="whole")
    canary = {key.replace("pioneer/", "all/"): value for key, value in toy.canary.items()}
    nodes, both = (*toy.nodes, whole), {**canary, **toy.canary}
    path = toy.pack(tmp_path / "t.opa", nodes=nodes, canary=both)
    assert "systems: opa (5 routes), whole (1 routes)" in call("show", path).out
    found = call("show", path, "--json").json()
    assert found["systems"] == {"opa": 5, "whole": 1}
    assert [node["system"] for node in found["nodes"]] == ["opa"] * 5 + ["whole"]


def test_show_tells_the_resolutions_apart(call: Any, toy: Any, tmp_path: Path) -> None:
    path = toy.pack(tmp_path / "one.opa")
    rows = [line.split() for line in call("show", path).out.splitlines()]
    assert ["pioneer", "→", "small", "16", "0.00", "60.0%"] in rows
    larger = replace(toy.nodes[0], name="all", successors=(), resolution=24)
    nodes = (*toy.nodes, larger)
    canary = {key.replace("pioneer/", "all/"): value for key, value in toy.canary.items()}
    path = toy.pack(tmp_path / "two.opa", nodes=nodes, canary={**canary, **toy.canary})
    called = call("show", path).out
    assert "networks at 16 and 24 px" in called
    assert ["all", "24", "0.00", "40.0%"] in [line.split() for line in called.splitlines()]
    found = call("show", path, "--json").json()
    assert [node["resolution"] for node in found["nodes"]] == [16] * 5 + [24]


@pytest.mark.usefixtures("known_machine")
def test_show_verifies_every_engine(call: Any, bundle: Path) -> None:
    called = call("show", bundle, "--verify")
    assert called.code == 0
    assert "verified on torchscript: 4 engines agree" in called.out


@pytest.mark.usefixtures("known_machine")
def test_verified_json_has_every_nodes_difference(call: Any, bundle: Path) -> None:
    (found,) = call("show", bundle, "--verify", "--json").json()["verified"]
    assert list(found["nodes"]) == ["pioneer", "tail1", "tail2", "tail3"]
    assert 0 <= found["largest_difference"] <= found["tolerance"]


def test_show_changes_nothing(call: Any, bundle: Path, here: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.opa"
    shutil.copytree(bundle, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    call("show", copy, "--verify")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert names(here) == []
