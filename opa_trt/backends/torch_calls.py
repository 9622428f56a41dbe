"""How torch's own backends call what they compiled: samples, threads, streams, exact fp32."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from opa_trt.device import CPU
from opa_trt.errors import EngineError
from opa_trt.tree import Segment, Target, TensorSpec

NO_GPU = "no GPU that torch can use."
CUDA_TORCH = "install a CUDA build of torch, on a machine with an NVIDIA GPU."


def sample_inputs(segment: Segment, target: Target, batch: int) -> dict[str, Tensor]:
    """Seeded inputs of the segment on the target's device: pixels, or standard normal numbers."""
    draw = torch.Generator().manual_seed(batch)
    made = {}
    for spec in segment.inputs:
        shape, dtype = (batch, *spec.shape), getattr(torch, spec.dtype)
        if dtype.is_floating_point:
            values = torch.randn(shape, generator=draw).to(dtype)
        else:
            values = torch.randint(0, 256, shape, generator=draw, dtype=dtype)
        made[spec.name] = values.to(target.device)
    return made


def fill(specs: Sequence[TensorSpec], given: Any, out: Mapping[str, Tensor]) -> None:
    """Copy what a module gave, one tensor or several in order, into ``out``."""
    values = given if isinstance(given, tuple | list) else (given,)
    if len(values) != len(specs):
        msg = f"{len(values)} outputs came."
        raise EngineError(msg, expected=f"{len(specs)}.")
    for spec, value in zip(specs, values, strict=True):
        if value.shape != out[spec.name].shape:
            msg = f"output {spec.name} came as {tuple(value.shape)}."
            raise EngineError(msg, expected=f"{tuple(out[spec.name].shape)}.")
        out[spec.name].copy_(value)


def on_stream(stream: Any) -> Any:
    """Within, torch enqueues on ``stream``, or where it does anyway (None)."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


class Turns:
    """Runs of engines that share what only one may use at a time: one after the other, on the
    host and, across streams, on a GPU."""

    def __init__(self, target: Target) -> None:
        self._away = target.device != CPU
        self._lock = threading.Lock()
        self._last: Any = None  # the stream of the latest run

    @contextmanager
    def turn(self, stream: Any) -> Iterator[None]:
        """What runs within comes after all earlier turns. ``stream`` is as ``run`` has it."""
        with self._lock:
            if self._away:
                stream = torch.cuda.current_stream() if stream is None else stream
                if self._last is not None and self._last != stream:
                    stream.wait_stream(self._last)
                self._last = stream
            yield


class _Exact:
    """Torch's rounding to TF32, which is the process's: off as long as any thread needs it so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._before = False, False

    def begin(self) -> None:
        with self._lock:
            if self._runs == 0:
                self._before = _CONVOLUTIONS.allow_tf32, _MATRICES.allow_tf32
                _CONVOLUTIONS.allow_tf32 = _MATRICES.allow_tf32 = False
            self._runs += 1

    def end(self) -> None:
        with self._lock:
            self._runs -= 1
            if self._runs == 0:
                _CONVOLUTIONS.allow_tf32, _MATRICES.allow_tf32 = self._before


_CONVOLUTIONS, _MATRICES = torch.backends.cudnn, torch.backends.cuda.matmul
_EXACT = _Exact()


@contextmanager
def exact(target: Target) -> Iterator[None]:
    """Within, fp32 on a GPU is fp32: torch's own default rounds convolutions to TF32."""
    if target.device == CPU:
        yield
        return
    _EXACT.begin()
    try:
        yield
    finally:
        _EXACT.end()


@contextmanager
def torch_threads(target: Target) -> Iterator[None]:
    """Within, torch has the threads of a CPU target."""
    before = torch.get_num_threads()
    if target.device == CPU:
        torch.set_num_threads(target.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
