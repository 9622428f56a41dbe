"""What a vendor must offer: availability, compile, load, run.

Public methods check, private ones execute: a vendor's file holds the private ones only.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from opa_trt.backends.envelope import Envelope, Stamp, check_stamp, unseal
from opa_trt.device import CPU
from opa_trt.errors import (
    BackendError,
    BackendUnavailable,
    CompileError,
    ConfigError,
    DeviceMemoryError,
    EngineError,
    OpaError,
    UnknownNameError,
)
from opa_trt.machine import capability
from opa_trt.tree import Segment, Target, TensorSpec

FP32, FP16 = "fp32", "fp16"
HALF_TOLERANCE = 2e-2
_NO_MEMORY = re.compile(r"out of memory|bad_alloc|cannot allocate|OUT_OF_MEMORY", re.IGNORECASE)


@dataclass(frozen=True)
class Availability:
    """Whether a backend works here: its version, or why not and what installs it.

    ``compiles`` says of one that cannot run here that it can still compile for elsewhere.
    """

    version: str = ""
    reason: str = ""
    install: str = ""
    compiles: bool = False

    def __bool__(self) -> bool:
        return not self.reason


_Ports = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # shape of a row, and dtype


class Engine(ABC):
    """A compiled segment, loaded and ready.

    ``run`` may be called from one thread at a time; ``fork`` gives another thread its own engine.
    Tensors handed in are only read during the call; tensors handed out belong to the caller. On a
    CUDA device ``run`` enqueues and returns: both must stay as they are until the stream has come
    so far.

    Attributes:
        segment: what it computes, without the portable forms.
        target: what it was compiled for.
        key: its name in the store ("" if it is not kept); ``Backend.load`` sets it.
    """

    def __init__(self, segment: Segment, target: Target) -> None:
        self.segment = replace(segment, forms={})  # their bytes may go
        self.target = target
        self.key = ""
        self._closed = False
        self._inputs = _ports(segment.inputs)
        self._outputs = _ports(segment.outputs)

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
            stream: a ``torch.cuda.Stream`` on a CUDA device; the current one by default.

        Raises:
            EngineError: a missing, unknown, misshapen, non-contiguous or empty tensor, a batch
                out of range, a closed engine, or a failure of the vendor's.
        """
        if self._closed:
            msg = f"engine {self.segment.name} is closed."
            raise EngineError(msg, expected="an open one.")
        batch = self._batch_of(inputs)
        self._check("input", self._inputs, inputs, batch)
        given, wanted = out or {}, self._outputs
        if len(given) < len(wanted):
            wanted = {name: port for name, port in wanted.items() if name in given}
        self._check("output", wanted, given, batch)
        filled = {name: self._output(name, given, batch) for name in self._outputs}
        try:
            self._run(inputs, filled, stream)
        except Exception:
            what = f"{self.target.backend} failed on segment {self.segment.name}"
            with _translated(EngineError, what):
                raise
        return filled

    def prepare(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> None:
        """Warm up for runs on these very tensors; CUDA graphs are captured for them.

        Raises:
            EngineError: as ``run`` says.
        """
        self.run(inputs, out)

    def fork(self) -> Engine:
        """A second engine on the same loaded program, for another thread.

        Weights are shared and not copied; what a run writes to is the fork's own. Either may be
        closed first: the program goes with the last engine on it. This engine may be running.

        Threads of a CPU: those that a vendor keeps belong to the program, so forks share them.
        Torch has a pool for every thread that uses it, as large as was set when that thread first
        did (loading a bundle sets it): two forks at work keep twice the cores busy.

        Raises:
            EngineError: a closed engine, or one whose backend cannot fork.
            DeviceMemoryError: no room for what a run needs.
        """
        if self._closed:
            msg = f"engine {self.segment.name} is closed."
            raise EngineError(msg, expected="an open one.")
        with _translated(EngineError, f"{self.target.backend} cannot fork {self.segment.name}"):
            made = self._fork()
        made.key = self.key
        return made

    def close(self) -> None:
        """Release what the engine holds; further runs raise EngineError. Forks are not touched."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        """Fill ``out``; everything has been checked."""

    def _fork(self) -> Engine:
        """An open engine on the same program; ``key`` is set by ``fork``."""
        msg = f"engines of {self.target.backend} cannot be forked."
        raise EngineError(msg, remedy="load the bundle once for every thread.")

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

    def _check(self, kind: str, ports: _Ports, given: Mapping[str, Tensor], batch: int) -> None:
        if ports.keys() != given.keys():
            msg = f"{kind}s {sorted(given)} for segment {self.segment.name}."
            raise EngineError(msg, expected=f"{sorted(ports)}.")
        for name, (row, dtype) in ports.items():
            tensor, shape = given[name], (batch, *row)
            if tensor.shape != shape or tensor.dtype != dtype:
                msg = f"{kind} {name} is {tuple(tensor.shape)} {tensor.dtype}."
                raise EngineError(msg, expected=f"{shape} {dtype}.")
            if tensor.device.type != self.target.device:
                msg = f"{kind} {name} is on {tensor.device}."
                raise EngineError(msg, expected=f"on {self.target.device}.")
            if not tensor.is_contiguous():
                msg = f"{kind} {name} is not contiguous."
                raise EngineError(msg, expected="contiguous.")

    def _output(self, name: str, given: Mapping[str, Tensor], batch: int) -> Tensor:
        if name in given:
            return given[name]
        row, dtype = self._outputs[name]
        return torch.empty((batch, *row), dtype=dtype, device=self.target.device)


class Backend(ABC):
    """A vendor: compiles segments and loads engines.

    Args:
        device: one of ``devices``; the first of them by default.

    Attributes:
        name: as users write it, alone or as ``name:device``.
        revision: of our compile code; part of every engine's key, raised when the code changes.
        forms: the portable forms that ``compile`` can start from, best first.
        executes_code: whether loading an engine can run code that a bundle brings along.
        stored: whether engines and latencies are worth keeping in the machine's store.
        tolerance: how far fp32 outputs may be from eager, over their largest value (or 1); None
            for a backend whose outputs mean nothing.
        devices: where its engines run, the default first.
        precisions: that it compiles for.
        quick: whether it compiles fast enough for ``auto`` to try it unasked.
        judges: whether ``check_plan`` says more than that an engine is whole.
    """

    name: str
    revision: int = 1
    forms: tuple[str, ...] = ("torchscript",)
    executes_code: bool = True
    stored: bool = True
    tolerance: float | None = 1e-4
    devices: tuple[str, ...] = (CPU,)
    precisions: tuple[str, ...] = (FP32,)
    quick: bool = True
    judges: bool = False

    def __init__(self, device: str | None = None) -> None:
        if device is not None and device not in self.devices:
            kind = f"device of backend {self.name}"
            raise UnknownNameError(kind, device, self.devices)
        self.device = device or self.devices[0]

    @property
    def label(self) -> str:
        """Its name, with the device where that is not the default."""
        return self.name if self.device == self.devices[0] else f"{self.name}:{self.device}"

    @abstractmethod
    def availability(self) -> Availability:
        """Whether it works here, on its device; never raises."""

    def require(self, *, running: bool = True) -> Availability:
        """Its availability, where it works (or at least compiles, if it need not run).

        Raises:
            BackendUnavailable: it does not; says why, and what installs it.
        """
        found = self.availability()
        if not found and (running or not found.compiles):
            msg = f"backend {self.label} does not work here: {found.reason}"
            raise BackendUnavailable(msg, remedy=found.install)
        return found

    def capability(self) -> str:
        """What of this machine its engines depend on."""
        return capability(self.device)

    def tolerance_for(self, precision: str) -> float | None:
        """``tolerance`` at a precision: fp16 gets more room."""
        if self.tolerance is None or precision == FP32:
            return self.tolerance
        return max(self.tolerance, HALF_TOLERANCE)

    def target(
        self, *, max_batch: int, threads: int, precision: str = FP32, min_batch: int = 1
    ) -> Target:
        """The target on this machine. Threads mean nothing on a GPU, and are 1 there.

        Raises:
            BackendUnavailable: the vendor can neither run nor compile here.
            ConfigError: a precision that it lacks, or an impossible range.
        """
        if precision not in self.precisions:
            msg = f"precision {precision!r} for backend {self.label}."
            raise ConfigError(msg, expected=f"one of {', '.join(self.precisions)}.")
        return Target(
            backend=self.name,
            version=self.require(running=False).version,
            device=self.device,
            precision=precision,
            min_batch=min_batch,
            max_batch=max_batch,
            threads=threads if self.device == CPU else 1,
        )

    def form(self, segment: Segment) -> str:
        """The name of the portable form that it compiles ``segment`` from ("" if it needs none).

        Raises:
            CompileError: the segment has none that it reads.
        """
        if not self.forms:
            return ""
        for name in self.forms:
            if name in segment.forms:
                return name
        msg = f"segment {segment.name} has the forms {sorted(segment.forms)}."
        raise CompileError(msg, expected=f"{' or '.join(self.forms)}, for {self.label}.")

    def stamp(self, segment: Segment, target: Target) -> Stamp:
        """All that the segment's engine for ``target`` depends on."""
        return Stamp(
            segment=segment.name,
            content=segment.content,
            inputs=segment.inputs,
            outputs=segment.outputs,
            form=self.form(segment),
            target=target,
            revision=self.revision,
            capability=self.capability(),
        )

    def compile(self, segment: Segment, target: Target) -> bytes:
        """An engine as bytes, stamped, from one of the segment's portable forms.

        Raises:
            CompileError: the vendor refused it, or the segment has no form that it reads.
            DeviceMemoryError: no room.
        """
        stamp = self.stamp(segment, target)
        with _translated(CompileError, f"{self.label} cannot compile {segment.name}"):
            payload = self._compile(segment, target)
        return Envelope(stamp, payload).seal()

    def load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        """The engine that ``compile`` made for this segment and target.

        Raises:
            EngineError: the bytes are not such an engine.
            EngineMismatch: they are another segment's, version's, device's or machine's.
            BackendUnavailable: it can compile, but not run here.
            DeviceMemoryError: no room.
        """
        found = unseal(data)
        wanted = self.stamp(segment, target)
        check_stamp(found.stamp, wanted)
        self.require()
        what = f"{self.label} cannot load the engine of {segment.name}"
        with _translated(EngineError, what, "compile it again from the portable segment."):
            engine = self._load(found.payload, segment, target)
        engine.key = wanted.key() if self.stored else ""
        return engine

    def check_plan(self, data: bytes) -> str:
        """What the vendor says of an engine of ``compile`` without running it.

        Raises:
            EngineError: it is damaged, or the vendor says that it cannot run here.
        """
        unseal(data)
        return "not judged"

    @abstractmethod
    def _compile(self, segment: Segment, target: Target) -> bytes: ...

    @abstractmethod
    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine: ...


def _ports(specs: Iterable[TensorSpec]) -> _Ports:
    return {spec.name: (tuple(spec.shape), getattr(torch, spec.dtype)) for spec in specs}


@contextmanager
def _translated(kind: type[BackendError], what: str, remedy: str = "") -> Iterator[None]:
    """A vendor's errors within become ``kind``, or DeviceMemoryError where memory ran out."""
    try:
        yield
    except OpaError:
        raise
    except Exception as exc:
        exhausted = isinstance(exc, MemoryError) or _NO_MEMORY.search(str(exc))
        msg = f"{what}: {exc}"
        if exhausted:
            raise DeviceMemoryError(msg, remedy="use fewer tails, or a smaller batch.") from exc
        raise kind(msg, remedy=remedy) from exc
