"""The command line in this process, a folder of little images, a tiny recipe and its bundle."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from opa_trt.builder import build, read_recipe
from opa_trt.store import EngineStore
from opa_trt.supernet import Supernet, save, space_from_dict
from opa_trt_cli.main import main

CLASSES = ("cat", "dog", "owl")
SIDE = 16

SPACE = """
[space]
name = "mobilenet_v3"
classes = {classes}
resolutions = [16]
depth_choices = [1, 2]
kernel_choices = [3, 5]
expand_choices = [1, 2]
stem_width = 8
stage_widths = [8, 8, 16]
stage_strides = [1, 2, 1]
stage_act = ["relu", "relu", "h_swish"]
stage_squeeze_excite = [false, false, true]
head_width = 16
feature_width = 16
"""
RECIPE = """
name = "{name}"
seed = 1
checkpoint = "{name}.safetensors"

[data]
source = "{source}"
size = 16
{degradations}
{space}
[training]
batch_size = 8
steps = {{ full = 2, kernel = 2, depth = [2], width = [2] }}

[pioneer]
stages = 2
resolutions = [16]
depth = 1
kernel_size = 3
expand_ratio = 1
head_width = 8
images = 60
epochs = 1

[tails]
count = 3
candidates = 4
images = 30

[calibrate]
images = 60
batch = 60

[compile]
backends = ["torchscript"]
max_batch = {max_batch}
threads = 1

[measure]
buckets = [1, {max_batch}]
seconds = 0.001

[fit]
images = 40
groups = 20
group_size = 10
"""

Call = Callable[..., "Called"]


@dataclass(frozen=True)
class Called:
    """How a call of the command line ended, and what it wrote."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        return dict(json.loads(self.out))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are called in, empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Calls ``opa-trt`` as the console script does."""
    before = torch.get_num_threads()

    def run(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["opa-trt", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Called(code, written.out, written.err)

    yield run
    torch.set_num_threads(before)


def _folder_of_images(root: Path, train: int, test: int) -> None:
    """Stripes (cat), checks (dog) or noise (owl)."""
    draw = np.random.default_rng(0)
    wave = np.where(np.arange(SIDE) % 4 < 2, 200, 50)
    for part, count in (("train", train), ("test", test)):
        for label in CLASSES:
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                noise = draw.integers(-40, 41, (SIDE, SIDE))
                base = {"cat": wave[None], "dog": (wave[None] + wave[:, None]) // 2, "owl": 120}
                grey = (base[label] + noise * (3 if label == "owl" else 1)).clip(0, 255)
                Image.fromarray(grey.astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="session")
def shared_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``test`` of three classes. Not to be changed."""
    root = tmp_path_factory.mktemp("images") / "photos"
    _folder_of_images(root, train=10, test=3)
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The same, to be changed."""
    _folder_of_images(tmp_path / "photos", train=10, test=3)
    return tmp_path / "photos"


def _write_recipe(folder: Path, name: str, source: str, classes: int, max_batch: int) -> Path:
    """The recipe and random weights for it."""
    space = SPACE.format(classes=classes)
    degradations = 'degradations = ["noise", "contrast"]' if source == "digits" else ""
    text = RECIPE.format(
        name=name, source=source, space=space, max_batch=max_batch, degradations=degradations
    )
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    supernet = Supernet(space_from_dict(read_recipe(path).space), seed=1)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for layer in supernet.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.normal_()
    save(supernet, folder / f"{name}.safetensors")
    return path


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny.toml`` over a folder of images, with ``tiny.safetensors`` beside it."""
    return _write_recipe(tmp_path_factory.mktemp("recipe"), "tiny", "folder", len(CLASSES), 8)


@pytest.fixture(scope="session")
def digits_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``little.toml`` over the digits, with ``little.safetensors`` beside it."""
    return _write_recipe(tmp_path_factory.mktemp("recipe"), "little", "digits", 10, 100)


@pytest.fixture
def altered(recipe: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """The tiny recipe with one text in the place of another, its weights beside it."""

    def alter(old: str, new: str) -> Path:
        text = recipe.read_text(encoding="utf-8")
        assert old in text
        path = tmp_path / "altered" / recipe.name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace(old, new), encoding="utf-8")
        weights = recipe.with_suffix(".safetensors")
        path.with_suffix(".safetensors").write_bytes(weights.read_bytes())
        return path

    return alter


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bundle's latencies were kept as it was built."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def bundle(
    recipe: Path,
    shared_photos: Path,
    shared_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny recipe's bundle. Not to be changed."""
    path, threads = tmp_path_factory.mktemp("bundle") / "tiny.opa", torch.get_num_threads()
    build(read_recipe(recipe), path, data=shared_photos, store=EngineStore(shared_cache))
    torch.set_num_threads(threads)
    return path


@pytest.fixture
def known_machine(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are known already: nothing is measured again."""
    monkeypatch.setenv("OPA_TRT_CACHE", str(shared_cache))
