"""Bad input: exit status 2, what was received and expected, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opa_trt.supernet import Supernet, save, space_from_dict

Tree = dict[str, bytes | None]


def everything(folder: Path) -> Tree:
    """Every path below a folder, and what the files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class World:
    """What commands are called on; ``root`` holds all of it, and nothing in it may change."""

    root: Path
    here: Path
    photos: Path
    recipe: Path
    bundle: Path


@pytest.fixture
def world(here: Path, photos: Path, altered: Any, bundle: Path, tmp_path: Path) -> World:
    shutil.copytree(bundle, tmp_path / "tiny.opa")
    for path in (tmp_path / "tiny.opa").rglob("*"):
        path.chmod(0o755)
    return World(tmp_path, here, photos, altered("seed = 1", "seed = 1"), tmp_path / "tiny.opa")


@pytest.fixture
def refused(call: Any, world: World, known_machine: None) -> Iterator[Callable[..., str]]:
    """Calls a command, and checks that it ends as bad input does: what it wrote to stderr."""

    def run(*arguments: object) -> str:
        before = everything(world.root)
        called = call(*arguments)
        assert called.code == 2, called.err
        assert called.out == ""
        assert "Traceback" not in called.err
        assert everything(world.root) == before
        error: str = called.err
        return error

    yield run
    assert everything(world.here) == {}


def parts(error: str) -> set[str]:
    """Which parts a message has."""
    lines = error.strip().splitlines()
    labels = {"Error:": "received", "  Expected  ": "expected", "  Remedy    ": "remedy"}
    return {name for line in lines for label, name in labels.items() if line.startswith(label)}


# --- folders of images --------------------------------------------------------------------------

WORDS: dict[str, tuple[str, ...]] = {
    "build": ("--backend", "null", "--out", "out.opa"),
    "train": ("--steps", "6", "--out", "out.safetensors"),
}


def without_folder(photos: Path) -> None:
    shutil.rmtree(photos)


def empty(photos: Path) -> None:
    shutil.rmtree(photos)
    photos.mkdir()


def without_train(photos: Path) -> None:
    shutil.rmtree(photos / "train")


def without_test(photos: Path) -> None:
    shutil.rmtree(photos / "test")


def one_class(photos: Path) -> None:
    for part in ("train", "test"):
        for label in ("dog", "owl"):
            shutil.rmtree(photos / part / label)


def empty_class(photos: Path) -> None:
    shutil.rmtree(photos / "train" / "dog")
    (photos / "train" / "dog").mkdir()


def unknown_class_in_test(photos: Path) -> None:
    (photos / "test" / "dog").rename(photos / "test" / "wolf")


def a_file(photos: Path) -> None:
    shutil.rmtree(photos)
    photos.write_text("no folder", encoding="utf-8")


FOLDERS: dict[Callable[[Path], None], str] = {
    without_folder: "does not exist",
    empty: "has no folder 'train'",
    without_train: "has no folder 'train'",
    without_test: "neither a folder 'test' nor 'val'",
    one_class: "has 1 class folder ('cat'); at least 2 are needed",
    empty_class: "has no images",
    unknown_class_in_test: "'wolf'",
    a_file: "is not a folder",
}


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize(
    ("change", "says"), FOLDERS.items(), ids=[change.__name__ for change in FOLDERS]
)
def test_a_folder_that_cannot_be_used(
    refused: Callable[..., str],
    world: World,
    command: str,
    change: Callable[[Path], None],
    says: str,
) -> None:
    change(world.photos)
    error = refused(command, world.recipe, "--data", world.photos, *WORDS[command])
    assert says in error
    assert parts(error) == {"received", "expected", "remedy"}


@pytest.mark.parametrize("command", WORDS)
def test_no_folder_where_one_is_needed(
    refused: Callable[..., str], world: World, command: str
) -> None:
    error = refused(command, world.recipe, *WORDS[command])
    assert "--data" in error
    assert parts(error) == {"received", "expected", "remedy"}


