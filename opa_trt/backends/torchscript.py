"""TorchScript: runs wherever torch does; the portable default on a CPU."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.errors import EngineError
from opa_trt.tree import TORCHSCRIPT, Segment, Target


class TorchScriptBackend(Backend):
    """The portable trace itself, optimised for inference as it is loaded."""

    name = "torchscript"

    def availability(self) -> Availability:
        return Availability(version=torch.__version__)

    def _compile(self, segment: Segment, target: Target) -> bytes:
        return _digest(segment.forms[TORCHSCRIPT])

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        if data != _digest(segment.forms[TORCHSCRIPT]):
            msg = f"the bytes are not the trace of segment {segment.name}."
            raise EngineError(
                msg,
                remedy="compile it again.",
            )
        return TorchScriptEngine(read_trace(segment.forms[TORCHSCRIPT]), segment, target)


class TorchScriptEngine(Engine):
    """One traced segment."""

    def __init__(self, module: Any, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit says at every call that it is deprecated
            self._module: Any = torch.jit.optimize_for_inference(module)

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        with torch.inference_mode():
            given = self._module(*(inputs[spec.name] for spec in self.segment.inputs))
            values = given if isinstance(given, tuple) else (given,)
            for spec, value in zip(self.segment.outputs, values, strict=True):
                out[spec.name].copy_(value)

    def _close(self) -> None:
        self._module = None


def _digest(form: bytes) -> bytes:
    return hashlib.sha256(form).digest()


def read_trace(data: bytes) -> Any:
    """The frozen TorchScript module in ``data``. Reading one can execute code: trust its source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
        return module.eval()
