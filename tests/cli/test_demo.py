"""``opa-trt demo``, on a tiny recipe in place of the shipped one."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from opa_trt.builder import read_recipe
from opa_trt.bundle import Bundle
from opa_trt_cli.main import cli

DEADLINES = [500.0, 5_000.0, 50_000.0]
POLICIES = ["static-small", "static-large", "opa"]
WORDS = ("--groups", "5", "--backend", "torchscript", "--threads", "1")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def patched(patch: pytest.MonkeyPatch, recipe: Path) -> None:
    """The little recipe for the shipped one, and deadlines that do not depend on this machine."""
    patch.setattr("opa_trt.builder.read_recipe", lambda name: read_recipe(recipe))
    patch.setattr("opa_trt.evaluate.stream.choose_deadlines", lambda *a: list(DEADLINES))


@pytest.fixture
def demo(call: Any, digits_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``opa-trt demo`` of the little recipe."""
    patched(monkeypatch, digits_recipe)
    return lambda *arguments: call("demo", *WORDS, *arguments)


@dataclass(frozen=True)
class Ran:
    """What one demo wrote, and the folder that it was called in."""

    out: str
    err: str
    folder: Path

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.out))

    @property
    def results(self) -> list[dict[str, Any]]:
        return list(self.facts["results"])


@pytest.fixture(scope="module")
def ran(digits_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """``opa-trt demo --json``, once."""
    folder, threads = tmp_path_factory.mktemp("demo"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patched(patch, digits_recipe)
        patch.setenv("OPA_TRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(folder)
        result = CliRunner().invoke(cli, ["demo", *WORDS, "--json"])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return Ran(result.stdout, result.stderr, folder)


def test_the_demo_makes_a_bundle_and_a_picture(ran: Ran) -> None:
    assert names(ran.folder) == ["demo.opa", "demo.png"]
    assert Bundle(ran.folder / "demo.opa").manifest.backend == ran.facts["backend"] == "torchscript"


def test_the_picture_has_a_column_a_deadline(ran: Ran) -> None:
    with Image.open(ran.folder / "demo.png") as picture:
        picture.load()
        assert picture.width > 1000


def test_json_is_one_object_and_no_stage_is_told(ran: Ran) -> None:
    assert ran.facts["picture"] == "demo.png"
    assert "tails" not in ran.err


def test_there_is_a_result_for_every_deadline_and_policy(ran: Ran) -> None:
    found = [(result["deadline_ms"], result["policy"]) for result in ran.results]
    assert found == [(deadline, policy) for deadline in DEADLINES for policy in POLICIES]


@pytest.mark.parametrize("share", ["accuracy", "deadlines_met", "in_time_accuracy"])
def test_every_result_has_shares(ran: Ran, share: str) -> None:
    assert all(0 <= result[share] <= 1 for result in ran.results)


def test_every_result_has_latencies(ran: Ran) -> None:
    assert all(0 < result["p50_ms"] <= result["p99_ms"] for result in ran.results)


def test_every_result_says_who_answered(ran: Ran) -> None:
    for result in ran.results:
        assert sum(result["nodes"].values()) == ran.facts["groups"] == 5
        assert set(result["nodes"]) <= set(ran.facts["nodes"])


def test_the_routes_accuracies_are_told(ran: Ran) -> None:
    assert sorted(ran.facts["routes"]) == ["static-large", "static-small"]
    assert all(0 <= value <= 1 for value in ran.facts["routes"].values())


def test_the_demo_prints_a_table_and_what_is_next(demo: Any, here: Path) -> None:
    called = demo("--out", "other.opa", "--picture", "pictures/stream.png")
    assert called.code == 0
    rows = [line.split() for line in called.out.splitlines() if " ms " in line]
    assert [row[2] for row in rows if row[2] in POLICIES] == POLICIES * 3
    assert "picture: pictures/stream.png" in called.out
    assert "opa-trt show other.opa" in called.out
    assert names(here) == ["other.opa", "pictures"]


def test_too_few_groups_are_refused(call: Any, here: Path) -> None:
    called = call("demo", "--groups", 4)
    assert called.code == 2
    assert "x>=5" in called.err
    assert names(here) == []


def test_ctrl_c_ends_with_130(demo: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("opa_trt.builder.build", interrupted)
    called = demo()
    assert called.code == 130
    assert "Interrupted" in called.err
    assert names(here) == []


def test_an_unknown_backend_leaves_nothing(demo: Any, here: Path) -> None:
    called = demo("--backend", "torchscrpt")
    assert called.code == 2
    assert "did you mean 'torchscript'?" in called.err
    assert names(here) == []


def test_without_matplotlib_nothing_is_begun(
    demo: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*arguments: object, **options: object) -> None:
        pytest.fail("it was begun")

    monkeypatch.setattr("opa_trt.builder.build", begun)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    called = demo()
    assert called.code == 2
    assert "pip install 'opa-trt[plots]'" in called.err
    assert names(here) == []
