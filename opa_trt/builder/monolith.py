"""Segments joined into one: the plain sub-network that a pioneer and a tail were cut from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from opa_trt.backends.torchscript import read_trace
from opa_trt.errors import ConfigError
from opa_trt.supernet.onnx_form import require_onnx
from opa_trt.supernet.pt2_form import pt2_bytes, read_pt2
from opa_trt.supernet.trace import content, trace, trace_bytes
from opa_trt.tree import ONNX, PT2, TORCHSCRIPT, Segment, TensorSpec

FIRST, SECOND = "first/", "second/"  # before the names of either graph in a merged ONNX file


def monolith(pioneer: Segment, tail: Segment, name: str) -> Segment:
    """One segment that computes what ``tail`` makes of ``pioneer``'s features, and only that.

    Nothing that the tail does not need is left: no exit head, no output for the features. (A pt2
    form computes neither, but its file still holds the exit head's weights.) A chain is joined
    step by step: ``monolith(monolith(a, b, "ab"), c, "abc")``.

    Args:
        pioneer: gives what ``tail`` reads. Reading its TorchScript can execute code.
        tail: reads one output of ``pioneer``.
        name: of the new segment.

    Returns:
        The pioneer's inputs, the tail's outputs, and every portable form that both have.

    Raises:
        ConfigError: ``pioneer`` does not give what ``tail`` reads, or they have no form in common.
        BackendUnavailable: there are ONNX forms, and onnx is not installed.
    """
    joint = _joint(pioneer, tail)
    forms: dict[str, bytes] = {}
    key = hashlib.sha256(f"{pioneer.content} {tail.content}".encode()).hexdigest()
    if TORCHSCRIPT in pioneer.forms and TORCHSCRIPT in tail.forms:
        joined = _Joined(_traced(pioneer), _traced(tail), joint)
        traced = trace(joined, _example(pioneer))
        forms[TORCHSCRIPT], key = trace_bytes(traced), content(traced)
    if ONNX in pioneer.forms and ONNX in tail.forms:
        forms[ONNX] = _merged(pioneer, tail, joint)
    if PT2 in pioneer.forms and PT2 in tail.forms:
        forms[PT2] = _exported(pioneer, tail, joint)
    if not forms:
        message = f"{pioneer.name} has the forms {sorted(pioneer.forms)}, {tail.name} the forms "
        message += f"{sorted(tail.forms)}."
        raise ConfigError(message, expected="one that both have.")
    return Segment(name, pioneer.inputs, tail.outputs, forms, key)


class _Joined(nn.Module):
    """``second`` of output ``joint`` of ``first``."""

    def __init__(self, first: nn.Module, second: nn.Module, joint: int) -> None:
        super().__init__()
        self.first, self.second, self.joint = first, second, joint

    def train(self, mode: bool = True) -> Self:
        self.training = mode  # but not of the parts: exported programs refuse to be told
        return self

    def forward(self, images: Tensor) -> Any:
        given = self.first(images)
        return self.second(given[self.joint] if isinstance(given, tuple | list) else given)


def _joint(pioneer: Segment, tail: Segment) -> int:
    """Which of the pioneer's outputs the tail reads."""
    wanted = [(spec.name, spec.shape, spec.dtype) for spec in tail.inputs]
    given = [(spec.name, spec.shape, spec.dtype) for spec in pioneer.outputs]
    if len(pioneer.inputs) != 1 or len(wanted) != 1 or wanted[0] not in given:
        message = f"{tail.name} reads {_described(tail.inputs)}."
        raise ConfigError(message, expected=f"one of {_described(pioneer.outputs)}.")
    return given.index(wanted[0])


def _described(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in specs)


def _example(pioneer: Segment) -> Tensor:
    spec = pioneer.inputs[0]
    return torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype))


def _traced(segment: Segment) -> Any:
    return read_trace(segment.forms[TORCHSCRIPT])


def _exported(pioneer: Segment, tail: Segment, joint: int) -> bytes:
    """Both exported programs as one, for the batches that both take."""
    first, second = (read_pt2(segment.forms[PT2]) for segment in (pioneer, tail))
    joined = _Joined(first.module(), second.module(), joint)
    ranges = (*first.range_constraints.values(), *second.range_constraints.values())
    largest = [int(batches.upper) for batches in ranges]
    return pt2_bytes(joined, _example(pioneer), min(largest, default=1))


def _merged(pioneer: Segment, tail: Segment, joint: int) -> bytes:
    """Both ONNX graphs as one, without the nodes that no output needs."""
    onnx = require_onnx()
    from onnx import compose

    first, second = (onnx.load_from_string(segment.forms[ONNX]) for segment in (pioneer, tail))
    for model in (first, second):
        del model.metadata_props[:]  # notes on one of the segments say nothing of the whole
    # By place: an exporter renames an input that is called as one of the outputs.
    merged = compose.merge_models(
        first,
        second,
        io_map=[(first.graph.output[joint].name, second.graph.input[0].name)],
        outputs=[SECOND + value.name for value in second.graph.output],
        prefix1=FIRST,
        prefix2=SECOND,
    )
    _rename(merged.graph, _names(merged.graph.output, tail.outputs))
    _rename(merged.graph, _names(merged.graph.input, pioneer.inputs))
    merged.graph.name, merged.producer_name = "monolith", first.producer_name
    merged.producer_version = first.producer_version
    for described in (merged, merged.graph):
        described.ClearField("doc_string")
    onnx.checker.check_model(merged)
    data: bytes = merged.SerializeToString(deterministic=True)
    return data


def _names(values: Any, specs: tuple[TensorSpec, ...]) -> dict[str, str]:
    return {value.name: spec.name for value, spec in zip(values, specs, strict=True)}


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give values of ``graph`` other names, wherever they stand."""
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for described in (*graph.input, *graph.output, *graph.value_info):
        described.name = names.get(described.name, described.name)
