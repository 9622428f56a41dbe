"""TensorRT engines at work: tensors bound where they lie, one scratch memory, captured graphs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from opa_trt.backends.base import Engine
from opa_trt.backends.tensorrt_api import TensorRTApi, mismatch
from opa_trt.errors import EngineError
from opa_trt.tree import Segment, Target

log = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes, of scratch memory
MOST_GRAPHS = 32  # of an engine; each has a context of its own
Tensors = Mapping[str, Tensor]
Place = tuple[int, ...]  # a batch size and the addresses of all tensors


class Scratch:
    """Device memory that all engines of a process use, one after the other.

    Runs are ordered across streams and threads, so that no two use it at once. ``generation``
    counts how often it moved: contexts and captured graphs that know the old place are stale.
    """

    _every: ClassVar[WeakValueDictionary[str, Scratch]] = WeakValueDictionary()
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, device: str) -> None:
        self.device = device
        self.size = 0
        self.generation = 0
        self._memory: Tensor | None = None
        self._lock = threading.RLock()
        self._last: Any = None  # the stream of the latest run

    @classmethod
    def of(cls, device: str) -> Scratch:
        """The one of a device, as long as an engine holds it."""
        with cls._making:
            found = cls._every.get(device)
            if found is None:
                found = cls._every[device] = cls(device)
            return found

    def reserve(self, size: int) -> None:
        """Make room for ``size`` bytes; waits for what still uses the old place, if it moves."""
        with self._lock:
            if size <= self.size:
                return
            moved = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device=self.device)
            self.wait()
            self._memory, self.size = moved, size
            self.generation += 1

    @property
    def address(self) -> int:
        """Where it begins."""
        start = 0 if self._memory is None else self._memory.data_ptr()
        return -(-start // ALIGNMENT) * ALIGNMENT

    @contextmanager
    def turn(self, stream: Any) -> Iterator[None]:
        """What is enqueued on ``stream`` within comes after all earlier turns."""
        with self._lock:
            if self._last is not None and self._last != stream:
                stream.wait_stream(self._last)
            self._last = stream
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, no other thread enqueues."""
        with self._lock:
            yield

    def wait(self) -> None:
        """Return when every turn is done on the device."""
        with self._lock:
            if self._last is not None:
                self._last.synchronize()


class Context:
    """One execution context, told of shapes, addresses and scratch memory when they change."""

    def __init__(self, api: TensorRTApi, engine: Any, scratch: Scratch, size: int) -> None:
        self._api, self._scratch, self._size = api, scratch, size
        self._raw = api.context(engine)
        self._place: Place = ()
        self._generation = -1

    def enqueue(self, inputs: Tensors, out: Tensors, stream: Any) -> None:
        """Start a run on ``stream``."""
        place = place_of(inputs, out)
        if place != self._place:
            self._place = ()  # half bound, if what follows fails
            self._bind(inputs, out, stream)
            self._place = place
        if self._size and self._generation != self._scratch.generation:
            self._raw.set_device_memory(self._scratch.address, self._scratch.size)
            self._generation = self._scratch.generation
        done = self._api.done
        done(self._raw.execute_async_v3(stream.cuda_stream), "execute_async_v3")

    def capturable(self, stream: Any) -> bool:
        """Whether the run enqueued last can be captured."""
        return self._api.capturable(self._raw, stream.cuda_stream)

    def _bind(self, inputs: Tensors, out: Tensors, stream: Any) -> None:
        raw, done = self._raw, self._api.done
        if raw.active_optimization_profile != 0:  # only the first context has it unasked
            set_profile = raw.set_optimization_profile_async
            done(set_profile(0, stream.cuda_stream), "set_optimization_profile_async")
            stream.synchronize()
        for name, tensor in inputs.items():
            shape = tuple(tensor.shape)
            done(raw.set_input_shape(name, shape), f"set_input_shape of {name} to {shape}")
        if unknown := raw.infer_shapes():
            done(False, f"infer_shapes of {unknown}")
        for name, tensor in out.items():
            shape = tuple(raw.get_tensor_shape(name))
            if shape != tuple(tensor.shape):  # it would write beyond the tensor, or leave some out
                message = f"the engine gives {name} as {shape}."
                raise EngineError(message, expected=f"{tuple(tensor.shape)}.")
        for name, tensor in (*inputs.items(), *out.items()):
            done(raw.set_tensor_address(name, tensor.data_ptr()), f"set_tensor_address of {name}")


@dataclass(frozen=True)
class Captured:
    """A CUDA graph of one run, with the context that it was captured from and may not change."""

    graph: Any
    context: Context
    generation: int


