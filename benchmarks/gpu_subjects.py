"""What is measured on a GPU: the parts and the whole of a network, and what each can run on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from ofa_network import PIONEER, Parts
from torch import Tensor, nn

from opa_trt.backends import Backend, Engine, every_backend
from opa_trt.device import CUDA, Device
from opa_trt.supernet.onnx_form import onnx_bytes
from opa_trt.supernet.pt2_form import pt2_bytes
from opa_trt.supernet.trace import content, trace, trace_bytes
from opa_trt.tree import FEATURES, IMAGES, LOGITS, ONNX, PT2, TORCHSCRIPT, Segment, TensorSpec

WHOLE = "whole-"  # before the name of a tail: its whole sub-network
EAGER, GRAPH = "eager", "eager, CUDA graph"
LOOSE = {"fp32": 2e-3, "fp16": 5e-2}  # of the largest value: beyond, an arm computes something else
Run = Callable[[], Any]


class Portable(Parts):
    """A network whose segments lack the ONNX form where onnx is not installed."""

    @cached_property
    def subjects(self) -> dict[str, Subject]:
        """Its nodes, and the whole sub-network of each tail, by name."""
        return {subject.name: subject for subject in _subjects(self)}

    @cached_property
    def segments(self) -> dict[str, Segment]:
        return {name: subject.segment for name, subject in self.subjects.items() if subject.node}


@dataclass(frozen=True)
class Subject:
    """A module, an example of what it reads, and what it gives.

    ``node`` says whether it is a node of the network, rather than a whole to compare with.
    """

    name: str
    module: nn.Module
    example: Tensor
    gives: tuple[TensorSpec, ...]
    node: bool = True

    @cached_property
    def segment(self) -> Segment:
        """Its TorchScript, and its ONNX where onnx is installed."""
        images = self.example.dtype == torch.uint8
        dtype = str(self.example.dtype).removeprefix("torch.")
        reads = TensorSpec(IMAGES if images else FEATURES, tuple(self.example.shape[1:]), dtype)
        traced = trace(self.module, self.example)
        forms = {TORCHSCRIPT: trace_bytes(traced)}
        if find_spec("onnx") is not None:
            outputs = [spec.name for spec in self.gives]
            forms[ONNX] = onnx_bytes(traced, self.example, reads.name, outputs)
        return Segment(self.name, (reads,), self.gives, forms, content(traced))

    def segment_for(self, vendor: Backend, max_batch: int) -> Segment:
        """The segment, exported, too, where a backend reads nothing else that it has."""
        if PT2 not in vendor.forms or set(vendor.forms) & set(self.segment.forms):
            return self.segment
        exported = pt2_bytes(self.module, self.example, max_batch)
        return replace(self.segment, forms={**self.segment.forms, PT2: exported})

    def inputs(self, batch: int) -> Tensor:
        """The example's rows, again and again."""
        return self.example[torch.arange(batch) % len(self.example)].contiguous()


def _subjects(parts: Parts) -> Iterator[Subject]:
    """Pioneer, tails, and as a whole the sub-network of each tail, without the exit head."""
    images = parts.design.images(2)
    pioneer: Any = parts.modules[PIONEER]
    with torch.no_grad():
        features = pioneer(images)[0]
    given = TensorSpec(FEATURES, tuple(features.shape[1:]))
    logits = TensorSpec(LOGITS, (parts.design.space.classes,))
    yield Subject(PIONEER, pioneer, images, (given, logits))
    for name in parts.design.tail_names:
        tail = parts.modules[name]
        yield Subject(name, tail, features, (logits,))
        whole = nn.Sequential(pioneer.preprocess, pioneer.trunk, tail).eval()
        yield Subject(f"{WHOLE}{name}", whole, images, (logits,), node=False)


@dataclass(frozen=True)
class Arm:
    """One way to run a subject: eager torch, or a backend at a precision."""

    label: str
    vendor: Backend | None = None
    precision: str = "fp32"

    @property
    def name(self) -> str:
        """As tables have it."""
        return self.label if self.precision == "fp32" else f"{self.label}, {self.precision}"


def arms(device: str) -> tuple[list[Arm], dict[str, str]]:
    """What runs on ``device``, quick to compile first; and why other backends do not."""
    eager = [Arm(EAGER), Arm(GRAPH)] if device == CUDA else [Arm(EAGER)]
    made: list[Arm] = []
    missing: dict[str, str] = {}
    for vendor in every_backend():
        if vendor.device != device:
            continue
        there = vendor.availability()
        if not there:
            missing[vendor.label] = there.reason
            continue
        made += [Arm(vendor.label, vendor, precision) for precision in vendor.precisions]
    ordered = sorted(made, key=lambda arm: (not _quick(arm), arm.precision != "fp32"))
    return [*eager, *ordered], missing


def _quick(arm: Arm) -> bool:
    return arm.vendor is not None and arm.vendor.quick


class Loaded:
    """A subject made ready on one arm: give it a batch, and it gives what runs it again."""

    def __init__(self, subject: Subject, arm: Arm, max_batch: int, device: Device) -> None:
        self._subject, self._arm, self._device = subject, arm, device
        self._engine: Engine | None = None
        self._module: Any = None
        if arm.vendor is None:
            self._module = copy.deepcopy(subject.module).to(device.name)
            return
        segment = subject.segment_for(arm.vendor, max_batch)
        target = arm.vendor.target(max_batch=max_batch, threads=1, precision=arm.precision)
        self._engine = arm.vendor.load(arm.vendor.compile(segment, target), segment, target)

    def ready(self, batch: int) -> tuple[Run, Sequence[Tensor]]:
        """A warm run on the device's memory, and the outputs that it fills (in ``scope``)."""
        given = self._device.upload(self._subject.inputs(batch))
        if self._engine is not None:
            engine, inputs = self._engine, {self._subject.segment.inputs[0].name: given}
            out = engine.run(inputs)
            engine.prepare(inputs, out)
            return lambda: engine.run(inputs, out), list(out.values())
        outputs = _as_tuple(self._module(given))
        if self._arm.label == GRAPH:
            graph, outputs = _captured(self._module, given)
            return graph.replay, outputs
        return lambda: self._module(given), outputs

    @property
    def engine(self) -> Engine:
        """The engine of a backend's arm.

        Raises:
            ValueError: eager torch has none.
        """
        if self._engine is None:
            raise ValueError(f"{self._arm.name} has no engine.")
        return self._engine

    def close(self) -> None:
        """Release the engine."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._module = None


def check(subject: Subject, arm: Arm, batch: int, outputs: Sequence[Tensor]) -> float:
    """The largest difference from eager on the CPU, over the largest value (or 1).

    Raises:
        RuntimeError: what was computed is something else.
    """
    with torch.inference_mode():
        wanted = _as_tuple(subject.module(subject.inputs(batch)))
    worst = 0.0
    for value, right in zip(outputs, wanted, strict=True):
        scale = max(1.0, float(right.abs().max()))
        worst = max(worst, float((value.cpu() - right).abs().max()) / scale)
    if not worst <= LOOSE[arm.precision]:
        raise RuntimeError(f"{subject.name} differs from eager by {worst:.1e}.")
    return worst


def _captured(module: nn.Module, given: Tensor) -> tuple[Any, Sequence[Tensor]]:
    for _ in range(3):
        module(given)
    torch.cuda.current_stream().synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        outputs = _as_tuple(module(given))
    graph.replay()
    return graph, outputs


def _as_tuple(values: Any) -> tuple[Tensor, ...]:
    return tuple(values) if isinstance(values, (tuple, list)) else (values,)
