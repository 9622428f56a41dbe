"""Exported sub-networks: equal to the calibrated module, self-describing, written whole or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from opa_trt.builder import export_formats
from opa_trt.builder.export import CalibrationData, Exported, export
from opa_trt.builder.export_formats import FORMS, Subnet, export_form
from opa_trt.errors import (
    ArchError,
    BackendUnavailable,
    BadImageError,
    CheckpointError,
    ConfigError,
    DataError,
    ParityError,
    UnknownNameError,
)
from opa_trt.supernet import (
    Arch,
    ResNet50DSpace,
    Supernet,
    load,
    load_subnet,
    published_space,
    space_from_dict,
)
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.fold import fold
from opa_trt.supernet.subnet import folded_structure
from opa_trt.training.batches import Source
from opa_trt.training.digits import load_digits

NAMES = [form.name for form in FORMS]
DIGITS = CalibrationData("digits", 200)
RESOLUTION = 20


@pytest.fixture(scope="module")
def checkpoint(weights: Path) -> Path:
    return weights / "tiny.safetensors"


@pytest.fixture(scope="module")
def arch_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arch with blocks of either ratio, one left out."""
    space = load(checkpoint).space
    arch = space.arch(resolution=RESOLUTION, depths=[2, 1, 2], expand_ratios=[1, 2] * 3)
    path = tmp_path_factory.mktemp("arch") / "arch.json"
    path.write_text(json.dumps(arch.to_ofa(space)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def exported(
    checkpoint: Path, arch_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """One network in every form."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        name: export(checkpoint, arch_file, folder / name, format=name, calibration=DIGITS)
        for name in NAMES
    }


@pytest.fixture(scope="module")
def reference(checkpoint: Path, exported: dict[str, Exported]) -> nn.Module:
    """The extracted module, calibrated on the same digits by hand."""
    arch, train = exported["onnx"].arch, load_digits(32, 0).train
    rows = np.sort(np.random.default_rng(0).permutation(len(train))[:200])
    source = Source(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    module = load(checkpoint).extract(arch)
    calibrate(module, [source.tensor(train.pixels[rows], RESOLUTION)])
    return module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """210 random pictures in two folders of folders."""
    draw = np.random.default_rng(0)
    for index in range(210):
        path = tmp_path / "photos" / "deep" / str(index % 2) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def images(count: int, side: int = RESOLUTION) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def close(found: Any, wanted: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=1e-4, atol=1e-4)


def contents(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Tensors as bytes, and metadata; the file itself has these in any order."""
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata())


# --- what is written --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7])
def test_torchscript_takes_any_batch_size(
    exported: dict[str, Exported], reference: nn.Module, count: int
) -> None:
    loaded = torch.jit.load(str(exported["torchscript"].path))
    close(loaded(images(count)), reference(images(count)))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_onnx_takes_any_batch_size(
    exported: dict[str, Exported], reference: nn.Module, count: int
) -> None:
    session = onnxruntime.InferenceSession(str(exported["onnx"].path))
    (found,) = session.run(["logits"], {"images": images(count).numpy()})
    close(found, reference(images(count)))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_weights_are_read_into_a_plain_module(
    exported: dict[str, Exported], reference: nn.Module, count: int
) -> None:
    module = load_subnet(exported["state-dict"].path)
    assert not module.training
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    assert not any(value.requires_grad for value in module.parameters())
    close(module(images(count)), reference(images(count)))


def described(found: Exported) -> dict[str, str]:
    """What a file says of itself."""
    if found.format == "onnx":
        return {prop.key: prop.value for prop in onnx.load(found.path).metadata_props}
    if found.format == "torchscript":
        extra = {"opa_trt.json": ""}
        torch.jit.load(str(found.path), _extra_files=extra)
        return dict(json.loads(extra["opa_trt.json"]))
    with safe_open(found.path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("name", NAMES)
def test_files_say_what_they_are(
    exported: dict[str, Exported], checkpoint: Path, name: str
) -> None:
    found, space = exported[name], load(checkpoint).space
    says = described(found)
    assert space_from_dict(json.loads(says["space"])) == space
    assert Arch.from_dict(json.loads(says["arch"])) == found.arch
    assert says["input"].startswith("float32 [N, 3, 20, 20]")
    assert "mean 0.5 0.5 0.5 and std 0.25 0.25 0.25" in says["input"]
    assert (says["calibration_images"], says["calibration_batch"]) == ("200", "200")
    assert says["calibration_sha256"] == found.digest
    assert len(found.digest) == 64


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_no_path_of_this_machine(exported: dict[str, Exported], name: str) -> None:
    data = exported[name].path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in data
    assert str(Path(torch.__file__).parent).encode() not in data


def test_onnx_says_nothing_of_the_source(exported: dict[str, Exported]) -> None:
    model = onnx.load(exported["onnx"].path)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {node.doc_string for node in model.graph.node} == {""}


def test_every_form_is_made_of_the_same_network(exported: dict[str, Exported]) -> None:
    assert {found.digest for found in exported.values()} == {exported["onnx"].digest}
    assert {found.arch for found in exported.values()} == {exported["onnx"].arch}
    assert all(0 <= found.difference < 1e-4 for found in exported.values())


def test_weights_are_the_same_twice(
    exported: dict[str, Exported], checkpoint: Path, arch_file: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    export(checkpoint, arch_file, again, format="state-dict", calibration=DIGITS)
    assert contents(again) == contents(exported["state-dict"].path)


@pytest.mark.parametrize("name", NAMES)
def test_a_bottleneck_network_at_an_odd_size(tmp_path: Path, name: str) -> None:
    space = ResNet50DSpace(
        classes=3, resolutions=(36,), base_depths=(1, 1), extra_depths=(0, 1), stem_width=16,
        stage_widths=(16, 32), stage_strides=(1, 2),
    )  # fmt: skip
    arch = space.largest()
    module = Supernet(space).extract(arch)
    calibrate(module, [images(8, 36)])
    form, path = export_form(name), tmp_path / "written"
    path.write_bytes(form.dump(Subnet(fold(module), space, arch, {})))
    with torch.no_grad():
        close(form.load(path)(images(3, 36)), module(images(3, 36)))


@pytest.mark.parametrize("name", ["mobilenet_v3", "proxyless", "resnet50d"])
def test_the_structure_of_a_published_network_takes_no_memory(name: str) -> None:
    space = published_space(name)
    module = folded_structure(space, space.smallest())
    assert {value.device.type for value in module.state_dict().values()} == {"meta"}


# --- the images of calibration ----------------------------------------------------------------


def test_pictures_at_any_depth(
    checkpoint: Path, arch_file: Path, pictures: Path, tmp_path: Path
) -> None:
    found = export(
        checkpoint,
        arch_file,
        tmp_path / "net",
        format="state-dict",
        calibration=CalibrationData(pictures),
        resolution=16,
    )
    assert (found.images, found.arch.resolution) == (210, 16)
    assert found.mean == (0.485, 0.456, 0.406)
    assert "normalised by mean 0.485 0.456 0.406 and std 0.229 0.224 0.225" in found.input


def test_the_draw_is_the_same_twice_and_moments_matter(
    checkpoint: Path, arch_file: Path, pictures: Path, tmp_path: Path
) -> None:
    def made(**changes: Any) -> tuple[Exported, Any]:
        calibration = replace(CalibrationData(pictures, 200), **changes)
        out = tmp_path / "net"
        found = export(checkpoint, arch_file, out, format="state-dict", calibration=calibration)
        return found, contents(out)

    first, data = made()
    assert made() == (first, data)
    other, moved = made(mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert other.digest == first.digest
    assert moved != data


def test_a_last_batch_of_one_image_is_left_out(
    checkpoint: Path, arch_file: Path, pictures: Path, tmp_path: Path
) -> None:
    found = export(
        checkpoint,
        arch_file,
        tmp_path / "net",
        format="state-dict",
        calibration=CalibrationData(pictures, 201),
    )
    assert found.images == 200


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"images": 199}, "images = 199"),
        ({"mean": (0.5, 0.5)}, "mean ="),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean ="),
        ({"std": (0.2, 0.2, 0.0)}, "std ="),
        ({"std": (0.2, 0.2, float("inf"))}, "std ="),
    ],
)
def test_calibration_that_makes_no_sense(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CalibrationData("digits", **values)


# --- what is refused, before anything is written ----------------------------------------------


@pytest.fixture
def refused(checkpoint: Path, arch_file: Path, tmp_path: Path) -> Any:
    """Exports to a file that exists, and checks that it stays as it was, alone."""
    out = tmp_path / "out" / "net"
    out.parent.mkdir()
    out.write_bytes(b"as it was")

    def run(error: type[Exception], says: str, **changes: Any) -> Any:
        given = {"format": "state-dict", "calibration": DIGITS, **changes}
        paths = [given.pop("checkpoint", checkpoint), given.pop("arch_file", arch_file)]
        with pytest.raises(error, match=says) as raised:
            export(*paths, out, **given)
        assert [path.name for path in out.parent.iterdir()] == ["net"]
        assert out.read_bytes() == b"as it was"
        return raised.value

    return run


def test_an_unknown_format(refused: Any) -> None:
    refused(UnknownNameError, "'onyx'", format="onyx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_what_installs_it(
    refused: Any, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def missing(name: str) -> Any:
        if name == package:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(export_formats, "import_module", missing)
    error = refused(BackendUnavailable, f"^{package} is not installed", format="onnx")
    assert error.remedy == "pip install 'opa-trt[build,onnxruntime]'"


def test_fewer_pictures_than_a_batch(
    refused: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opa_trt.builder.export.read_images", None)  # nothing is decoded
    for path in sorted((pictures / "deep" / "0").iterdir())[:20]:
        path.unlink()
    error = refused(DataError, "has 190 images", calibration=CalibrationData(pictures))
    assert "at least 200" in error.expected


def test_a_folder_that_does_not_exist(refused: Any, tmp_path: Path) -> None:
    refused(DataError, "does not exist", calibration=CalibrationData(tmp_path / "gone"))


def test_a_picture_that_cannot_be_read(refused: Any, pictures: Path) -> None:
    bad = pictures / "bad.png"
    bad.write_bytes(b"none")
    error = refused(BadImageError, "bad.png", calibration=CalibrationData(pictures))
    assert error.paths == (bad,)


def test_bad_pictures_may_be_left_out(
    checkpoint: Path, arch_file: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "bad.png").write_bytes(b"none")
    found = export(
        checkpoint,
        arch_file,
        tmp_path / "net",
        format="state-dict",
        calibration=CalibrationData(pictures, skip_bad_images=True),
    )
    assert found.images == 210


def test_too_few_pictures_are_left(refused: Any, pictures: Path) -> None:
    for path in sorted((pictures / "deep" / "0").iterdir())[:20]:
        path.write_bytes(b"none")
    calibration = CalibrationData(pictures, skip_bad_images=True)
    refused(DataError, "has 190 images", calibration=calibration)


def test_an_arch_outside_the_space(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "arch.json"
    path.write_text('{"ks": 9, "e": 1, "d": 1}', encoding="utf-8")
    refused(ArchError, r"ks\[0\] is 9", arch_file=path)


def test_no_checkpoint(refused: Any, tmp_path: Path) -> None:
    refused(CheckpointError, "does not exist", checkpoint=tmp_path / "gone.safetensors")


def test_a_folder_in_the_place_of_the_file(
    checkpoint: Path, arch_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        export(checkpoint, arch_file, tmp_path, format="onnx", calibration=DIGITS)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_differs_is_not_written(
    refused: Any, monkeypatch: pytest.MonkeyPatch, name: str, factor: float
) -> None:
    form = type(export_form(name))
    honest = form.load
    monkeypatch.setattr(
        form, "load", lambda self, path: lambda inputs: honest(self, path)(inputs) * factor
    )
    error = refused(ParityError, f"the {name} file differs", format=name)
    assert "1e-03" in error.expected


# --- weights that cannot be read back ---------------------------------------------------------


def altered(path: Path, out: Path, key: str, value: str | None) -> Path:
    """A file with one entry of its metadata replaced or removed."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    metadata.pop(key)
    save_file(tensors, out, metadata=metadata if value is None else metadata | {key: value})
    return out


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("format", "opa_trt.supernet", "has format 'opa_trt.supernet'"),
        ("version", "2", "has version '2'"),
        ("space", None, "does not describe its space"),
        ("arch", None, "does not describe its arch"),
        ("arch", "[]", "does not describe its arch"),
        ("arch", '{"resolution": 20}', "does not describe its arch"),
    ],
)
def test_weights_with_other_metadata(
    exported: dict[str, Exported], tmp_path: Path, key: str, value: str | None, says: str
) -> None:
    path = altered(exported["state-dict"].path, tmp_path / "other", key, value)
    with pytest.raises(CheckpointError, match=says):
        load_subnet(path)


def test_weights_of_another_arch(
    exported: dict[str, Exported], checkpoint: Path, tmp_path: Path
) -> None:
    largest = json.dumps(load(checkpoint).space.largest().to_dict())
    path = altered(exported["state-dict"].path, tmp_path / "other", "arch", largest)
    with pytest.raises(CheckpointError, match="lacks") as raised:
        load_subnet(path)
    assert "opa-trt export" in raised.value.remedy


def test_a_supernet_is_no_subnet(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"opa_trt\.supernet"):
        load_subnet(checkpoint)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_subnet(tmp_path / "gone.safetensors")
