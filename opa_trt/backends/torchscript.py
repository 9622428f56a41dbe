"""TorchScript: runs wherever torch does; the portable default on a CPU."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.backends.torch_calls import (
    CUDA_TORCH,
    NO_GPU,
    exact,
    fill,
    on_stream,
    sample_inputs,
    torch_threads,
)
from opa_trt.clock import MonotonicClock
from opa_trt.device import CPU, CUDA
from opa_trt.errors import EngineError
from opa_trt.machine import has_gpu
from opa_trt.tree import TORCHSCRIPT, Segment, Target

SAMPLE = 16  # rows at most on which variants are compared: beyond, the order stays
BUDGET_MS = 250.0  # for comparing, once every variant ran twice
ROUNDS = (2, 20)  # of the comparison, at least and at most


@dataclass(frozen=True)
class Variant:
    """One way to run a trace.

    Args:
        optimized: whether ``torch.jit.optimize_for_inference`` rewrites it; else it is only frozen.
        channels_last: whether images and feature maps enter with their channels innermost; the
            layers behind then keep to that.
    """

    optimized: bool
    channels_last: bool


# On one x86 thread MobileNetV3 parts ran 1.1 to 3 times as fast with channels last as without, and
# a single small layer best as it is. Optimising brings blocked layouts of its own: it was ahead of
# plain freezing for some batches, and channels last changes nothing there.
VARIANTS = (Variant(False, True), Variant(False, False), Variant(True, False))


class TorchScriptBackend(Backend):
    """The portable trace itself, run in the way that was fastest as it was compiled."""

    name = "torchscript"
    revision = 2
    devices = (CPU, CUDA)

    def availability(self) -> Availability:
        if self.device == CUDA and not has_gpu():
            return Availability(reason=NO_GPU, install=CUDA_TORCH)
        return Availability(version=torch.__version__)

    def _compile(self, segment: Segment, target: Target) -> bytes:
        form = segment.forms[TORCHSCRIPT]
        with torch_threads(target):
            chosen = _fastest(form, segment, target)
        choice = {
            "form": _digest(form),
            "optimized": chosen.optimized,
            "channels_last": chosen.channels_last,
        }
        return json.dumps(choice, sort_keys=True).encode()

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        form = segment.forms[TORCHSCRIPT]
        choice = json.loads(data)
        if choice["form"] != _digest(form):
            msg = f"the bytes are not the trace of segment {segment.name}."
            raise EngineError(
                msg,
                remedy="compile it again.",
            )
        variant = Variant(bool(choice["optimized"]), bool(choice["channels_last"]))
        return TorchScriptEngine(form, variant, segment, target)


class TorchScriptEngine(Engine):
    """One trace on one device. Several threads may run a module at once: forks share it."""

    def __init__(self, form: bytes, variant: Variant, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        self.variant = variant
        self._module: Any = _prepared(form, variant, target)
        self._warm_up()

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        with torch.inference_mode(), on_stream(stream), exact(self.target):
            given = self._module(*(self._entering(inputs[s.name]) for s in self.segment.inputs))
            fill(self.segment.outputs, given, out)

    def _entering(self, tensor: Tensor) -> Tensor:
        if self.variant.channels_last and tensor.ndim == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _warm_up(self) -> None:
        """Let torch specialise: it observes the first run and compiles in the second one.

        A GPU also picks its kernels, and reserves memory, for the largest batch.
        """
        batches = [self.target.min_batch] * 2
        if self.target.device == CUDA:
            batches += [self.target.max_batch] * 2
        for batch in batches:
            self.run(sample_inputs(self.segment, self.target, batch))

    def _fork(self) -> Engine:
        return copy(self)

    def _close(self) -> None:
        self._module = None


def read_trace(data: bytes, device: str = CPU) -> Any:
    """The frozen TorchScript module in ``data``. Reading one can execute code: trust its source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit says at every call that it is deprecated
        # A frozen module's weights are constants, which ``to`` would leave where they are.
        module: Any = torch.jit.load(io.BytesIO(data), map_location=device)  # type: ignore[no-untyped-call]
        return module.eval()


def _fastest(form: bytes, segment: Segment, target: Target) -> Variant:
    """The variant whose best run on a large batch is the shortest; they run in turns."""
    engines = [TorchScriptEngine(form, variant, segment, target) for variant in VARIANTS]
    inputs = sample_inputs(segment, target, max(target.min_batch, min(SAMPLE, target.max_batch)))
    out = engines[0].run(inputs)
    clock = MonotonicClock()
    best = [float("inf")] * len(engines)
    begun = clock.now_ms()
    for count in range(1, ROUNDS[1] + 1):
        for place, engine in enumerate(engines):
            best[place] = min(best[place], _run_ms(engine, inputs, out, clock))
        if count >= ROUNDS[0] and clock.now_ms() - begun > BUDGET_MS:
            break
    return VARIANTS[best.index(min(best))]


def _run_ms(
    engine: Engine, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], clock: MonotonicClock
) -> float:
    begun = clock.now_ms()
    engine.run(inputs, out)
    if engine.target.device == CUDA:
        torch.cuda.synchronize()
    return clock.now_ms() - begun


def _prepared(form: bytes, variant: Variant, target: Target) -> Any:
    module = read_trace(form, target.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(module, "training"):  # a frozen one has forgotten it
            module = torch.jit.freeze(module)
        return torch.jit.optimize_for_inference(module) if variant.optimized else module


def _digest(form: bytes) -> str:
    return hashlib.sha256(form).hexdigest()
