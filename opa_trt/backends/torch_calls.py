"""How torch's own backends call what they compiled: samples, threads, streams, exact fp32."""

from __future__ import annotations

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


@contextmanager
def exact(target: Target) -> Iterator[None]:
    """Within, fp32 on a GPU is fp32: torch's own default rounds convolutions to TF32."""
    if target.device == CPU:
        yield
        return
    convolutions, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, matrices.allow_tf32
    convolutions.allow_tf32 = matrices.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, matrices.allow_tf32 = before


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
