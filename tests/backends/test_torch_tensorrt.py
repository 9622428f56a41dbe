"""Torch-TensorRT, whose package does not import without CUDA: how it is called, by an invented one.

The invented package "compiles" to the program itself, so that what is saved and loaded runs.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from opa_trt.backends import backend
from opa_trt.backends.torch_tensorrt import TorchTensorRTBackend, TorchTensorRTEngine
from opa_trt.errors import CompileError, EngineError
from opa_trt.tree import FEATURES, IMAGES, LOGITS, PT2, Segment, Target, TensorSpec

TARGET = Target("torch_tensorrt", "2.13.0", "cpu", max_batch=8)


class Net(nn.Module):
    """``[N, 3, 4, 4] uint8`` to features ``[N, 2]`` and logits ``[N, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 2), nn.Linear(2, 5)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.first(images.float().flatten(1) / 255)
        return features, self.second(features)


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture(scope="module")
def segment(net: Net) -> Segment:
    batch = torch.export.Dim("batch", min=1, max=8)
    example = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    program = torch.export.export(net, (example,), dynamic_shapes=({0: batch},))
    data = io.BytesIO()
    torch.export.save(program, data)
    inputs = (TensorSpec(IMAGES, (3, 4, 4), "uint8"),)
    outputs = (TensorSpec(FEATURES, (2,)), TensorSpec(LOGITS, (5,)))
    return Segment("pioneer", inputs, outputs, {PT2: data.getvalue()}, "content")


class Vendor(ModuleType):
    """The package, as far as we call it; notes how it was called."""

    __version__ = "2.13.0"

    def __init__(self) -> None:
        super().__init__("torch_tensorrt")
        self.compiled: dict[str, Any] = {}
        self.saved: dict[str, Any] = {}
        self.dynamo = SimpleNamespace(compile=self.compile)

    def Input(self, **facts: Any) -> dict[str, Any]:
        return facts

    def compile(
        self,
        program: Any,
        inputs: Sequence[Any],
        *,
        min_block_size: int = 5,
        require_full_compilation: bool = False,
        disable_tf32: bool = False,
        enable_autocast: bool = False,
        autocast_low_precision_type: Any = None,
        **ignored: Any,
    ) -> Any:
        self.compiled = {
            "inputs": inputs,
            "min_block_size": min_block_size,
            "require_full_compilation": require_full_compilation,
            "disable_tf32": disable_tf32,
            "autocast": autocast_low_precision_type if enable_autocast else None,
            "ignored": ignored,
        }
        return program

    def save(self, module: Any, file_path: str, **facts: Any) -> None:
        self.saved = facts
        torch.export.save(module, file_path)

    def load(self, file_path: str) -> Any:
        return torch.export.load(file_path)


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Vendor:
    """Installed on a machine with a GPU."""
    made, below = Vendor(), ModuleType("tensorrt")
    below.__version__ = "11.0.0.114"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_tensorrt", made)
    monkeypatch.setitem(sys.modules, "tensorrt", below)
    install(monkeypatch, "torch-tensorrt")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("opa_trt.backends.torch_tensorrt.has_gpu", lambda: True)
    return made


@pytest.fixture
def here(vendor: Vendor) -> TorchTensorRTBackend:
    """The backend, on a "GPU" that is the CPU."""
    made = TorchTensorRTBackend()
    made.device = "cpu"
    return made


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return "2.13.0"

    monkeypatch.setattr("opa_trt.backends.torch_tensorrt.version", version)


# --- availability -------------------------------------------------------------------------------


def test_it_works_with_the_version_of_both_libraries(vendor: Vendor) -> None:
    found = backend("torch_tensorrt").availability()
    assert found
    assert found.version == "2.13.0 on TensorRT 11.0.0.114"


def test_a_missing_package_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    found = backend("torch_tensorrt").availability()
    assert found.reason == "torch_tensorrt is not installed."
    assert found.install == "pip install 'opa-trt[torch-tensorrt]'"


