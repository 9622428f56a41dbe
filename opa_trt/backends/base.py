"""What a vendor must offer: availability, compile, load, run.

Public methods check, private ones execute: a vendor's file holds the private ones only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opa_trt.errors import BackendUnavailable, CompileError, EngineError, OpaError
from opa_trt.tree import Segment, Target, TensorSpec


@dataclass(frozen=True)
class Availability:
    """Whether a backend works here: its version, or why not and what installs it."""

    version: str = ""
    reason: str = ""
    install: str = ""

    def __bool__(self) -> bool:
        return not self.reason


class Engine(ABC):
    """A compiled segment, loaded and ready.

    ``run`` may be called from one thread at a time. Tensors handed in are only read during the
    call; tensors handed out belong to the caller.
    """

    def __init__(self, segment: Segment, target: Target) -> None:
        self.segment = segment
        self.target = target
        self._closed = False

    def run(
        self,
        inputs: Mapping[str, Tensor],
        out: Mapping[str, Tensor] | None = None,
        stream: Any = None,
    ) -> dict[str, Tensor]:
        """Compute ``[N, …]`` outputs from ``[N, …]`` inputs, N within the target's batch range.

        Args:
            inputs: contiguous tensors by name, of the segment's shapes and dtypes.
            out: preallocated contiguous outputs by name, filled and returned; any left out is
                allocated.
            stream: the device stream, for devices that have one.

        Raises:
            EngineError: a missing, unknown, misshapen, non-contiguous or empty tensor, a batch
                out of range, a closed engine, or a failure of the vendor's.
        """
        if self._closed:
            msg = f"engine {self.segment.name} is closed."
            raise EngineError(msg, expected="an open one.")
        batch = self._batch_of(inputs)
        self._check("input", self.segment.inputs, inputs, batch)
        given = dict(out or {})
        wanted = tuple(spec for spec in self.segment.outputs if spec.name in given)
        self._check("output", wanted, given, batch)
        filled = {spec.name: self._output(spec, given, batch) for spec in self.segment.outputs}
        try:
            self._run(inputs, filled, stream)
        except OpaError:
            raise
        except Exception as exc:
            msg = f"{self.target.backend} failed on segment {self.segment.name}: {exc}"
            raise EngineError(msg) from exc
        return filled

    def close(self) -> None:
        """Release what the engine holds; further runs raise EngineError."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        """Fill ``out``; everything has been checked."""

    def _close(self) -> None:  # noqa: B027 - most engines are released with their last reference
        """Release what garbage collection does not."""

    def _batch_of(self, inputs: Mapping[str, Tensor]) -> int:
        first = inputs.get(self.segment.inputs[0].name)
        batch = 0 if first is None or first.ndim == 0 else int(first.shape[0])
        if first is not None and not self.target.min_batch <= batch <= self.target.max_batch:
            msg = f"a batch of {batch} for segment {self.segment.name}."
            raise EngineError(
                msg,
                expected=f"{self.target.min_batch} to {self.target.max_batch}.",
            )
        return batch

    def _check(
        self, kind: str, specs: tuple[TensorSpec, ...], given: Mapping[str, Tensor], batch: int
    ) -> None:
        names = {spec.name for spec in specs}
        if names != given.keys():
            msg = f"{kind}s {sorted(given)} for segment {self.segment.name}."
            raise EngineError(
                msg,
                expected=f"{sorted(names)}.",
            )
        for spec in specs:
            tensor, shape = given[spec.name], (batch, *spec.shape)
            if tuple(tensor.shape) != shape or tensor.dtype != getattr(torch, spec.dtype):
                msg = f"{kind} {spec.name} is {tuple(tensor.shape)} {tensor.dtype}."
                raise EngineError(
                    msg,
                    expected=f"{shape} torch.{spec.dtype}.",
                )
            if not tensor.is_contiguous():
                msg = f"{kind} {spec.name} is not contiguous."
                raise EngineError(msg, expected="contiguous.")

    @staticmethod
    def _output(spec: TensorSpec, given: Mapping[str, Tensor], batch: int) -> Tensor:
        if spec.name in given:
            return given[spec.name]
        return torch.empty((batch, *spec.shape), dtype=getattr(torch, spec.dtype))


class Backend(ABC):
    """A vendor: compiles segments and loads engines.

    Attributes:
        name: as users write it.
        revision: of our compile code; part of every engine's key, raised when the code changes.
        forms: the portable forms that ``compile`` can start from, best first.
        executes_code: whether loading an engine can run code that a bundle brings along.
        stored: whether engines and latencies are worth keeping in the machine's store.
        tolerance: how far outputs may be from eager fp32, over their largest value (or 1); None
            for a backend whose outputs mean nothing.
    """

    name: str
    revision: int = 1
    forms: tuple[str, ...] = ("torchscript",)
    executes_code: bool = True
    stored: bool = True
    tolerance: float | None = 1e-4

    @abstractmethod
    def availability(self) -> Availability:
        """Whether it works here; never raises."""

    def require(self) -> Availability:
        """Its availability, where it works.

        Raises:
            BackendUnavailable: it does not; says why, and what installs it.
        """
        found = self.availability()
        if not found:
            msg = f"backend {self.name} does not work here: {found.reason}"
            raise BackendUnavailable(msg, remedy=found.install)
        return found

    def target(self, *, max_batch: int, threads: int, precision: str = "fp32") -> Target:
        """The target on this machine.

        Raises:
            BackendUnavailable: the vendor's package is missing; says what installs it.
        """
        return Target(
            backend=self.name,
            version=self.require().version,
            precision=precision,
            max_batch=max_batch,
            threads=threads,
        )

    def compile(self, segment: Segment, target: Target) -> bytes:
        """An engine as bytes, from one of the segment's portable forms.

        Raises:
            CompileError: the vendor refused it.
        """
        try:
            return self._compile(segment, target)
        except OpaError:
            raise
        except Exception as exc:
            msg = f"{self.name} cannot compile {segment.name}: {exc}"
            raise CompileError(msg) from exc

    def load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        """The engine that ``compile`` made for this segment and target.

        Raises:
            EngineError: the bytes are not such an engine.
        """
        try:
            return self._load(data, segment, target)
        except OpaError:
            raise
        except Exception as exc:
            msg = f"{self.name} cannot load the engine of {segment.name}: {exc}"
            raise EngineError(
                msg,
                remedy="compile it again from the portable segment.",
            ) from exc

    @abstractmethod
    def _compile(self, segment: Segment, target: Target) -> bytes: ...

    @abstractmethod
    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine: ...
