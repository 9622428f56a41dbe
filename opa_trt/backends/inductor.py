"""AOTInductor: the exported program as a shared library, compiled ahead of time."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.device import CPU, CUDA
from opa_trt.tree import PT2, Segment, Target


class InductorBackend(Backend):
    """Engines are AOTInductor packages: machine code and weights in one file."""

    name = "inductor"
    forms = (PT2,)
    devices = (CPU, CUDA)
    quick = False

    def availability(self) -> Availability:
        return Availability(version=torch.__version__)

    def _compile(self, segment: Segment, target: Target) -> bytes:
        program = torch.export.load(io.BytesIO(segment.forms[PT2]))
        with tempfile.TemporaryDirectory(prefix="opa_trt-") as folder:
            package = str(Path(folder) / "engine.pt2")
            torch._inductor.aoti_compile_and_package(program, package_path=package)
            return Path(package).read_bytes()

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        with tempfile.TemporaryDirectory(prefix="opa_trt-") as folder:
            package = Path(folder) / "engine.pt2"
            package.write_bytes(data)
            model = torch._inductor.aoti_load_package(str(package))
        return InductorEngine(model, segment, target)


class InductorEngine(Engine):
    """One loaded package."""

    def __init__(self, model: Any, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        self._model = model

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        with torch.inference_mode():
            given = self._model(*(inputs[spec.name] for spec in self.segment.inputs))
            values = given if isinstance(given, (tuple, list)) else (given,)
            for spec, value in zip(self.segment.outputs, values, strict=True):
                out[spec.name].copy_(value)

    def _close(self) -> None:
        self._model = None
