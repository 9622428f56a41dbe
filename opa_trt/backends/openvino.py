"""OpenVINO on the CPU: fp32 meant as fp32, any batch of its range, tensors shared.

OpenVINO's own cache (CACHE_DIR) is left off: an exported model is past conversion and graph
passes already, and the store keeps it. Reading one back costs about a third of compiling.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opa_trt.backends.base import FP32, Availability, Backend, Engine
from opa_trt.backends.openvino_request import Request
from opa_trt.backends.torchscript import read_trace
from opa_trt.errors import CompileError, UnknownNameError
from opa_trt.tree import ONNX, TORCHSCRIPT, Segment, Target

INSTALL = "pip install 'opa-trt[openvino]'"
TYPES = {"uint8": np.uint8, "float32": np.float32}
HINTS = {FP32: "f32"}  # of every precision; left alone, OpenVINO picks bf16 where it is faster
LATENCY, THROUGHPUT = "latency", "throughput"


class OpenVinoBackend(Backend):
    """Engines are OpenVINO's own exported models. Running one needs no torch code.

    ONNX and TorchScript give equally fast engines; ONNX comes first because it cannot execute
    code and converts in half the time.

    Args:
        device: ``cpu``.
        hint: ``latency`` gives all threads to a run; ``throughput`` divides its rows among one
            thread each, which suits large batches on many cores.

    Raises:
        UnknownNameError: another hint or device.
    """

    name = "openvino"
    revision = 4
    forms = (ONNX, TORCHSCRIPT)
    executes_code = False
    precisions = tuple(HINTS)

    def __init__(self, device: str | None = None, hint: str = LATENCY) -> None:
        super().__init__(device)
        if hint not in (LATENCY, THROUGHPUT):
            kind = "hint of OpenVINO"
            raise UnknownNameError(kind, hint, (LATENCY, THROUGHPUT))
        self.hint = hint

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

    def capability(self) -> str:
        """Of this machine; engines for another hint than the default differ by its name."""
        machine = super().capability()
        return machine if self.hint == LATENCY else f"{machine} hint={self.hint}"

    def _compile(self, segment: Segment, target: Target) -> bytes:
        import openvino as ov

        read = {ONNX: _from_onnx, TORCHSCRIPT: _converted}[self.form(segment)]
        model = read(segment, target)
        for kind, ports, specs in (
            ("inputs", model.inputs, segment.inputs),
            ("outputs", model.outputs, segment.outputs),
        ):
            if len(ports) != len(specs):
                msg = f"OpenVINO sees {len(ports)} {kind} in {segment.name}."
                raise CompileError(msg, expected=f"{len(specs)}.")
        _bound(model, segment, target)
        compiled = ov.Core().compile_model(model, "CPU", self._options(target))
        data = io.BytesIO()
        compiled.export_model(data)
        return data.getvalue()

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        import openvino as ov

        compiled = ov.Core().import_model(io.BytesIO(data), "CPU", self._options(target))
        if self.hint == LATENCY:
            return OpenVinoEngine(compiled, segment, target)
        return DividedEngine(compiled, segment, target)

    def _options(self, target: Target) -> dict[str, Any]:
        streams = 1 if self.hint == LATENCY else target.threads
        return {
            "INFERENCE_PRECISION_HINT": HINTS[target.precision],
            "INFERENCE_NUM_THREADS": target.threads,
            "PERFORMANCE_HINT": self.hint.upper(),
            "NUM_STREAMS": streams,
        }


class OpenVinoEngine(Engine):
    """One compiled model with one request; inputs and outputs are shared, never copied.

    Forks have requests of their own. The model has one stream, so their runs take turns.
    """

    def __init__(self, compiled: Any, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        self._compiled = compiled
        self._request: Any = Request(compiled, segment)

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        self._request.bind(inputs, out)
        self._request.infer()

    def _fork(self) -> Engine:
        return OpenVinoEngine(self._compiled, self.segment, self.target)

    def _close(self) -> None:
        self._request = self._compiled = None


class DividedEngine(Engine):
    """One compiled model with a request for every thread; each takes a share of the rows."""

    def __init__(self, compiled: Any, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        self._compiled = compiled
        self._requests = [Request(compiled, segment) for _ in range(target.threads)]

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        batch = len(next(iter(inputs.values())))
        started = []
        try:
            for request, rows in zip(self._requests, self._shares(batch), strict=False):
                request.bind(_rows(inputs, rows), _rows(out, rows))
                request.start()
                started.append(request)
        finally:
            for request in started:
                request.wait()

    def _shares(self, batch: int) -> list[slice]:
        """The rows of each request: as even as can be, and none below the smallest batch."""
        count = max(1, min(len(self._requests), batch // self.target.min_batch))
        ends = [batch * part // count for part in range(count + 1)]
        return [slice(*pair) for pair in pairwise(ends)]

    def _fork(self) -> Engine:
        return DividedEngine(self._compiled, self.segment, self.target)

    def _close(self) -> None:
        self._requests = []
        self._compiled = None


def _rows(tensors: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}


def _from_onnx(segment: Segment, target: Target) -> Any:
    """OpenVINO's model of an ONNX file."""
    import openvino as ov

    return ov.Core().read_model(segment.forms[ONNX])


def _converted(segment: Segment, target: Target) -> Any:
    """OpenVINO's model of a trace.

    The frontend is called directly: ``openvino.convert_model`` does the same, but reports each
    call to its maker over the network.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = tuple(
        torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in segment.inputs
    )
    decoder = TorchScriptPythonDecoder(
        read_trace(segment.forms[TORCHSCRIPT]), example_input=example
    )
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))


def _bound(model: Any, segment: Segment, target: Target) -> None:
    """Give ``model`` the batch range of the target, and inputs of the segment's types."""
    import openvino as ov

    batch = ov.Dimension(target.min_batch, target.max_batch)
    for port, spec in zip(model.inputs, segment.inputs, strict=True):
        port.get_node().set_element_type(ov.Type(TYPES[spec.dtype]))
        port.get_node().set_partial_shape(ov.PartialShape([batch, *spec.shape]))
    model.validate_nodes_and_infer_types()
