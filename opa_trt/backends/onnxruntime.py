"""ONNX Runtime on the CPU: the graph that it optimised here, tensors shared and never copied."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.device import CPU
from opa_trt.errors import CompileError
from opa_trt.tree import ONNX, Segment, Target, TensorSpec

INSTALL = "pip install 'opa-trt[onnxruntime]'"
PROVIDERS = ["CPUExecutionProvider"]
FATAL = 4  # the only messages that it may print; all others come as exceptions
KEPT = 32  # bindings that an engine remembers


class OnnxRuntimeBackend(Backend):
    """Engines are ONNX graphs, optimised for this processor: they hold no code.

    Args:
        device: ``cpu``.
        spin: let threads spin while they wait within a run. At one image that was up to 1.4 times
            as fast where nothing else wanted the cores (docs/results/backends.md); whatever else
            does want them waits: for machines that run this alone.
    """

    name = "onnxruntime"
    revision = 2
    forms = (ONNX,)
    executes_code = False

    def __init__(self, device: str | None = None, *, spin: bool = False) -> None:
        super().__init__(device)
        self.spin = spin

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

    def capability(self) -> str:
        """Of this machine; engines whose threads spin differ by it, as their latencies do."""
        machine = super().capability()
        return f"{machine} spin" if self.spin else machine

    def _compile(self, segment: Segment, target: Target) -> bytes:
        """The optimised graph: it gives the same outputs and loads two to three times as fast."""
        import onnxruntime as ort

        options = _options(target, spin=self.spin)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        with tempfile.TemporaryDirectory(prefix="opa_trt-") as folder:
            optimised = Path(folder) / "engine.onnx"
            options.optimized_model_filepath = str(optimised)
            session = ort.InferenceSession(segment.forms[ONNX], options, PROVIDERS)
            _check_tensors(session, segment.in_onnx())
            return optimised.read_bytes()

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        import onnxruntime as ort

        options = _options(target, spin=self.spin)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(data, options, PROVIDERS)
        return OnnxRuntimeEngine(session, segment, target)


class OnnxRuntimeEngine(Engine):
    """One session; inputs and outputs are bound where they lie, never copied.

    A session may run in several threads at once: forks share it, with bindings of their own.
    """

    def __init__(self, session: Any, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        self._session = session
        self._named = segment.in_onnx()
        self._known: dict[tuple[int, ...], Any] = {}

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        self._session.run_with_iobinding(self._binding(inputs, out))

    def _binding(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> Any:
        """What tells the session of these tensors: made once for every place that they lie at.

        It holds addresses and shapes only, and is used again only for tensors that have the same.
        """
        read = [inputs[spec.name] for spec in self.segment.inputs]
        written = [out[spec.name] for spec in self.segment.outputs]
        place = (len(read[0]), *(tensor.data_ptr() for tensor in (*read, *written)))
        known = self._known.get(place)
        if known is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            known = self._known[place] = self._session.io_binding()
            for spec, tensor in zip(self._named.inputs, read, strict=True):
                known.bind_input(*_place(spec, tensor))
            for spec, tensor in zip(self._named.outputs, written, strict=True):
                known.bind_output(*_place(spec, tensor))
        return known

    def _fork(self) -> Engine:
        return OnnxRuntimeEngine(self._session, self.segment, self.target)

    def _close(self) -> None:
        self._known = {}
        self._session = None


def _place(spec: TensorSpec, tensor: Tensor) -> tuple[Any, ...]:
    return spec.name, CPU, 0, np.dtype(spec.dtype), list(tensor.shape), tensor.data_ptr()


def _options(target: Target, *, spin: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin after a run hold the cores that the next engine of a route, perhaps another
    # vendor's, runs on: they must stop with the run. Within a run they may spin where asked.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = FATAL
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
