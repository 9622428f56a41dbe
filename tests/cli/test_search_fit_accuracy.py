"""``opa-trt search fit-accuracy``: measured, stopped, gone on with, drawn, and refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opa_trt.builder import accuracy_pairs
from opa_trt.search.accuracy_predictor import read_accuracy
from opa_trt.search.fit import FitSettings
from opa_trt.supernet import Supernet, save, space_from_dict
from opa_trt_cli.console import StageLines

Arguments = tuple[object, ...]
FILES = ["tiny.accuracy.safetensors", "tiny.accuracy.safetensors.pairs"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calibration images, and a fit of few epochs."""
    monkeypatch.setattr(accuracy_pairs, "CALIBRATION_IMAGES", 10)
    defaults = FitSettings.__init__.__defaults__
    assert defaults is not None
    monkeypatch.setattr(FitSettings.__init__, "__defaults__", ((8,), *defaults[1:-2], 5, 5))


@pytest.fixture
def arguments(recipe: Path, shared_photos: Path) -> Arguments:
    words = ("--data", shared_photos, "--archs", 20, "--threads", 1)
    return ("search", "fit-accuracy", recipe, *words)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C when so many archs are measured; -1 lets go."""
    advance = StageLines.advance

    def at(stop: int) -> None:
        def interrupted(self: StageLines, done: int, note: str = "") -> None:
            advance(self, done, note)
            if done == stop and note.endswith("%"):
                raise KeyboardInterrupt

        monkeypatch.setattr(StageLines, "advance", interrupted)

    return at


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(one: Path, other: Path) -> bool:
    left, right = read_accuracy(one), read_accuracy(other)
    pairs = zip(left.layers, right.layers, strict=True)
    return left.facts == right.facts and all(all(map(np.array_equal, *layers)) for layers in pairs)


# --- what it does -------------------------------------------------------------------------------


def test_it_writes_a_predictor_and_the_pairs(call: Any, arguments: Arguments, here: Path) -> None:
    assert call(*arguments).code == 0
    assert names(here) == FILES
    assert read_accuracy(here / FILES[0]).facts["recipe"] == "tiny"
    assert len((here / FILES[1]).read_text().splitlines()) == 21


def test_it_tells_the_stages_and_compares_with_baselines(call: Any, arguments: Arguments) -> None:
    called = call(*arguments)
    assert [line.split()[0] for line in called.err.splitlines()] == ["data", "measure", "fit"]
    table = [line.split("  ")[0] for line in called.out.splitlines()[1:5]]
    assert table == ["4 archs held out", "predictor", "the mean", "MACs alone"]
    assert "next: opa-trt search run" in called.out


def test_one_json_object(call: Any, arguments: Arguments) -> None:
    called = call(*arguments, "--json", "--images", 2, "--seed", 3)
    found = called.json()
    assert called.err == ""
    assert found["files"] == {"predictor": FILES[0], "pairs": FILES[1], "plot": None}
    assert (found["archs"], found["images"], found["seed"]) == (20, 2, 3)
    assert found["seconds_per_arch"] > 0
    assert {"rmse", "r2", "tau"} == set(found["predictor"])
    assert "NaN" not in called.out


def test_it_draws(call: Any, arguments: Arguments, here: Path) -> None:
    assert call(*arguments, "--plot", "p.png").code == 0
    with Image.open(here / "p.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


def test_what_it_writes_can_be_searched_with(call: Any, arguments: Arguments, here: Path) -> None:
    call(*arguments)
    words = ("--accuracy", FILES[0], "--latency", "macs", "--targets", "1G", "--json")
    called = call("search", "run", *words, "--generations", 2, "--population", 8)
    assert called.code == 0, called.err
    assert json.loads(called.out)[0]["latency"] <= 1e9


def test_twice_it_gives_the_same(call: Any, arguments: Arguments, here: Path) -> None:
    for name in ("a", "b"):
        call(*arguments, "--out", name)
    assert same_named(here, "a", "b")


def same_named(here: Path, one: str, other: str) -> bool:
    for name in (one, other):
        (here / name).rename(here / f"{name}.safetensors")
    return same(here / f"{one}.safetensors", here / f"{other}.safetensors")


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(
    call: Any, arguments: Arguments, here: Path, interrupt: Callable[[int], None]
) -> None:
    call(*arguments, "--out", "whole.safetensors")
    interrupt(8)
    called = call(*arguments)
    assert called.code == 130
    assert called.err.splitlines()[-1].startswith("Interrupted. The same command goes on")
    assert not (here / FILES[0]).exists()
    interrupt(-1)
    assert call(*arguments).code == 0
    assert same(here / FILES[0], here / "whole.safetensors")


def test_weights_of_another_place(
    call: Any, arguments: Arguments, recipe: Path, altered: Any, here: Path
) -> None:
    lost = altered('checkpoint = "tiny.', 'checkpoint = "gone.')
    words = ("search", "fit-accuracy", lost, *arguments[3:])
    assert call(*words).code == 2
    assert call(*words, "--checkpoint", recipe.with_suffix(".safetensors")).code == 0


def test_bad_images_are_left_out_if_asked(call: Any, arguments: Arguments, photos: Path) -> None:
    (photos / "train" / "cat" / "3.png").write_bytes(b"")
    words = (*arguments, "--data", photos)
    assert call(*words).code == 2
    assert call(*words, "--skip-bad-images").code == 0


# --- bad input ----------------------------------------------------------------------------------


@pytest.fixture
def refused(call: Any, here: Path) -> Callable[..., str]:
    """Calls it, checks that it ends as bad input does, and returns what it wrote to stderr."""

    def run(*arguments: object) -> str:
        before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
        called = call(*arguments)
        assert called.code == 2, called.err
        assert called.out == ""
        assert "Traceback" not in called.err
        assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
        return str(called.err)

    return run


def test_too_few_archs(refused: Callable[..., str], arguments: Arguments) -> None:
    error = refused(*arguments, "--archs", 19)
    assert "19 archs" in error
    assert "at least 20" in error


def test_no_folder(refused: Callable[..., str], recipe: Path, arguments: Arguments) -> None:
    assert "--data" in refused("search", "fit-accuracy", recipe, "--archs", 20)
    assert "gone does not exist" in refused(*arguments, "--data", "gone")


def test_weights_of_another_space(
    refused: Callable[..., str], arguments: Arguments, here: Path
) -> None:
    space = space_from_dict({"name": "mobilenet_v3", "classes": 3, "stage_widths": [8, 8],
                             "stage_strides": [1, 2], "stage_act": ["relu", "relu"],
                             "stage_squeeze_excite": [False, False]})  # fmt: skip
    save(Supernet(space), here / "w.safetensors")
    error = refused(*arguments, "--checkpoint", "w.safetensors")
    assert "disagree on the space's" in error
    assert "Remedy" in error


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_place_that_cannot_be_written(
    refused: Callable[..., str], arguments: Arguments, recipe: Path, here: Path, option: str
) -> None:
    assert "is a folder" in refused(*arguments, option, here)
    assert "below a file" in refused(*arguments, option, recipe / "deeper" / "x")


def test_matplotlib_is_asked_for_before_anything_is_computed(
    refused: Callable[..., str], arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = refused(*arguments, "--plot", "p.png")
    assert "pip install 'opa-trt[plots]'" in error
    assert "measure" not in error


def test_pairs_of_another_run(
    call: Any, refused: Callable[..., str], arguments: Arguments, here: Path
) -> None:
    call(*arguments)
    error = refused(*arguments, "--seed", 1)
    assert "pairs of another run (other seed)" in error
    assert "delete it" in error