@pytest.mark.parametrize("command", WORDS)
def test_another_number_of_classes(refused: Callable[..., str], world: World, command: str) -> None:
    for part in ("train", "test"):
        shutil.rmtree(world.photos / part / "owl")
    error = refused(command, world.recipe, "--data", world.photos, *WORDS[command])
    assert "the images have 2 classes" in error
    assert "classes = 2" in error


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize("size", [0, 60], ids=["empty", "truncated"])
def test_a_picture_that_cannot_be_read_is_named(
    refused: Callable[..., str], world: World, command: str, size: int
) -> None:
    bad = world.photos / "train" / "owl" / "7.png"
    bad.write_bytes(bad.read_bytes()[:size])
    error = refused(command, world.recipe, "--data", world.photos, *WORDS[command])
    assert str(bad) in error
    assert "--skip-bad-images" in error
    assert parts(error) == {"received", "expected", "remedy"}


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", WORDS)
def test_a_recipe_that_does_not_exist(refused: Callable[..., str], command: str) -> None:
    error = refused(command, "digist", *WORDS[command])
    assert "unknown recipe 'digist'" in error
    assert "did you mean 'digits'?" in error
    assert parts(error) == {"received", "expected", "remedy"}


@pytest.mark.parametrize("command", WORDS)
def test_a_recipe_file_that_does_not_exist(refused: Callable[..., str], command: str) -> None:
    error = refused(command, "my/recipe.toml", *WORDS[command])
    assert "my/recipe.toml does not exist" in error
    assert "digits" in error


