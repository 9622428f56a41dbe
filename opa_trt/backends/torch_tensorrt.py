"""Torch-TensorRT: exported programs compiled whole, saved and loaded as exported programs.

Two distributions, ``torch-tensorrt`` and ``torch-tensorrt-rtx``, provide its package; only one of
them may be installed.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping
from contextlib import nullcontext
from copy import copy
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from opa_trt.backends.base import FP16, FP32, Availability, Backend, Engine
from opa_trt.backends.torch_calls import Turns
from opa_trt.device import CUDA
from opa_trt.errors import CompileError
from opa_trt.machine import has_gpu
from opa_trt.tree import PT2, Segment, Target, TensorSpec

INSTALL = "pip install 'opa-trt[torch-tensorrt]'"
LIBRARIES = {"torch-tensorrt": "TensorRT", "torch-tensorrt-rtx": "TensorRT-RTX"}  # by distribution


class TorchTensorRTBackend(Backend):
    """Engines are exported programs that hold one TensorRT engine each."""

    name = "torch_tensorrt"
    forms = (PT2,)
    devices = (CUDA,)
    precisions = (FP32, FP16)
    quick = False

    def availability(self) -> Availability:
        installed = [name for name in LIBRARIES if _installed(name)]
        if not installed:
            return Availability(reason="torch_tensorrt is not installed.", install=INSTALL)
        if len(installed) > 1:
            reason = f"{' and '.join(installed)} are both installed, and overwrite each other."
            return Availability(reason=reason, install=f"pip uninstall {' '.join(installed)}")
        if torch.version.cuda is None:
            reason = f"torch_tensorrt needs a CUDA build of torch, not {torch.__version__}."
            return Availability(reason=reason, install=INSTALL)
        if not has_gpu():
            reason = "no NVIDIA GPU that torch can use."
            return Availability(reason=reason, install="a machine with an NVIDIA GPU.")
        try:
            found = import_module("torch_tensorrt").__version__
            below = import_module("tensorrt").__version__  # either library goes by this name then
        except Exception as exc:  # missing libraries raise plain Exception and AssertionError
            return Availability(reason=f"torch_tensorrt fails: {exc}.", install=INSTALL)
        return Availability(version=f"{found} on {LIBRARIES[installed[0]]} {below}")

    def _compile(self, segment: Segment, target: Target) -> bytes:
        vendor = import_module("torch_tensorrt")
        program = torch.export.load(io.BytesIO(segment.forms[PT2]))
        program = import_module("torch.export.passes").move_to_device_pass(program, self.device)
        inputs = [_input(vendor, spec, target) for spec in segment.inputs]
        options = _options(target.precision)
        known = inspect.signature(vendor.dynamo.compile).parameters
        if unknown := sorted(options.keys() - known.keys()):  # it would ignore them
            message = f"torch_tensorrt {vendor.__version__} has no option {', '.join(unknown)}."
            raise CompileError(message, remedy=INSTALL)
        compiled = vendor.dynamo.compile(program, inputs=inputs, **options)
        with TemporaryDirectory() as folder:
            path = Path(folder, "engine.ep")
            kind = "exported_program"
            vendor.save(compiled, str(path), output_format=kind, arg_inputs=inputs, retrace=True)
            return path.read_bytes()

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        vendor = import_module("torch_tensorrt")
        with TemporaryDirectory() as folder:
            path = Path(folder, "engine.ep")
            path.write_bytes(data)
            module = vendor.load(str(path)).module()
        return TorchTensorRTEngine(module, segment, target)


class TorchTensorRTEngine(Engine):
    """One compiled program. It allocates its outputs, which are copied into those wanted.

    It has one execution context, which allows one run at a time: those of forks take turns.
    """

    def __init__(self, module: Any, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        self._module = module
        self._turns = Turns(target)

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        on_stream = nullcontext() if stream is None else torch.cuda.stream(stream)
        with self._turns.turn(stream), torch.inference_mode(), on_stream:
            given = self._module(*(inputs[spec.name] for spec in self.segment.inputs))
            values = given if isinstance(given, (tuple, list)) else (given,)
            for spec, value in zip(self.segment.outputs, values, strict=True):
                out[spec.name].copy_(value)

    def _fork(self) -> Engine:
        return copy(self)

    def _close(self) -> None:
        self._module = None


def _options(precision: str) -> dict[str, Any]:
    """Everything in one TensorRT engine, whose types are those of the program, or cast to half."""
    options: dict[str, Any] = {
        "min_block_size": 1,  # small tails, too, leave nothing to torch
        "require_full_compilation": True,
        "disable_tf32": True,
    }
    if precision == FP16:
        options |= {"enable_autocast": True, "autocast_low_precision_type": torch.float16}
    return options


def _input(vendor: Any, spec: TensorSpec, target: Target) -> Any:
    """The vendor's description of an input, tuned for the largest batch."""
    dtype = getattr(torch, spec.dtype)
    smallest, largest = (target.min_batch, *spec.shape), (target.max_batch, *spec.shape)
    if smallest == largest:
        return vendor.Input(shape=largest, dtype=dtype)
    return vendor.Input(min_shape=smallest, opt_shape=largest, max_shape=largest, dtype=dtype)


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
