"""A backend that computes nothing: for tests, dry runs and measuring the runtime itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.clock import VirtualClock
from opa_trt.errors import EngineError
from opa_trt.tree import Segment, Target, TensorSpec

Latency = Callable[[str, int], float]
Outputs = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class NullBackend(Backend):
    """Engines that take as long as they are told, on a virtual clock, and invent outputs.

    Args:
        clock: advanced by every run; None lets no time pass.
        latency_ms: from (segment name, batch) to ms.
        outputs: what a segment gives, by segment name; for others each row's logits are a fixed
            projection of that row's mean, and features are the mean itself.
        device: ``cpu``.
    """

    name = "null"
    forms = ()
    executes_code = False
    stored = False
    tolerance = None

    def __init__(
        self,
        clock: VirtualClock | None = None,
        latency_ms: Latency | None = None,
        outputs: Mapping[str, Outputs] | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(device)
        self.clock = clock
        self.latency_ms = latency_ms
        self.outputs = dict(outputs or {})

    def availability(self) -> Availability:
        return Availability(version="1")

    def _compile(self, segment: Segment, target: Target) -> bytes:
        return segment.content.encode()

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        if data != segment.content.encode():
            msg = f"the bytes are not the null engine of segment {segment.name}."
            raise EngineError(
                msg,
                remedy="compile it again.",
            )
        return NullEngine(segment, target, self)


class NullEngine(Engine):
    """One invented segment."""

    def __init__(self, segment: Segment, target: Target, backend: NullBackend) -> None:
        super().__init__(segment, target)
        self._backend = backend

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        first = next(iter(inputs.values()))
        outputs = self._backend.outputs.get(self.segment.name)
        if outputs is not None:
            for name, values in outputs(inputs).items():
                out[name].copy_(values)
        else:
            mean = first.float().flatten(1).mean(1)
            for spec in self.segment.outputs:
                out[spec.name].copy_(_invented(spec, mean))
        if self._backend.clock is not None and self._backend.latency_ms is not None:
            self._backend.clock.advance(self._backend.latency_ms(self.segment.name, len(first)))

    def _fork(self) -> Engine:
        return NullEngine(self.segment, self.target, self._backend)


def _invented(spec: TensorSpec, mean: Tensor) -> Tensor:
    values = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
    weights = torch.from_numpy(values)[None]
    return weights * mean.view(-1, *([1] * len(spec.shape)))