class TensorRTEngine(Engine):
    """One engine. Tensors are bound where they lie: what a pioneer writes, a tail reads.

    A fork has an execution context, a stream and graphs of its own. Scratch memory is shared, so
    runs take turns on the device.

    Args:
        api: the vendor's.
        plan: what its builder made.
        segment: checked against the plan's own inputs and outputs.
        target: its batch range is the plan's.
    """

    def __init__(self, api: TensorRTApi, plan: bytes, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        self._api = api
        self._runtime, self._engine = api.deserialise(plan)
        named = segment.in_onnx()
        self._names = {
            ours.name: theirs.name
            for ours, theirs in zip(segment.outputs, named.outputs, strict=True)
        }
        if difference := mismatch(named, api.engine_bindings(self._engine), target):
            message = f"the plan has {difference}."
            raise EngineError(message, remedy="compile it again from the portable segment.")
        self._size = api.scratch_bytes(self._engine)
        self._scratch = Scratch.of(target.device)
        self._scratch.reserve(self._size)
        self._context: Context | None = self._new_context()
        self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graphs: dict[Place, Captured] = {}

    def prepare(self, inputs: Tensors, out: Tensors) -> None:
        """Warm up, and capture a CUDA graph that later runs on these very tensors replay."""
        self.run(inputs, out)
        if out.keys() == {spec.name for spec in self.segment.outputs}:
            self._capture(inputs, self._named(out), torch.cuda.current_stream())

    def _run(self, inputs: Tensors, out: Tensors, stream: Any) -> None:
        out = self._named(out)
        asked = torch.cuda.current_stream() if stream is None else stream
        if asked != torch.cuda.default_stream():
            self._enqueue(inputs, out, asked)
            return
        # On the default stream, TensorRT would synchronise the device.
        self._side.wait_stream(asked)
        self._enqueue(inputs, out, self._side)
        asked.wait_stream(self._side)

    def _named(self, out: Tensors) -> Tensors:
        """Outputs by the names that the plan has for them."""
        return {self._names[name]: tensor for name, tensor in out.items()}

    def _enqueue(self, inputs: Tensors, out: Tensors, stream: Any) -> None:
        captured = self._graphs.get(place_of(inputs, out))
        if captured is not None and captured.generation != self._scratch.generation:
            captured = self._capture(inputs, out, stream)  # scratch memory has moved
        with self._scratch.turn(stream):
            if captured is not None and captured.generation == self._scratch.generation:
                with torch.cuda.stream(stream):
                    captured.graph.replay()
            elif self._context is not None:
                self._context.enqueue(inputs, out, stream)

    def _capture(self, inputs: Tensors, out: Tensors, stream: Any) -> Captured | None:
        """A CUDA graph for these tensors, or None, with a line in the log, where it fails."""
        place = place_of(inputs, out)
        self._drop_graphs(place)
        try:
            captured = self._captured(inputs, out, stream)
        except Exception as exc:  # torch's, the vendor's, or ours: running without a graph is right
            log.warning("segment %s runs without a CUDA graph: %s", self.segment.name, exc)
            return None
        if captured is None:
            log.info("segment %s runs without a CUDA graph: its vendor allows none",
                     self.segment.name)  # fmt: skip
            return None
        self._graphs[place] = captured
        return captured

    def _captured(self, inputs: Tensors, out: Tensors, stream: Any) -> Captured | None:
        side, context = self._side, self._new_context()
        side.wait_stream(stream)
        with self._scratch.turn(side):
            context.enqueue(inputs, out, side)  # what a first run sets up cannot be captured
            side.synchronize()
            if not context.capturable(side):
                return None
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                context.enqueue(inputs, out, side)
            return Captured(graph, context, self._scratch.generation)

    def _drop_graphs(self, place: Place) -> None:
        """Drop the graph of a place that is captured anew, and the oldest where there are many."""
        dropped = [place] if place in self._graphs else []
        if len(self._graphs) - len(dropped) >= MOST_GRAPHS:
            dropped.append(next(kept for kept in self._graphs if kept != place))
        if dropped:
            self._scratch.wait()  # one may still run
        for old in dropped:
            self._graphs.pop(old).graph.reset()

    def _new_context(self) -> Context:
        return Context(self._api, self._engine, self._scratch, self._size)

    def _fork(self) -> Engine:
        made = copy(self)
        made._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        made._graphs = {}
        with self._api.explained(), self._scratch.alone():
            made._context = self._new_context()
        return made

    def _close(self) -> None:
        self._scratch.wait()  # nothing may go while the device still uses it
        for captured in self._graphs.values():
            captured.graph.reset()
        self._graphs.clear()
        self._context = None  # contexts go before their engine, the engine before its runtime
        self._engine = None
        self._runtime = None


def place_of(inputs: Tensors, out: Tensors) -> Place:
    """Batch size and addresses: all that a run of one engine depends on, but for values."""
    given = [inputs[name] for name in sorted(inputs)]
    made = [out[name] for name in sorted(out)]
    return (len(given[0]), *(tensor.data_ptr() for tensor in (*given, *made)))
