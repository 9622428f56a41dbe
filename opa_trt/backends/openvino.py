"""OpenVINO on the CPU: converted from the trace, fp32 meant as fp32, any batch of its range."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.backends.torchscript import read_trace
from opa_trt.errors import CompileError
from opa_trt.tree import ONNX, TORCHSCRIPT, Segment, Target

INSTALL = "pip install 'opa-trt[openvino]'"
TYPES = {"uint8": np.uint8, "float32": np.float32}


class OpenVinoBackend(Backend):
    """Engines are OpenVINO's own exported models. Running one needs no torch code."""

    name = "openvino"
    revision = 3
    forms = (ONNX, TORCHSCRIPT)
    executes_code = False

    def availability(self) -> Availability:
        try:
            found = version("openvino")
            import openvino

            openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
        except PackageNotFoundError:
            return Availability(reason="openvino is not installed.", install=INSTALL)
        except Exception as exc:
            return Availability(reason=f"openvino fails: {exc}.", install=INSTALL)
        return Availability(version=found)

    def _compile(self, segment: Segment, target: Target) -> bytes:
        import openvino as ov

        read = {ONNX: _from_onnx, TORCHSCRIPT: _converted}[self.form(segment)]
        model = read(segment, target)
        if len(model.outputs) != len(segment.outputs):
            msg = f"OpenVINO sees {len(model.outputs)} outputs in {segment.name}."
            raise CompileError(
                msg,
                expected=f"{len(segment.outputs)}.",
            )
        compiled = ov.Core().compile_model(model, "CPU", _options(target))
        data = io.BytesIO()
        compiled.export_model(data)
        return data.getvalue()

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        import openvino as ov

        compiled = ov.Core().import_model(io.BytesIO(data), "CPU", _options(target))
        return OpenVinoEngine(compiled, segment, target)


class OpenVinoEngine(Engine):
    """One compiled model with one request; inputs and outputs are shared, never copied."""

    def __init__(self, compiled: Any, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        import openvino as ov

        self._tensor = ov.Tensor
        self._request = compiled.create_infer_request()

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        for index, spec in enumerate(self.segment.inputs):
            self._request.set_input_tensor(index, self._shared(inputs[spec.name]))
        for index, spec in enumerate(self.segment.outputs):
            self._request.set_output_tensor(index, self._shared(out[spec.name]))
        self._request.infer()

    def _shared(self, tensor: Tensor) -> Any:
        return self._tensor(tensor.detach().numpy(), shared_memory=True)

    def _close(self) -> None:
        self._request = None


def _from_onnx(segment: Segment, target: Target) -> Any:
    """OpenVINO's model of an ONNX file, for every batch size of the target."""
    import openvino as ov

    model = ov.Core().read_model(segment.forms[ONNX])
    return _bounded(model, segment, target)


def _converted(segment: Segment, target: Target) -> Any:
    """OpenVINO's model of a trace, for every batch size of the target.

    The frontend is called directly: ``openvino.convert_model`` does the same, but reports each
    call to its maker over the network.
    """
    import openvino as ov
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = tuple(
        torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in segment.inputs
    )
    decoder = TorchScriptPythonDecoder(
        read_trace(segment.forms[TORCHSCRIPT]), example_input=example
    )
    frontend = FrontEndManager().load_by_framework("pytorch")
    return _bounded(frontend.convert(frontend.load(decoder)), segment, target)


def _bounded(model: Any, segment: Segment, target: Target) -> Any:
    """``model`` with the batch range of the target, and inputs of the segment's types."""
    import openvino as ov

    batch = ov.Dimension(target.min_batch, target.max_batch)
    for port, spec in zip(model.inputs, segment.inputs, strict=True):
        port.get_node().set_element_type(ov.Type(TYPES[spec.dtype]))
        port.get_node().set_partial_shape(ov.PartialShape([batch, *spec.shape]))
    model.validate_nodes_and_infer_types()
    return model


def _options(target: Target) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": target.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