RECIPES: dict[str, tuple[str, str, str]] = {
    "unknown key": ("group_size = 10", "group_sise = 10", "did you mean 'fit.group_size'?"),
    "unknown section": ("[fit]", "[fitt]", "did you mean 'fit'?"),
    "ill-typed": ("candidates = 4", 'candidates = "four"', "tails.candidates is 'four'"),
    "impossible": ("max_batch = 8", "max_batch = 0", "compile.max_batch = 0"),
    "not a number": ("seconds = 0.001", "seconds = nan", "measure.seconds = nan"),
    "unknown space parameter": ("stem_width", "stem_witdh", "did you mean 'stem_width'?"),
    "unknown source": ('source = "folder"', 'source = "web"', "data.source = 'web'"),
    "no TOML": ("[fit]", "[fit", "is not TOML"),
}


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize(("old", "new", "says"), RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_that_cannot_be_read(
    refused: Callable[..., str],
    world: World,
    altered: Any,
    command: str,
    old: str,
    new: str,
    says: str,
) -> None:
    altered(old, new)
    error = refused(command, world.recipe, "--data", world.photos, *WORDS[command])
    assert says in error
    assert "received" in parts(error)
    assert "tiny" in error


BUILDS: dict[str, tuple[str, str, str]] = {
    "kernel": ("kernel_size = 3\n", "kernel_size = 4\n", "kernel size in stage 1 is 4"),
    "depth": ("depth = 1\n", "depth = 5\n", "depth of stage 1 is 5"),
    "ratio": ("expand_ratio = 1\n", "expand_ratio = 3\n", "expand ratio in stage 1 is 3"),
    "resolution": (
        "resolutions = [16]\ndepth = 1\n", "resolutions = [15]\ndepth = 1\n", "resolutions = [15]",
    ),
    "all stages": ("stages = 2\n", "stages = 3\n", "pioneer.stages = 3"),
    "another space": ("head_width = 16\nf", "head_width = 24\nf", "disagree on the space's"),
    "no checkpoint": ('checkpoint = "tiny.', 'checkpoint = "gone.', "gone.safetensors does not"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "says"), BUILDS.values(), ids=BUILDS.keys())
def test_a_recipe_that_cannot_be_built(
    refused: Callable[..., str], world: World, altered: Any, old: str, new: str, says: str
) -> None:
    altered(old, new)
    error = refused("build", world.recipe, "--data", world.photos, *WORDS["build"])
    assert says in error
    assert {"received", "expected"} <= parts(error)


def test_a_checkpoint_that_does_not_exist(refused: Callable[..., str], world: World) -> None:
    words = ("--data", world.photos, "--checkpoint", "gone.safetensors", *WORDS["build"])
    error = refused("build", world.recipe, *words)
    assert "gone.safetensors does not exist" in error
    assert parts(error) == {"received", "expected", "remedy"}


def test_a_checkpoint_that_is_none(refused: Callable[..., str], world: World) -> None:
    (world.root / "w.safetensors").write_bytes(b"no tensors")
    words = ("--data", world.photos, "--checkpoint", world.root / "w.safetensors")
    assert "not a readable safetensors" in refused("build", world.recipe, *words, *WORDS["build"])


def test_a_checkpoint_of_another_space(refused: Callable[..., str], world: World) -> None:
    space = space_from_dict({"name": "mobilenet_v3", "classes": 3, "stage_widths": [8, 8],
                             "stage_strides": [1, 2], "stage_act": ["relu", "relu"],
                             "stage_squeeze_excite": [False, False]})  # fmt: skip
    save(Supernet(space), world.root / "w.safetensors")
    words = ("--data", world.photos, "--checkpoint", world.root / "w.safetensors")
    error = refused("build", world.recipe, *words, *WORDS["build"])
    assert "disagree on the space's" in error
    assert parts(error) == {"received", "expected", "remedy"}


@pytest.mark.parametrize("name", ["torchscrpt", "tensorflow"])
def test_build_with_an_unknown_backend(
    refused: Callable[..., str], world: World, name: str
) -> None:
    words = ("--data", world.photos, "--out", "out.opa", "--backend", name)
    error = refused("build", world.recipe, *words)
    assert f"unknown backend '{name}'" in error
    assert {"received", "expected"} <= parts(error)


def test_build_where_no_bundle_stands(refused: Callable[..., str], world: World) -> None:
    words = ("--data", world.photos, "--out", world.photos, "--backend", "null")
    assert "exists and is no bundle" in refused("build", world.recipe, *words)


def test_train_where_a_folder_stands(refused: Callable[..., str], world: World) -> None:
    words = ("--data", world.photos, "--steps", 6, "--out", world.photos)
    refused("train", world.recipe, *words)


@pytest.mark.parametrize("command", WORDS)
def test_a_place_below_a_file(refused: Callable[..., str], world: World, command: str) -> None:
    words = ("--data", world.photos, *WORDS[command], "--out", world.recipe / "out")
    assert "tiny.toml" in refused(command, world.recipe, *words)


def test_too_few_training_steps(refused: Callable[..., str], world: World) -> None:
    assert "x>=6" in refused("train", world.recipe, "--data", world.photos, "--steps", 1)


@pytest.mark.parametrize("command", ["build", "train"])
def test_no_threads(refused: Callable[..., str], world: World, command: str) -> None:
    assert "x>=1" in refused(command, world.recipe, "--threads", 0)


def test_training_of_another_run_is_not_taken_up(
    refused: Callable[..., str], call: Any, world: World
) -> None:
    out = world.root / "w.safetensors"
    words = ("--data", world.photos, "--steps", 6, "--out", out, "--threads", 1)
    call("train", world.recipe, *words)
    state = world.root / "w.safetensors.training"
    state.mkdir()
    (state / "state.safetensors").write_bytes(out.read_bytes())
    error = refused("train", world.recipe, *words)
    assert "state of another training run" in error
    assert parts(error) == {"received", "expected", "remedy"}


def test_training_from_the_weights_of_another_space(
    refused: Callable[..., str], world: World, altered: Any
) -> None:
    recipe = altered("head_width = 16", "head_width = 24")
    start = world.recipe.with_suffix(".safetensors")
    words = ("--data", world.photos, *WORDS["train"], "--start-from", start)
    error = refused("train", recipe, *words)
    assert "disagree on the space's head_width" in error
    assert parts(error) == {"received", "expected", "remedy"}


def test_training_from_no_weights(refused: Callable[..., str], world: World) -> None:
    words = ("--data", world.photos, *WORDS["train"], "--start-from", world.root / "none")
    assert "none does not exist" in refused("train", world.recipe, *words)


# --- run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deadline", "says"),
    [("0", "0 ms is not positive"), ("-5", "-5 ms is not positive"), ("nan", "not a number")],
)
def test_a_deadline_that_is_none(
    refused: Callable[..., str], world: World, deadline: str, says: str
) -> None:
    error = refused("run", world.bundle, world.photos, "--deadline-ms", deadline)
    assert says in error
    assert "The fastest route of tiny.opa takes" in error
    assert {"received", "expected"} <= parts(error)


def test_a_deadline_that_is_no_number(refused: Callable[..., str], world: World) -> None:
    assert "soon" in refused("run", world.bundle, world.photos, "--deadline-ms", "soon")


def test_no_deadline(refused: Callable[..., str], world: World) -> None:
    assert "--deadline-ms" in refused("run", world.bundle, world.photos)


