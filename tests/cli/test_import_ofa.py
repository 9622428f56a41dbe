"""``opa-trt import-ofa``: published checkpoints in, super-networks out, and nothing run."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from opa_trt.builder import read_recipe
from opa_trt.supernet import load, read_notes, to_ofa_state_dict
from tests.supernet.published_networks import CLASSES, TABLES, State, random_state

OUT = "out.safetensors"
NAN = "blocks.1.conv.point_linear.bn.bn.bias"


@pytest.fixture
def state(recipe: Path) -> State:
    """The tiny recipe's weights under published keys."""
    return to_ofa_state_dict(load(recipe.with_suffix(".safetensors")))


@pytest.fixture
def checkpoint(here: Path, state: State) -> Path:
    torch.save({"epoch": 1, "state_dict": state}, here / "tiny.pth")
    return here / "tiny.pth"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of MobileNetV3 of width 1.2 before its kernels were made elastic."""
    path = tmp_path_factory.mktemp("published") / "ofa_mbv3_w1.2"
    weights = random_state(TABLES["mobilenet_v3 1.2"])
    torch.save({"state_dict": {k: v for k, v in weights.items() if "matrix" not in k}}, path)
    return path


def bytes_of(values: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what is written ------------------------------------------------------------------------------


def test_the_weights_are_those_of_the_checkpoint(
    call: Any, here: Path, checkpoint: Path, recipe: Path, state: State
) -> None:
    called = call("import-ofa", checkpoint, "--space", recipe, "--out", OUT)
    assert called.code == 0, called.err
    assert names(here) == [OUT, "tiny.pth"]
    loaded = load(here / OUT, expected=read_recipe(recipe).make_space())
    for key, value in to_ofa_state_dict(loaded).items():
        assert torch.equal(value, state[key]), key


def test_the_notes_say_where_the_weights_came_from(
    call: Any, here: Path, checkpoint: Path, recipe: Path
) -> None:
    call("import-ofa", checkpoint, "--space", recipe, "--out", OUT)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    imported = {"file": "tiny.pth", "sha256": digest, "identities": 0}
    assert read_notes(here / OUT) == {"imported": imported}


def test_safetensors_are_read_too(
    call: Any, here: Path, state: State, recipe: Path, checkpoint: Path
) -> None:
    save_file(state, here / "tiny.safetensors")
    for path, out in (("tiny.safetensors", "a.safetensors"), ("tiny.pth", "b.safetensors")):
        assert call("import-ofa", path, "--space", recipe, "--out", out).code == 0
    first, second = (load(here / f"{name}.safetensors").state_dict() for name in "ab")
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_published_checkpoint_is_told(call: Any, here: Path, published: Path) -> None:
    called = call("import-ofa", published, "--space", "mobilenet_v3", "--width", 1.2, "--out", OUT)
    assert called.code == 0, called.err
    assert "all 435 of ofa_mbv3_w1.2 mapped to mobilenet_v3" in called.out
    assert "40 are the identity" in called.out
    assert "M MACs at 224 px" in called.out
    assert f"next: opa-trt build RECIPE --checkpoint {OUT}" in called.out
    assert f'name = "mobilenet_v3", width = 1.2, classes = {CLASSES}' in called.out
    space = load(here / OUT).space
    assert (space.classes, space.to_dict()["width"]) == (CLASSES, 1.2)


def test_json_holds_the_same(call: Any, here: Path, published: Path) -> None:
    told = call(
        *("import-ofa", published, "--space", "mobilenet_v3", "--width", 1.2),
        *("--out", OUT, "--json"),
    ).json()
    space = load(here / OUT).space
    assert told["bytes"] == (here / OUT).stat().st_size
    assert told["space"] == space.to_dict()
    assert told["tensors"] == 435
    assert len(told["identities"]) == 40
    assert told["sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()
    assert told["macs"]["largest"] == space.macs(space.largest(224))
    assert told["params"]["smallest"] == space.params(space.smallest(224))


# --- what is refused ------------------------------------------------------------------------------


class Harmful:
    """Runs a command as it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        import os

        return os.mkdir, ("harmed",)


WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a checkpoint"),
    "text": (b"not a checkpoint at all\n" * 20, "not a checkpoint"),
    "truncated": (bytes_of({"a": torch.zeros(1000)})[:2000], "not a checkpoint"),
    "module": (bytes_of(torch.nn.ReLU()), "it needs torch.nn.modules.activation.ReLU"),
    "harmful": (bytes_of({"state_dict": Harmful()}), "holds more than weights: it needs"),
    "harmful pickle": (pickle.dumps(Harmful(), protocol=2), "Error: wrong.pth"),
    "list": (bytes_of([torch.zeros(1)]), "holds list"),
    "nothing": (bytes_of({}), "holds nothing"),
    "numbers": (bytes_of({"state_dict": {"a": 3}}), "values of other kinds: a"),
    "no classifier": (bytes_of({"a": torch.zeros(1)}), "no classifier.linear.bias"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_no_checkpoint_is_refused(call: Any, here: Path, kind: str) -> None:
    content, message = WRONG[kind]
    (here / "wrong.pth").write_bytes(content)
    called = call("import-ofa", "wrong.pth", "--space", "mobilenet_v3", "--out", OUT)
    assert called.code == 2
    assert message in called.err
    assert "Expected" in called.err
    assert called.out == ""
    assert names(here) == ["wrong.pth"]  # nothing written, nothing harmed


def test_a_broken_safetensors_file_is_refused(call: Any, here: Path) -> None:
    (here / "wrong.safetensors").write_bytes(b"\xff" * 40)
    called = call("import-ofa", "wrong.safetensors", "--space", "mobilenet_v3", "--out", OUT)
    assert called.code == 2
    assert "wrong.safetensors is not a readable safetensors file" in called.err


@pytest.mark.parametrize("path", ["missing.pth", "."])
def test_what_is_no_file_is_refused(call: Any, here: Path, path: str) -> None:
    called = call("import-ofa", path, "--space", "mobilenet_v3", "--out", OUT)
    assert called.code == 2
    assert f"{path} does not exist, or is no file" in called.err
    assert names(here) == []


def test_another_width_says_what_the_file_looks_like(
    call: Any, here: Path, published: Path
) -> None:
    called = call("import-ofa", published, "--space", "mobilenet_v3", "--out", OUT)
    assert called.code == 2
    assert "first_conv.conv.weight [24, 3, 3, 3] for [16, 3, 3, 3]" in called.err
    assert "it looks like mobilenet_v3 of width 1.2" in called.err
    assert names(here) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '--space'"),
        (("--space", "resnet50"), "did you mean 'resnet50d'"),
        (("--space", "resnet50d", "--width", "1.2"), "width 1.2 for space resnet50d"),
        (("--space", "mobilenet_v3", "--width", "0"), "width = 0"),
    ],
)
def test_a_space_that_means_nothing_is_refused(
    call: Any, checkpoint: Path, here: Path, arguments: tuple[str, ...], message: str
) -> None:
    called = call("import-ofa", checkpoint, *arguments, "--out", OUT)
    assert called.code == 2
    assert message in called.err
    assert names(here) == ["tiny.pth"]


def test_a_refusal_leaves_the_older_weights(
    call: Any, here: Path, recipe: Path, state: State
) -> None:
    state[NAN][0] = float("nan")
    torch.save(state, here / "tiny.pth")
    (here / OUT).write_bytes(b"older")
    called = call("import-ofa", "tiny.pth", "--space", recipe, "--out", OUT)
    assert called.code == 2
    assert f"NaN or infinity in 1 tensors: {NAN}" in called.err
    assert (here / OUT).read_bytes() == b"older"


def test_a_super_network_of_ours_needs_no_import(call: Any, here: Path, recipe: Path) -> None:
    ours = recipe.with_suffix(".safetensors")
    called = call("import-ofa", ours, "--space", recipe, "--out", OUT)
    assert called.code == 2
    assert "is a file of opa_trt already" in called.err
    assert names(here) == []


def test_the_checkpoint_itself_is_not_overwritten(
    call: Any, here: Path, checkpoint: Path, recipe: Path
) -> None:
    before = checkpoint.read_bytes()
    called = call("import-ofa", checkpoint, "--space", recipe, "--out", checkpoint)
    assert called.code == 2
    assert "CHECKPOINT itself" in called.err
    assert checkpoint.read_bytes() == before


def test_a_folder_is_no_place_for_the_weights(
    call: Any, here: Path, checkpoint: Path, recipe: Path
) -> None:
    (here / "folder").mkdir()
    called = call("import-ofa", checkpoint, "--space", recipe, "--out", "folder")
    assert called.code == 2
    assert "folder is a folder." in called.err
    assert names(here) == ["folder", "tiny.pth"]
