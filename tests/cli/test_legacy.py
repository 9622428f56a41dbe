"""``opa-trt train`` and ``build`` of a legacy network, from photographs to answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name = "old"
checkpoint = "old.safetensors"

[data]
source = "folder"
size = 16

[legacy]
network = "small_resnet"
classes = 3
weights = "resnet.safetensors"
options = { widths = [8, 16, 16], blocks = 1 }
phases = ["layer1", "layer2", "layer3"]
divisor = 2

[training]
batch_size = 8
steps = { full = 4 }

[leaf]
base = { steps = 4, learning_rate = 0.05, decay_every = 2 }
fine = { steps = 2, learning_rate = 0.01 }
batch_size = 8

[pioneer]
stages = 1
head_width = 8
images = 60
epochs = 1

[tails]
count = 4
candidates = 4
images = 30

[calibrate]
images = 60
batch = 60

[compile]
backends = ["torchscript"]
max_batch = 8
threads = 1

[measure]
buckets = [1, 8]
seconds = 0.001

[fit]
images = 40
groups = 20
group_size = 10
"""


@pytest.fixture
def legacy(here: Path) -> Path:
    path = here / "old.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def words(legacy: Path, shared_photos: Path) -> tuple[object, ...]:
    return (legacy, "--data", shared_photos, "--threads", 1)


def test_from_photographs_to_answers(
    call: Any, words: tuple[object, ...], shared_photos: Path, here: Path
) -> None:
    trained = call("train", *words, "--legacy", "--out", "resnet.safetensors", "--json")
    assert trained.code == 0
    assert [entry["phase"] for entry in trained.json()["log"]] == ["full"]
    trained = call("train", *words, "--steps", 6)
    assert trained.code == 0
    assert " fine " in trained.err
    assert call("build", *words, "--out", "old.opa").code == 0
    shown = call("show", "old.opa")
    assert "layer1, exit head" in shown.out
    assert re.search(r"^(legacy|shallow)1-(legacy|shallow)2-(legacy|shallow)3 ", shown.out, re.M)
    assert "1 →" not in shown.out  # a way is told once
    photos = shared_photos / "test"
    run = call("run", "old.opa", photos, "--deadline-ms", 1000, "--group", 8, "--explain")
    assert run.code == 0
    assert "3 ran on 1 image " in run.err
    assert "stop at shallow1-" not in run.err  # there is no answer to stop with  # the last phase
    assert sorted(path.name for path in here.iterdir()) == [
        "old.opa", "old.safetensors", "old.toml", "resnet.safetensors",
    ]  # fmt: skip


def test_weights_of_another_place_are_taken(
    call: Any, words: tuple[object, ...], here: Path
) -> None:
    call("train", *words, "--legacy", "--out", "elsewhere.safetensors")
    refused = call("train", *words)
    assert refused.code == 2
    assert "resnet.safetensors does not exist" in refused.err
    assert "opa-trt train RECIPE --legacy" in refused.err
    named = ("--legacy-weights", here / "elsewhere.safetensors", "--steps", 6)
    assert call("train", *words, *named).code == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--start-from", "w.safetensors"), "which is of a legacy network"),
        (("--device", "cuda"), "no GPU that torch can use"),
    ],
)
def test_what_a_legacy_network_does_not_have_is_refused(
    call: Any, words: tuple[object, ...], extra: tuple[str, ...], message: str
) -> None:
    refused = call("train", *words, "--legacy", *extra)
    assert refused.code == 2
    assert message in refused.err


@pytest.mark.parametrize("extra", [("--legacy",), ("--legacy-weights", "w.safetensors")])
def test_a_recipe_of_a_space_has_no_legacy_network(
    call: Any, recipe: Path, shared_photos: Path, extra: tuple[str, ...]
) -> None:
    refused = call("train", recipe, "--data", shared_photos, *extra)
    assert refused.code == 2
    assert "[legacy]" in refused.err or "no legacy network" in refused.err


def test_an_impossible_number_of_classes_is_told(
    call: Any, legacy: Path, words: tuple[object, ...]
) -> None:
    legacy.write_text(RECIPE.replace("classes = 3", "classes = 4"))
    refused = call("train", *words, "--legacy")
    assert refused.code == 2
    assert "the images have 3 classes, [legacy] of recipe old says 4" in refused.err
