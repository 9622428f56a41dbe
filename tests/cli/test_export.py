"""``opa-trt export``: what it writes and says, and that bad input leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from opa_trt.builder.export_formats import FORMS
from opa_trt.supernet import Supernet, load_subnet, save, space_from_dict
from opa_trt_cli.export import FORMATS

SPACE: dict[str, Any] = {
    "name": "mobilenet_v3", "classes": 3, "resolutions": [16, 20], "depth_choices": [1, 2],
    "kernel_choices": [3, 5], "expand_choices": [1, 2], "stem_width": 8, "stage_widths": [8, 16],
    "stage_strides": [1, 2], "stage_act": ["relu", "h_swish"],
    "stage_squeeze_excite": [False, True], "head_width": 16, "feature_width": 24,
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A super-network of random weights, and its largest arch."""
    space = space_from_dict(SPACE)
    checkpoint, arch = tmp_path / "net.safetensors", tmp_path / "arch.json"
    save(Supernet(space, seed=1), checkpoint)
    arch.write_text(json.dumps(space.largest().to_ofa(space)), encoding="utf-8")
    return checkpoint, arch


@pytest.fixture
def words(files: tuple[Path, Path]) -> tuple[Any, ...]:
    """All that is needed but a format and a place."""
    return ("export", files[0], "--arch", files[1], "--calibrate", "digits", "--images", 200)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        grey = np.full((20, 20), index % 256, dtype=np.uint8)
        Image.fromarray(grey).save(folder / f"{index}.png")
    return folder


def test_the_formats_are_those_of_the_library() -> None:
    assert [form.name for form in FORMS] == list(FORMATS)


def test_torchscript(call: Any, words: Any, here: Path) -> None:
    called = call(*words, "--format", "torchscript", "--out", "net.pt")
    assert called.code == 0
    assert "float32 [N, 3, 20, 20]" in called.out
    assert "calibrated  on 200 images" in called.out
    assert "largest difference" in called.out
    assert "batch sizes 1, 2, 5" in called.out
    assert torch.jit.load("net.pt")(torch.zeros(4, 3, 20, 20)).shape == (4, 3)
    assert [path.name for path in here.iterdir()] == ["net.pt"]


def test_onnx(call: Any, words: Any, here: Path) -> None:
    called = call(*words, "--format", "onnx", "--out", "deep/net.onnx", "--resolution", 16)
    assert called.code == 0
    assert "Warning" not in called.err
    session = onnxruntime.InferenceSession("deep/net.onnx")
    (logits,) = session.run(None, {"images": np.zeros((3, 3, 16, 16), np.float32)})
    assert logits.shape == (3, 3)


def test_weights_and_json(call: Any, words: Any) -> None:
    called = call(*words, "--format", "state-dict", "--out", "net.safetensors", "--json")
    found, space = called.json(), space_from_dict(SPACE)
    assert called.err == ""
    assert found["macs"] == space.macs(space.largest())
    assert found["params"] == space.params(space.largest())
    assert found["bytes"] == Path("net.safetensors").stat().st_size
    assert found["calibration"]["images"] == 200
    assert found["largest_difference"] < 1e-4
    assert (found["mean"], found["std"]) == ([0.5] * 3, [0.25] * 3)
    assert load_subnet("net.safetensors")(torch.zeros(2, 3, 20, 20)).shape == (2, 3)


def test_a_folder_of_fewer_than_was_asked_for(call: Any, words: Any, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 202)
    words = (*words[:4], "--calibrate", folder, "--format", "state-dict", "--out", "net")
    moments = ("--mean", 0.1, 0.2, 0.3, "--std", 0.4, 0.5, 0.6)
    called = call(*words, *moments)
    assert called.code == 0
    assert "on 202 images" in called.out
    assert "there are no more, 2000 were asked for" in called.out
    assert "mean 0.1 0.2 0.3 and std 0.4 0.5 0.6" in called.out


def test_too_few_pictures(call: Any, words: Any, tmp_path: Path, here: Path) -> None:
    folder = pictures(tmp_path / "photos", 12)
    words = (*words[:4], "--calibrate", folder, "--format", "state-dict", "--out", "net")
    called = call(*words)
    assert called.code == 2
    assert "has 12 images" in called.err
    assert "at least 200" in called.err
    assert list(here.iterdir()) == []


WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "an unknown format": (("--format", "onyx"), "onyx"),
    "a resolution": (("--resolution", 33), "resolution 33"),
    "few images": (("--images", 10), "images = 10"),
    "two moments": (("--mean", 0.5, 0.5), "mean"),
    "no spread": (("--std", 0, 0, 0), "std ="),
    "no folder": (("--calibrate", "gone"), "gone does not exist"),
    "no arch": (("--arch", "gone.json"), "gone.json does not exist"),
    "a folder": (("--out", "."), "is a folder"),
}


@pytest.mark.parametrize(("options", "says"), WRONG.values(), ids=WRONG.keys())
def test_bad_input(call: Any, words: Any, here: Path, options: Any, says: str) -> None:
    called = call(*words, "--format", "state-dict", "--out", "net", *options)
    assert called.code == 2
    assert called.out == ""
    assert says in called.err
    assert list(here.iterdir()) == []


def test_a_checkpoint_that_does_not_exist(call: Any, words: Any, here: Path) -> None:
    rest = ("--format", "state-dict", "--out", "net")
    called = call("export", "gone.safetensors", *words[2:], *rest)
    assert called.code == 2
    assert "gone.safetensors does not exist" in called.err
    assert list(here.iterdir()) == []