@pytest.mark.parametrize(
    ("option", "name", "says"),
    [
        ("--policy", "oppa", "unknown policy 'oppa'"),
        ("--policy", "static:tail9", "unknown node 'tail9'"),
        ("--backend", "torchscrpt", "unknown backend 'torchscrpt'"),
    ],
)
def test_a_name_that_does_not_exist(
    refused: Callable[..., str], world: World, option: str, name: str, says: str
) -> None:
    error = refused("run", world.bundle, world.photos, "--deadline-ms", 9, option, name)
    assert says in error
    assert "did you mean" in error
    assert parts(error) == {"received", "expected", "remedy"}


def test_csv_and_json_at_once(refused: Callable[..., str], world: World) -> None:
    error = refused("run", world.bundle, world.photos, "--deadline-ms", 9, "--csv", "--json")
    assert "exclude each other" in error


def test_run_on_images_that_do_not_exist(refused: Callable[..., str], world: World) -> None:
    error = refused("run", world.bundle, "gone", "--deadline-ms", 9)
    assert "gone does not exist" in error
    assert parts(error) == {"received", "expected", "remedy"}


def test_run_on_a_folder_without_pictures(refused: Callable[..., str], world: World) -> None:
    error = refused("run", world.bundle, world.here, "--deadline-ms", 9)
    assert "has no pictures" in error
    assert "*.png" in error


def test_run_on_a_bad_picture_names_it(refused: Callable[..., str], world: World) -> None:
    bad = world.photos / "test" / "cat" / "0.png"
    bad.write_bytes(b"no picture")
    error = refused("run", world.bundle, world.photos, "--deadline-ms", 9)
    assert str(bad) in error
    assert "--skip-bad-images" in error


def test_run_on_bad_pictures_alone(refused: Callable[..., str], world: World) -> None:
    bad = world.root / "bad.png"
    bad.write_bytes(b"no picture")
    error = refused("run", world.bundle, bad, "--deadline-ms", 9, "--skip-bad-images")
    assert "no picture that can be decoded" in error


def test_run_on_a_picture_of_many_megapixels_names_it(
    refused: Callable[..., str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    large = world.root / "large.png"
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(large)
    assert str(large) in refused("run", world.bundle, large, "--deadline-ms", 9)


# --- bundles ------------------------------------------------------------------------------------


def without_engine(bundle: Path) -> None:
    (bundle / "segments" / "tail2.pt").unlink()


def truncated(bundle: Path) -> None:
    path = bundle / "segments" / "tail2.pt"
    path.write_bytes(path.read_bytes()[:-7])


def flipped(bundle: Path) -> None:
    path = bundle / "profile.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def manifest_altered(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"owl"', '"cow"'), encoding="utf-8")


def manifest_cut(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])


def later_version(bundle: Path) -> None:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "format_version": 3}), encoding="utf-8")


def not_a_bundle(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def gone(bundle: Path) -> None:
    shutil.rmtree(bundle)


BUNDLES: dict[Callable[[Path], None], tuple[str, str]] = {
    without_engine: ("tail2.pt is missing", "build it again"),
    truncated: ("tail2.pt has", "build the bundle again"),
    flipped: ("profile.safetensors was altered", "build the bundle again"),
    manifest_altered: ("manifest.json was altered", "build the bundle again"),
    manifest_cut: ("is not JSON", "build the bundle again"),
    later_version: ("format version 3", "newer opa-trt"),
    not_a_bundle: ("has no manifest.json", "opa-trt build"),
    gone: ("does not exist", "opa-trt build"),
}


@pytest.mark.parametrize("command", ["run", "show", "verify"])
@pytest.mark.parametrize(
    ("change", "says"), BUNDLES.items(), ids=[change.__name__ for change in BUNDLES]
)
def test_a_bundle_that_cannot_be_opened(
    refused: Callable[..., str],
    world: World,
    command: str,
    change: Callable[[Path], None],
    says: tuple[str, str],
) -> None:
    change(world.bundle)
    words: dict[str, tuple[object, ...]] = {
        "run": ("run", world.bundle, world.photos, "--deadline-ms", 9),
        "show": ("show", world.bundle),
        "verify": ("show", world.bundle, "--verify"),
    }
    error = refused(*words[command])
    assert says[0] in error
    assert says[1] in error
    assert {"received", "remedy"} <= parts(error)
