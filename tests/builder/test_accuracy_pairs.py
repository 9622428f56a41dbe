"""Archs measured and kept, and the predictor of a whole recipe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from opa_trt.builder import Recipe, accuracy_pairs, measured
from opa_trt.builder.accuracy import AccuracySettings, FittedAccuracy, fit_accuracy
from opa_trt.builder.accuracy_pairs import held_out_images
from opa_trt.builder.outputs import check_output
from opa_trt.builder.pairs_file import PairsFile
from opa_trt.builder.sources import load_splits, source_of
from opa_trt.errors import CheckpointError, ConfigError, DataError, RecipeError
from opa_trt.progress import Progress
from opa_trt.search.accuracy_predictor import read_accuracy
from opa_trt.search.fit import FitSettings
from opa_trt.supernet import Supernet, load, save
from opa_trt.supernet.calibration import calibrate
from opa_trt.training.batches import Source
from opa_trt.training.evaluation import batches, share_right

SETTINGS = AccuracySettings(archs=20, images=40, fit=FitSettings(hidden=(16,), most_epochs=5))
CALIBRATED_ON = 20

Fit = Callable[..., FittedAccuracy]


class Stopping(Progress):
    """Remembers lines; interrupts when ``at`` archs are done."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.stage, self.lines = at, "", dict[str, str]()

    def start(self, stage: str, total: int | None = None) -> None:
        self.stage = stage

    def advance(self, done: int, note: str = "") -> None:
        if self.stage == "measure" and done == self.at and note:
            raise KeyboardInterrupt

    def finish(self, stage: str, found: str) -> None:
        self.lines[stage] = found


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_pairs, "CALIBRATION_IMAGES", CALIBRATED_ON)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "p.safetensors"


@pytest.fixture
def pairs(out: Path) -> Path:
    return out.with_name(f"{out.name}.pairs")


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    return make_recipe()


@pytest.fixture
def run(recipe: Recipe, out: Path) -> Fit:
    """Fits the tiny recipe; keywords replace arguments or settings."""

    def fit(place: Path = out, recipe: Recipe = recipe, at: int = -1, **changes: Any) -> Any:
        progress = changes.pop("progress", Stopping(at))
        return fit_accuracy(recipe, place, settings=replace(SETTINGS, **changes), progress=progress)

    return fit


