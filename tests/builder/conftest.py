"""A tiny recipe over the digits, random weights for it, and one build that is made once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from opa_trt.backends import backend
from opa_trt.builder import Recipe, build, recipe_from_dict
from opa_trt.bundle import Manifest
from opa_trt.progress import Progress
from opa_trt.store import EngineStore
from opa_trt.supernet import Supernet, save, space_from_dict
from opa_trt.training import digits

MakeRecipe = Callable[..., Recipe]

BACKENDS = ("torchscript", "openvino", "onnxruntime")
TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "checkpoint": "tiny.safetensors",
    "data": {
        "source": "digits",
        "size": 16,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "degradations": ["noise", "contrast"],
    },
    "space": {
        "name": "mobilenet_v3",
        "classes": 10,
        "resolutions": [16, 20],
        "depth_choices": [1, 2],
        "kernel_choices": [3, 5],
        "expand_choices": [1, 2],
        "stem_width": 8,
        "stage_widths": [8, 8, 16],
        "stage_strides": [1, 2, 1],
        "stage_act": ["relu", "h_swish", "h_swish"],
        "stage_squeeze_excite": [False, True, False],
        "head_width": 16,
        "feature_width": 24,
    },
    "pioneer": {
        "stages": 2,
        "resolutions": [20],
        "depth": 1,
        "kernel_size": 3,
        "expand_ratio": 2,
        "head_width": 8,
        "images": 150,
        "epochs": 2,
    },
    "tails": {"count": 8, "candidates": 10, "images": 56},
    "calibrate": {"images": 200, "batch": 150},
    "compile": {"backends": ["torchscript"], "max_batch": 8, "threads": 1},
    "measure": {"buckets": [1, 8], "seconds": 0.001},
    "fit": {"images": 140, "groups": 20, "group_size": 10},
}


def randomise(module: nn.Module, seed: int) -> None:
    """Random norms, a random classifier: as different from a fresh network as a trained one."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.copy_(0.5 + torch.rand(layer.weight.shape, generator=draw))
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=draw) * 0.3)
            elif isinstance(layer, nn.Linear):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw))
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=draw))


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes``, section by section."""
    result = copy.deepcopy(dict(values))
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = {**result[key], **value} if both else value
    return result


class Heard(Progress):
    """Remembers the line of every finished stage; interrupts a build where it is told to.

    Args:
        stop: the stage whose end interrupts.
        start: the stage whose start interrupts.
        advance: the note of an advance that interrupts.
    """

    def __init__(self, stop: str = "", *, start: str = "", advance: str = "") -> None:
        self.stop, self.stop_start, self.stop_advance = stop, start, advance
        self.lines: dict[str, str] = {}

    def start(self, stage: str, total: int | None = None) -> None:
        if stage == self.stop_start:
            raise KeyboardInterrupt

    def advance(self, done: int, note: str = "") -> None:
        if note and note == self.stop_advance:
            raise KeyboardInterrupt

    def finish(self, stage: str, found: str) -> None:
        self.lines[stage] = found
        if stage == self.stop:
            raise KeyboardInterrupt


class TickingClock:
    """Every look at it takes 20 ms: what is measured is always the same."""

    def __init__(self) -> None:
        self.now = 0.0

    def now_ms(self) -> float:
        self.now += 20.0
        return self.now


@dataclass(frozen=True)
class Built:
    """A finished build: its recipe, its bundle, its manifest, its store, what was heard."""

    recipe: Recipe
    path: Path
    manifest: Manifest
    store: EngineStore
    heard: Heard = field(default_factory=Heard)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the recipe says, so that what a test computes anew is computed as the build did."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _digits_grown_once() -> Iterator[None]:
    """The digits are brought to a size once, not as every build begins; no caller changes them."""
    grow, kept = digits._resized, dict[int, Any]()

    def resized(greys: Any, size: int) -> Any:
        if size not in kept:
            kept[size] = grow(greys, size)
            kept[size].flags.writeable = False
        return kept[size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "_resized", resized)
        yield


@pytest.fixture(scope="session")
def heard_by() -> type[Heard]:
    """The progress that remembers, and interrupts where it is told to."""
    return Heard


@pytest.fixture(scope="session")
def ticking() -> type[TickingClock]:
    """The clock that makes a build tell the same twice."""
    return TickingClock


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny.safetensors``, and two of two classes: ``two`` and ``other``."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (name, classes) in enumerate({"tiny": 10, "two": 2, "other": 2}.items()):
        supernet = Supernet(space_from_dict({**TINY["space"], "classes": classes}), seed=seed)
        randomise(supernet, seed)
        save(supernet, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def make_recipe(weights: Path) -> MakeRecipe:
    """The tiny recipe; each keyword replaces a value, or some keys of a section."""

    def make(**changes: Any) -> Recipe:
        return recipe_from_dict(merged(TINY, changes), weights)

    return make


@pytest.fixture(scope="session")
def built(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The tiny recipe, built with every backend that works here."""
    folder = tmp_path_factory.mktemp("built")
    working = [name for name in BACKENDS if backend(name).availability()]
    recipe = make_recipe(compile={"backends": working})
    store, heard, threads = EngineStore(folder / "cache"), Heard(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "true")  # OpenVINO's converter phones home elsewhere
        manifest = build(recipe, folder / "tiny.opa", progress=heard, store=store)
    torch.set_num_threads(threads)
    return Built(recipe, folder / "tiny.opa", manifest, store, heard)
