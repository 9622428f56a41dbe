"""ONNX in half precision: float16 within, the tensors at the boundary as they were.

Vendors that take types from the model alone need the casts in the graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opa_trt.errors import BackendUnavailable, CompileError

# Inputs of operators that the standard keeps in float32: (operator, place).
_KEPT = {("Resize", 2), ("Upsample", 1)}
_LARGEST = float(np.finfo(np.float16).max)


def half_precision(model: bytes) -> bytes:
    """An ONNX file that computes in float16 from and to the same tensors; values beyond float16
    become its largest.

    Raises:
        BackendUnavailable: onnx is not installed.
        CompileError: it is no ONNX file, or branches (its sub-graphs are not cast).
    """
    onnx = _require_onnx()
    try:
        found = onnx.load_from_string(model)
    except Exception as exc:
        message = f"{len(model)} bytes that are no ONNX file: {exc}."
        raise CompileError(message) from exc
    graph = found.graph
    kept = {
        node.input[place]
        for node in graph.node
        for operator, place in _KEPT
        if node.op_type == operator and len(node.input) > place
    }
    for place, tensor in enumerate(graph.initializer):
        if tensor.name not in kept:
            graph.initializer[place].CopyFrom(_halved(onnx, tensor))
    for node in graph.node:
        if not kept.intersection(node.output):
            _halve_attributes(onnx, node)
    _cast_boundary(onnx, graph)
    del graph.value_info[:]  # it has the types of before
    data: bytes = found.SerializeToString(deterministic=True)
    return data


def _require_onnx() -> Any:
    try:
        import onnx
    except ImportError as exc:
        message = "fp16 engines need onnx, which is not installed."
        raise BackendUnavailable(message, remedy="pip install 'opa-trt[build]'") from exc
    return onnx


def _halved(onnx: Any, tensor: Any) -> Any:
    """A float32 tensor in float16; others as they are."""
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return tensor
    values = onnx.numpy_helper.to_array(tensor)
    half = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)
    return onnx.numpy_helper.from_array(half, tensor.name)


def _halve_attributes(onnx: Any, node: Any) -> None:
    """Constants and casts of one node: float32 becomes float16."""
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            message = f"node {node.name} ({node.op_type}) branches."
            raise CompileError(message, expected="a graph without branches, for fp16.")
        if attribute.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_halved(onnx, attribute.t))
        elif node.op_type == "Cast" and attribute.name == "to":
            if attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            _as_tensor(onnx, attribute)


def _as_tensor(onnx: Any, attribute: Any) -> None:
    """A constant given as numbers, which are always float32, as a float16 tensor."""
    values: Any = attribute.f if attribute.name == "value_float" else list(attribute.floats)
    half = np.clip(np.asarray(values), -_LARGEST, _LARGEST).astype(np.float16)
    attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(half)))


def _cast_boundary(onnx: Any, graph: Any) -> None:
    """Casts after float32 inputs and before float32 outputs; within, other names stand for them."""
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    inputs, outputs = (
        {port.name: f"{port.name}/half" for port in ports if _elements(port) == single}
        for ports in (graph.input, graph.output)
    )
    inner = inputs | outputs
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = inner.get(name, name)
    cast = onnx.helper.make_node
    nodes = [
        *(cast("Cast", [name], [within], within, to=half) for name, within in inputs.items()),
        *graph.node,
        *(cast("Cast", [within], [name], within, to=single) for name, within in outputs.items()),
    ]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _elements(port: Any) -> int:
    return int(port.type.tensor_type.elem_type)