def test_both_distributions_at_once_are_refused(vendor: Vendor, monkeypatch: Any) -> None:
    install(monkeypatch, "torch-tensorrt", "torch-tensorrt-rtx")
    found = backend("torch_tensorrt").availability()
    assert "torch-tensorrt and torch-tensorrt-rtx are both installed" in found.reason
    assert found.install == "pip uninstall torch-tensorrt torch-tensorrt-rtx"


def test_the_other_distribution_is_named_in_the_version(vendor: Vendor, monkeypatch: Any) -> None:
    install(monkeypatch, "torch-tensorrt-rtx")
    assert "on TensorRT-RTX" in backend("torch_tensorrt").availability().version


def test_on_a_cpu_build_of_torch_it_is_not_even_imported(vendor: Vendor, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    found = backend("torch_tensorrt").availability()
    assert found.reason.startswith("torch_tensorrt needs a CUDA build of torch, not")
    assert not found.compiles


def test_without_a_gpu_it_neither_runs_nor_compiles(vendor: Vendor, monkeypatch: Any) -> None:
    monkeypatch.setattr("opa_trt.backends.torch_tensorrt.has_gpu", lambda: False)
    found = backend("torch_tensorrt").availability()
    assert "no NVIDIA GPU" in found.reason
    assert not found.compiles


@pytest.mark.parametrize("kind", [Exception, AssertionError, ImportError, OSError])
def test_a_package_that_fails_to_import_says_why(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def broken(name: str) -> Any:
        raise kind("libnvinfer not found")

    monkeypatch.setattr("opa_trt.backends.torch_tensorrt.import_module", broken)
    found = backend("torch_tensorrt").availability()
    assert found.reason == "torch_tensorrt fails: libnvinfer not found."


def test_its_engines_can_execute_code_and_take_long_to_make() -> None:
    made = backend("torch_tensorrt")
    assert made.executes_code
    assert not made.quick
    assert made.forms == (PT2,)


# --- compiling ----------------------------------------------------------------------------------


def test_the_whole_program_becomes_one_engine_in_fp32(
    here: Any, vendor: Vendor, segment: Segment
) -> None:
    here._compile(segment, TARGET)
    whole = {"min_block_size": 1, "require_full_compilation": True, "disable_tf32": True}
    assert whole.items() <= vendor.compiled.items()
    assert vendor.compiled["autocast"] is None
    assert vendor.compiled["ignored"] == {}


def test_fp16_is_cast_in_the_program(here: Any, vendor: Vendor, segment: Segment) -> None:
    here._compile(segment, Target("torch_tensorrt", "2.13.0", "cpu", "fp16", max_batch=8))
    assert vendor.compiled["autocast"] is torch.float16
    assert vendor.compiled["ignored"] == {}


@pytest.mark.parametrize(
    ("smallest", "shapes"),
    [
        (
            1,
            {
                "min_shape": (1, 3, 4, 4),
                "opt_shape": (8, 3, 4, 4),
                "max_shape": (8, 3, 4, 4),
            },
        ),
        (8, {"shape": (8, 3, 4, 4)}),
    ],
)
def test_inputs_have_the_batches_of_the_target(
    here: Any, vendor: Vendor, segment: Segment, smallest: int, shapes: dict[str, Any]
) -> None:
    here._compile(segment, Target("torch_tensorrt", "1", "cpu", min_batch=smallest, max_batch=8))
    wanted = [{**shapes, "dtype": torch.uint8}]
    assert vendor.compiled["inputs"] == wanted
    assert vendor.saved == {
        "output_format": "exported_program",
        "arg_inputs": wanted,
        "retrace": True,
    }


def test_an_option_that_the_vendor_would_ignore_is_refused(
    here: Any, vendor: Vendor, segment: Segment
) -> None:
    def older(program: Any, inputs: Any, *, min_block_size: int = 5, **ignored: Any) -> Any:
        return program

    vendor.dynamo.compile = older
    said = "2.13.0 has no option disable_tf32, require_full_compilation"
    with pytest.raises(CompileError, match=said):
        here._compile(segment, TARGET)


def test_what_the_vendor_refuses_is_a_compile_error(
    here: Any, vendor: Vendor, segment: Segment
) -> None:
    def refuse(
        program: Any,
        inputs: Any,
        *,
        min_block_size: int,
        require_full_compilation: bool,
        disable_tf32: bool,
    ) -> Any:
        raise AssertionError("not every operator has a converter")

    vendor.dynamo.compile = refuse
    with pytest.raises(CompileError, match="cannot compile pioneer: not every operator"):
        here.compile(segment, TARGET)


def test_a_damaged_program_is_a_compile_error(here: Any, segment: Segment) -> None:
    broken = Segment("pioneer", segment.inputs, segment.outputs, {PT2: b"nothing"}, "content")
    with pytest.raises(CompileError, match="cannot compile pioneer"):
        here.compile(broken, TARGET)


# --- running ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5, 8])
def test_what_was_saved_is_loaded_and_fills_the_outputs(
    here: Any, segment: Segment, net: Net, batch: int
) -> None:
    engine = here.load(here.compile(segment, TARGET), segment, TARGET)
    draw = torch.Generator().manual_seed(batch)
    images = torch.randint(0, 256, (batch, 3, 4, 4), dtype=torch.uint8, generator=draw)
    out = {FEATURES: torch.zeros(batch, 2)}
    given = engine.run({IMAGES: images}, out)
    assert given[FEATURES] is out[FEATURES]
    with torch.no_grad():
        features, logits = net(images)
    torch.testing.assert_close(out[FEATURES], features)
    torch.testing.assert_close(given[LOGITS], logits)


def test_nothing_is_left_in_temporary_folders(
    here: Any, segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    here.load(here.compile(segment, TARGET), segment, TARGET)
    assert list(tmp_path.iterdir()) == []


def test_half_outputs_are_widened_and_a_stream_is_used(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    class On:
        def __init__(self, stream: Any) -> None:
            used.append(stream)

        def __enter__(self) -> None:
            used.append("entered")

        def __exit__(self, *_: Any) -> None:
            used.append("left")

    def module(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        used.append("run")
        return torch.full((2, 2), 0.5).half(), torch.full((2, 5), 0.25).half()

    monkeypatch.setattr(torch.cuda, "stream", On)
    engine = TorchTensorRTEngine(module, segment, TARGET)
    images = {IMAGES: torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}
    found = engine.run(images, stream="a stream")
    assert used == ["a stream", "entered", "run", "left"]
    assert found[LOGITS].dtype == torch.float32
    assert (found[LOGITS] == 0.25).all()


def test_a_program_with_other_outputs_is_an_engine_error(segment: Segment) -> None:
    engine = TorchTensorRTEngine(lambda images: torch.zeros(2, 5), segment, TARGET)
    with pytest.raises(EngineError, match="pioneer"):
        engine.run({IMAGES: torch.zeros(2, 3, 4, 4, dtype=torch.uint8)})


def test_a_closed_engine_is_refused(segment: Segment) -> None:
    engine = TorchTensorRTEngine(lambda images: images, segment, TARGET)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({IMAGES: torch.zeros(2, 3, 4, 4, dtype=torch.uint8)})


@pytest.mark.gpu
def test_the_real_one_gives_what_eager_gives(net: Net, segment: Segment) -> None:
    made = backend("torch_tensorrt")
    if not made.availability():
        pytest.skip(f"torch_tensorrt: {made.availability().reason}")
    target = made.target(max_batch=8, threads=1)
    engine = made.load(made.compile(segment, target), segment, target)
    images = torch.arange(3 * 48).remainder(256).to(torch.uint8).view(3, 3, 4, 4)
    found = engine.run({IMAGES: images.cuda()})[LOGITS].cpu()
    torch.testing.assert_close(found, net(images)[1], atol=1e-4, rtol=1e-4)
