"""Super-networks on disk: the round trip, and every way a file can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from opa_trt.errors import CheckpointError
from opa_trt.supernet import Supernet, load, read_notes, save

KEY = "parts.head.classifier.weight"


@pytest.fixture
def saved(tmp_path: Path, tiny_space: Any, scrambled: Any) -> Path:
    path = tmp_path / "net.safetensors"
    save(scrambled(tiny_space()), path, notes={"seed": 3})
    return path


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118


def rewrite(path: Path, tensors: dict[str, Any] | None = None, **metadata: str | None) -> None:
    """``path`` with some tensors and metadata replaced; None removes one."""
    old_tensors, old_metadata = contents(path)
    for old, new in ((old_tensors, tensors or {}), (old_metadata, metadata)):
        for key, value in new.items():
            old.pop(key, None)
            if value is not None:
                old[key] = value
    save_file(old_tensors, path, metadata=old_metadata)


# --- round trips --------------------------------------------------------------------------------


def test_weights_and_space_come_back(saved: Path, tiny_space: Any, scrambled: Any) -> None:
    original, loaded = scrambled(tiny_space()), load(saved)
    assert loaded.space == tiny_space()
    for key, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_loaded_supernet_is_in_evaluation_mode(saved: Path) -> None:
    assert not load(str(saved)).training


def test_half_precision_halves_the_file(tmp_path: Path, saved: Path, tiny_space: Any) -> None:
    path = tmp_path / "half.safetensors"
    save(Supernet(tiny_space()), path, half=True)
    tensors, _ = contents(path)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert path.stat().st_size < 0.7 * saved.stat().st_size


def test_half_precision_comes_back_as_rounded_float32(
    tmp_path: Path, tiny_space: Any, scrambled: Any
) -> None:
    path, supernet = tmp_path / "half.safetensors", scrambled(tiny_space())
    save(supernet, path, half=True)
    loaded = load(path).state_dict()
    for key, value in supernet.state_dict().items():
        assert loaded[key].dtype == value.dtype
        torch.testing.assert_close(loaded[key], value, atol=1e-6, rtol=1e-3)


def test_saving_in_half_precision_leaves_the_supernet_in_float32(
    tmp_path: Path, tiny_space: Any
) -> None:
    supernet = Supernet(tiny_space())
    save(supernet, tmp_path / "half.safetensors", half=True)
    assert {p.dtype for p in supernet.parameters()} == {torch.float32}


def test_channels_last_weights_come_back(tmp_path: Path, tiny_space: Any) -> None:
    path = tmp_path / "net.safetensors"
    supernet = Supernet(tiny_space()).to(memory_format=torch.channels_last)
    save(supernet, path)
    weight = load(path).state_dict()["parts.stem.conv.weight"]
    torch.testing.assert_close(weight, supernet.state_dict()["parts.stem.conv.weight"])


def test_counters_of_batches_are_not_stored(saved: Path) -> None:
    assert not [key for key in contents(saved)[0] if "num_batches_tracked" in key]


def test_notes_come_back(saved: Path) -> None:
    assert read_notes(saved) == {"seed": 3}


def test_a_supernet_without_notes_has_none(tmp_path: Path, tiny_space: Any) -> None:
    save(Supernet(tiny_space()), tmp_path / "net.safetensors")
    assert read_notes(tmp_path / "net.safetensors") == {}


def test_the_expected_space_is_accepted(saved: Path, tiny_space: Any) -> None:
    assert load(saved, expected=tiny_space()).space == tiny_space()


# --- errors -------------------------------------------------------------------------------------


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="opa-trt train"):
        load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(path)


def test_a_file_that_cannot_be_opened_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("opa_trt.supernet.checkpoint.safe_open", forbidden)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(saved)


def test_a_truncated_file_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(saved)


def test_a_file_of_another_format_is_refused(saved: Path) -> None:
    rewrite(saved, format="pt")
    with pytest.raises(CheckpointError, match="has format 'pt'"):
        load(saved)


def test_a_file_without_metadata_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="has format None"):
        load(tmp_path / "net.safetensors")


@pytest.mark.parametrize("version", ["2", "one", "", "²", None])
def test_a_later_or_unreadable_version_is_refused(saved: Path, version: str | None) -> None:
    rewrite(saved, version=version)
    with pytest.raises(CheckpointError, match="has version"):
        load(saved)


@pytest.mark.parametrize(
    "space",
    [
        None,
        "{",
        "[" * 100_000,
        "[1, 2]",
        "5",
        "null",
        '{"name": "vgg"}',
        '{"name": "mobilenet_v3", "classes": 0}',
    ],
)
def test_a_space_that_cannot_be_read_is_refused(saved: Path, space: str | None) -> None:
    rewrite(saved, space=space)
    with pytest.raises(CheckpointError, match="does not describe its space"):
        load(saved)


def test_what_is_wrong_with_the_space_is_told_in_parts(saved: Path) -> None:
    rewrite(saved, space='{"name": "mobilenet_v3", "classes": 0}')
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    assert caught.value.received == f"{saved} does not describe its space: classes = 0."
    assert caught.value.expected == "above 0."


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no file"):
        load(tmp_path)


def test_a_checkpoint_of_another_space_says_where_they_differ(saved: Path, tiny_space: Any) -> None:
    expected = tiny_space(classes=4, width=0.5)
    with pytest.raises(CheckpointError, match="disagree on the space's classes, width") as caught:
        load(saved, expected=expected)
    assert "classes = 4 (recipe); the checkpoint has 3" in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({KEY: None}, f"lacks 1 of the network's tensors: {KEY}"),
        ({"parts.tail": torch.zeros(1)}, "has unknown 1 of the network's tensors: parts.tail"),
        ({KEY: torch.zeros(2, 2)}, f"has misshapen 1 of the network's tensors: {KEY}"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    saved: Path, tensors: dict[str, Any], message: str
) -> None:
    rewrite(saved, tensors)
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_of_many_tensors_that_do_not_fit_three_are_named(saved: Path) -> None:
    rewrite(saved, {f"parts.extra{i}": torch.zeros(1) for i in range(5)})
    with pytest.raises(CheckpointError, match=r"extra0, parts\.extra1, parts\.extra2 …"):
        load(saved)


@pytest.mark.parametrize("notes", ["{", "[" * 100_000, "[1]"])
def test_notes_that_cannot_be_read_are_refused(saved: Path, notes: str) -> None:
    rewrite(saved, notes=notes)
    with pytest.raises(CheckpointError, match="notes"):
        read_notes(saved)
