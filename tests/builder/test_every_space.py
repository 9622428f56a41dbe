"""Training, building and running know nothing of the space: the others go through them too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import opa_trt
from opa_trt.builder import Recipe, build, recipe_from_dict
from opa_trt.builder.network import run_batches
from opa_trt.builder.sources import load_splits, source_of
from opa_trt.builder.training import train_recipe
from opa_trt.store import EngineStore
from opa_trt.supernet import Arch, load
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.training import evaluation, shrinking

SPACES: dict[str, dict[str, Any]] = {
    "resnet50d": {
        "stem_width": 16,
        "stage_widths": [16, 24, 32],
        "base_depths": [1, 1, 1],
        "extra_depths": [0, 1],
        "stage_strides": [1, 2, 1],
    },
    "proxyless": {
        "width": 1.0,
        "stem_width": 8,
        "first_width": 8,
        "stage_widths": [8, 8, 16],
        "stage_strides": [2, 1, 2],
        "depth_choices": [1, 2],
        "kernel_choices": [3, 5],
        "expand_choices": [1, 2, 3],
        "feature_width": 16,
    },
}
PIONEERS = {"resnet50d": {"expand_ratio": 0.25}, "proxyless": {"expand_ratio": 2}}
STEPS = {"full": 2, "kernel": 1, "depth": [1], "width": [1, 1]}


@pytest.fixture(scope="module", params=SPACES)
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe in the space, and a checkpoint that a few steps of training gave."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    found = recipe_from_dict(
        {
            "name": name,
            "checkpoint": f"{name}.safetensors",
            "data": {"source": "digits", "size": 32},
            "space": {"name": name, "classes": 10, "resolutions": [32]} | SPACES[name],
            "training": {"batch_size": 8, "steps": STEPS},
            "pioneer": {"depth": 1, "head_width": 8, "images": 150, "epochs": 1} | PIONEERS[name],
            "tails": {"count": 2, "candidates": 3, "images": 40},
            "calibrate": {"images": 100, "batch": 50},
            "compile": {"backends": ["torchscript"], "max_batch": 4, "threads": 1},
            "measure": {"buckets": [1, 4], "seconds": 0.001},
            "fit": {"images": 100, "groups": 20, "group_size": 10},
        },
        folder,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "CALIBRATION_IMAGES", 20)
        patch.setattr(shrinking, "CHECK_IMAGES", 10)
        train_recipe(found, folder / f"{name}.safetensors", None)
    torch.set_num_threads(before)
    return found


def monolith(recipe: Recipe, arch: Arch) -> nn.Sequential:
    """The network of ``arch`` in one piece, calibrated as the build does."""
    path = recipe.checkpoint_path()
    assert path is not None
    network, data = load(path).extract(arch), recipe.data
    wanted = recipe.calibrate
    images, side = load_splits(recipe, None).train, arch.resolution
    inputs = list(source_of(recipe).inputs(images, wanted.images, wanted.batch, side, recipe.seed))
    trunk, tail = network[: recipe.pioneer.stages + 1], network[recipe.pioneer.stages + 1 :]
    calibrate(trunk, inputs)
    calibrate(tail, run_batches(trunk, inputs))
    return nn.Sequential(Preprocess(data.size, arch.resolution, data.mean, data.std), network)


def test_a_bundle_answers_as_the_network_in_one_piece(recipe: Recipe, tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "cache")
    manifest = build(recipe, tmp_path / "it.opa", store=store)
    archs = [Arch.from_dict(values) for values in manifest.report["tails"]["archs"]["pioneer"]]
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    for number, arch in enumerate(archs, 1):
        policy = f"static:tail{number}"
        with opa_trt.load(tmp_path / "it.opa", policy=policy, store=store, threads=1) as session:
            result = session.infer(images, deadline_ms=1000)
        with torch.no_grad():
            expected = monolith(recipe, arch)(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(result.logits, expected, atol=1e-4)