@pytest.fixture(scope="module")
def finished(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is never stopped. Not to be changed."""
    folder, threads = tmp_path_factory.mktemp("finished"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy_pairs, "CALIBRATION_IMAGES", CALIBRATED_ON)
        fit_accuracy(make_recipe(), folder / "p.safetensors", settings=SETTINGS)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> None:
    """Puts the files of the finished run where this test's own run would."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every arch that is measured, not read."""
    found: list[Any] = []
    really = accuracy_pairs.measured_accuracy

    def spy(supernet: Any, arch: Any, *rest: Any) -> float:
        found.append(arch)
        return really(supernet, arch, *rest)

    monkeypatch.setattr(accuracy_pairs, "measured_accuracy", spy)
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(one: Path, other: Path) -> bool:
    left, right = load_file(one), load_file(other)
    facts = [read_accuracy(path).facts for path in (one, other)]
    equal = all(np.array_equal(left[key], right[key]) for key in left)
    return left.keys() == right.keys() and equal and facts[0] == facts[1]


# --- measuring ----------------------------------------------------------------------------------


def test_an_arch_is_calibrated_and_measured_on_images_held_out(
    done: None, recipe: Recipe, pairs: Path
) -> None:
    splits, source = load_splits(recipe, None), source_of(recipe)
    checked = held_out_images(splits.fit, source, SETTINGS.images, SETTINGS.seed)
    path = recipe.checkpoint_path()
    assert path is not None
    supernet = load(path)
    for pair in PairsFile(pairs, lines(pairs)[0]["run"]).resume()[::7]:
        side, module = pair.arch.resolution, supernet.extract(pair.arch)
        calibrate(module, source.inputs(splits.train, CALIBRATED_ON, 200, side))
        assert pair.accuracy == share_right(module, batches(source, checked, side))


def test_test_images_are_never_used(
    done: None,
    run: Fit,
    recipe: Recipe,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    splits = load_splits(recipe, None)
    without = replace(splits, test=splits.test.select([]))
    monkeypatch.setattr(measured, "load_splits", lambda *a, **k: without)
    run(tmp_path / "other.safetensors")
    assert same(out, tmp_path / "other.safetensors")


def test_inputs_are_made_once_a_resolution(run: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    really = Source.inputs

    def spy(self: Source, *arguments: Any, **more: Any) -> Any:
        made.append(arguments[3])
        return really(self, *arguments, **more)

    monkeypatch.setattr(Source, "inputs", spy)
    run()
    assert made == [20, 16]


def test_images_are_drawn_evenly_and_again_where_they_are_degraded(recipe: Recipe) -> None:
    images, source = load_splits(recipe, None).fit, source_of(recipe)
    count = 2 * len(images)
    drawn = held_out_images(images, source, count, 0)
    assert len(drawn) == count
    for label in range(10):
        assert (drawn.labels == label).sum() == 2 * (images.labels == label).sum()
    plain = replace(source, degradations=())
    assert len(held_out_images(images, plain, count, 0)) == len(images)
    assert len(held_out_images(images, plain, 30, 0)) == 30


def test_no_images_held_out(recipe: Recipe) -> None:
    none = load_splits(recipe, None).fit.select([])
    with pytest.raises(DataError, match="no images are held out"):
        held_out_images(none, source_of(recipe), 10, 0)


# --- the pairs on disk --------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 7, 20])
def test_stopped_and_called_again_it_gives_the_same(
    run: Fit, out: Path, pairs: Path, finished: Path, measurements: list[Any], at: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(at=at)
    assert not out.exists()
    assert len(lines(pairs)) == 1 + at
    run()
    assert len(measurements) == len(set(measurements)) == 20
    assert same(out, finished / "p.safetensors")


def test_a_half_written_line_is_dropped(
    done: None, run: Fit, pairs: Path, measurements: list[Any], tmp_path: Path
) -> None:
    whole = pairs.read_bytes()
    pairs.write_bytes(whole[:-30])
    run(tmp_path / "p.safetensors")
    assert len(measurements) == 1
    assert len(lines(pairs)) == 21


@pytest.mark.parametrize("kept", [0, 9])
def test_a_half_written_first_line_is_begun_again(
    done: None, run: Fit, pairs: Path, kept: int
) -> None:
    first = pairs.read_bytes()
    pairs.write_bytes(first[:kept])
    run()
    assert lines(pairs)[0]["format"] == "opa_trt.accuracy_pairs"
    assert len(lines(pairs)) == 21


def test_pairs_are_measured_once(done: None, run: Fit, out: Path, measurements: list[Any]) -> None:
    before = out.read_bytes()
    out.unlink()
    run()
    assert measurements == []
    assert len(out.read_bytes()) == len(before)


def test_more_archs_go_on_from_fewer(
    done: None, run: Fit, out: Path, tmp_path: Path, measurements: list[Any]
) -> None:
    run(archs=30, place=tmp_path / "whole.safetensors")
    measurements.clear()
    run(archs=30)
    assert len(measurements) == 10
    assert same(out, tmp_path / "whole.safetensors")


@pytest.mark.parametrize(
    ("change", "names"), [({"seed": 1}, "other seed"), ({"images": 50}, "other images")]
)
def test_pairs_of_another_run_are_refused(
    done: None, run: Fit, pairs: Path, change: dict[str, Any], names: str
) -> None:
    before = pairs.read_bytes()
    with pytest.raises(CheckpointError, match=names) as caught:
        run(**change)
    assert str(pairs) in caught.value.received
    assert "delete it" in caught.value.remedy
    assert pairs.read_bytes() == before


def test_pairs_of_other_weights_are_refused(
    done: None, run: Fit, make_recipe: Callable[..., Recipe], weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "tiny.safetensors").write_bytes((weights / "tiny.safetensors").read_bytes())
    moved = replace(make_recipe(), folder=folder)
    run(recipe=moved)
    other = make_recipe(space={"classes": 10}, seed=4)
    with pytest.raises(CheckpointError, match="_images"):
        run(recipe=other)


@pytest.mark.parametrize(
    "text", ["my notes", "my notes\n", "[1]\n", "[" * 100_000 + "\n", '{"format": "x"}\n']
)
def test_a_file_that_is_not_ours_stays(run: Fit, pairs: Path, text: str) -> None:
    pairs.write_text(text)
    with pytest.raises(CheckpointError, match="no file of accuracy pairs"):
        run()
    assert pairs.read_text() == text


@pytest.mark.parametrize(
    "line", ["{}", "nonsense", "[" * 100_000, '{"arch": 1, "accuracy": 1, "seconds": 1}']
)
def test_a_damaged_line_is_named(done: None, run: Fit, pairs: Path, line: str) -> None:
    text = pairs.read_text().splitlines()
    text[2] = line
    pairs.write_text("\n".join(text) + "\n")
    with pytest.raises(CheckpointError, match="line 3 of") as caught:
        run()
    assert str(pairs) in caught.value.received
    assert "delete that line" in caught.value.remedy


@pytest.mark.parametrize("accuracy", [-0.1, 1.01, 87, float("nan"), True, None, "0.5", [0.5]])
def test_an_accuracy_that_is_no_share_is_a_damaged_line(
    done: None, run: Fit, pairs: Path, accuracy: Any
) -> None:
    text = pairs.read_text().splitlines()
    text[4] = json.dumps(json.loads(text[4]) | {"accuracy": accuracy})
    pairs.write_text("\n".join(text) + "\n")
    with pytest.raises(CheckpointError, match="line 5 of") as caught:
        run()
    assert str(pairs) in caught.value.received


# --- the predictor ------------------------------------------------------------------------------


def test_what_is_written_says_how_it_was_made(run: Fit, out: Path) -> None:
    found = run()
    facts = read_accuracy(out).facts
    assert facts == found.predictor.facts
    assert facts["recipe"] == "tiny"
    assert len(facts["weights"]) == 64
    assert (facts["archs"], facts["images"], facts["images_held_out"]) == (20, 40, 397)
    assert facts["pairs"] == {"fitted": 14, "choosing": 2, "held_out": 4}
    assert facts["accuracy"]["least"] <= facts["accuracy"]["mean"] <= facts["accuracy"]["greatest"]
    assert {"rmse", "r2", "tau"} == set(facts["predictor"]) == set(facts["mean_alone"])
    assert "tau" in facts["macs_alone"]


def test_the_held_out_archs_come_with_it(run: Fit, recipe: Recipe, pairs: Path) -> None:
    found = run()
    accuracies = [line["accuracy"] for line in lines(pairs)[1:]]
    assert set(found.measured) <= set(accuracies)
    assert found.measured.shape == found.predicted.shape == found.macs.shape == (4,)
    space = recipe.make_space()
    assert space.macs(space.smallest()) <= found.macs.min()


def test_the_stages_are_told(run: Fit) -> None:
    heard = Stopping()
    run(progress=heard)
    assert list(heard.lines) == ["data", "measure", "fit"]
    assert heard.lines["measure"].startswith("20 archs on 40 images each, ")


def test_twice_it_gives_the_same(run: Fit, out: Path, finished: Path) -> None:
    run()
    assert same(out, finished / "p.safetensors")


def small_recipe(make_recipe: Callable[..., Recipe], folder: Path, depths: list[int]) -> Recipe:
    """A recipe of two stages with few choices, and weights for it."""
    space = {
        "resolutions": [16],
        "depth_choices": depths,
        "kernel_choices": [3],
        "stage_widths": [8, 16],
        "stage_strides": [1, 2],
        "stage_act": ["relu", "relu"],
        "stage_squeeze_excite": [False, False],
    }
    recipe = replace(make_recipe(space=space), folder=folder)
    save(Supernet(recipe.make_space(), seed=1), folder / "tiny.safetensors")
    return recipe


def test_a_space_with_fewer_archs_is_measured_whole(
    run: Fit, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    heard, small = Stopping(), small_recipe(make_recipe, tmp_path, [1, 2])
    found = run(recipe=small, archs=50, progress=heard)
    assert found.predictor.facts["archs"] == 36  # 2 of depth 1, 4 of depth 2, in both stages
    assert heard.lines["measure"].startswith("all 36 archs of the space on 40 images each")


# --- bad input ----------------------------------------------------------------------------------


def test_too_few_archs(run: Fit, pairs: Path) -> None:
    with pytest.raises(ConfigError, match="19 archs"):
        run(archs=19)
    assert not pairs.exists()


def test_too_few_archs_in_the_space(
    run: Fit, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="4 archs to fit"):
        run(recipe=small_recipe(make_recipe, tmp_path, [1]))


def test_weights_of_another_space(run: Fit, make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(CheckpointError, match="disagree on the space's head_width"):
        run(recipe=make_recipe(space={"head_width": 24}))


def test_no_weights(run: Fit, make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(CheckpointError, match="names no checkpoint"):
        run(recipe=make_recipe(checkpoint=""))


def test_images_of_other_classes(run: Fit, make_recipe: Callable[..., Recipe]) -> None:
    two = make_recipe(checkpoint="two.safetensors", space={"classes": 2})
    with pytest.raises(RecipeError, match="the images have 10 classes"):
        run(recipe=two)


def test_the_weights_are_not_overwritten(run: Fit, recipe: Recipe, weights: Path) -> None:
    before = (weights / "tiny.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="holds the weights"):
        run(weights / "tiny.safetensors")
    assert (weights / "tiny.safetensors").read_bytes() == before


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for place, says in ((tmp_path, "is a folder"), (tmp_path / "file" / "a" / "b", "below a file")):
        with pytest.raises(ConfigError, match=says):
            check_output(place)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_output(tmp_path / "new" / "p.safetensors")


def test_a_place_in_a_new_folder(run: Fit, tmp_path: Path) -> None:
    place = tmp_path / "new" / "deeper" / "p.safetensors"
    run(place)
    assert sorted(path.name for path in place.parent.iterdir()) == [
        place.name,
        f"{place.name}.pairs",
    ]
