"""ONNX Runtime on the CPU: the graph that it optimised here, tensors shared and never copied."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.errors import CompileError
from opa_trt.tree import ONNX, Segment, Target

INSTALL = "pip install 'opa-trt[onnxruntime]'"
PROVIDERS = ("CPUExecutionProvider",)


class OnnxRuntimeBackend(Backend):
    """Engines are ONNX graphs, optimised for this processor: they hold no code."""

    name = "onnxruntime"
    forms = (ONNX,)
    executes_code = False

    def availability(self) -> Availability:
        try:
            found = version("onnxruntime")
            import onnxruntime

            onnxruntime.get_available_providers()
        except PackageNotFoundError:
            return Availability(reason="onnxruntime is not installed.", install=INSTALL)
        except Exception as exc:
            return Availability(reason=f"onnxruntime fails: {exc}.", install=INSTALL)
        return Availability(version=found)

    def _compile(self, segment: Segment, target: Target) -> bytes:
        import onnxruntime as ort

        options = _options(target)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        with tempfile.TemporaryDirectory(prefix="opa_trt-") as folder:
            optimised = Path(folder) / "engine.onnx"
            options.optimized_model_filepath = str(optimised)
            session = ort.InferenceSession(segment.forms[ONNX], options, list(PROVIDERS))
            _check_tensors(session, segment)
            return optimised.read_bytes()

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        import onnxruntime as ort

        options = _options(target)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(data, options, list(PROVIDERS))
        return OnnxRuntimeEngine(session, segment, target)


class OnnxRuntimeEngine(Engine):
    """One session; inputs and outputs are bound where they lie."""

    def __init__(self, session: Any, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        self._session = session
        self._binding = session.io_binding()

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        for spec in self.segment.inputs:
            given = inputs[spec.name]
            self._binding.bind_input(
                spec.name, "cpu", 0, spec.dtype, list(given.shape), given.data_ptr()
            )
        for spec in self.segment.outputs:
            room = out[spec.name]
            self._binding.bind_output(
                spec.name, "cpu", 0, spec.dtype, list(room.shape), room.data_ptr()
            )
        self._session.run_with_iobinding(self._binding)

    def _close(self) -> None:
        self._binding = None
        self._session = None


def _options(target: Target) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    return options


def _check_tensors(session: Any, segment: Segment) -> None:
    for kind, found, specs in (
        ("inputs", session.get_inputs(), segment.inputs),
        ("outputs", session.get_outputs(), segment.outputs),
    ):
        names, wanted = [port.name for port in found], [spec.name for spec in specs]
        if names != wanted:
            msg = f"the ONNX form of {segment.name} has the {kind} {names}."
            raise CompileError(msg, expected=f"{wanted}.")
