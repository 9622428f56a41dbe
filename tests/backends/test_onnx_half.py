"""ONNX models in half precision: the same tensors outside, float16 within."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from opa_trt.backends.onnx_half import half_precision
from opa_trt.errors import CompileError
from opa_trt.tree import FEATURES, IMAGES, ONNX

onnx = pytest.importorskip("onnx")

TOLERANCE = 2e-2
Model = Callable[..., bytes]


@pytest.fixture
def model() -> Model:
    """An ONNX file from nodes, with input ``x`` ``[2, 3] float32`` and output ``y``."""

    def made(
        nodes: Sequence[Any], constants: Sequence[Any] = (), shape: tuple[int, int] = (2, 3)
    ) -> bytes:
        ports = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)
            for name, sizes in (("x", (2, 3)), ("y", shape))
        ]
        graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
        opset = [onnx.helper.make_opsetid("", 17)]
        return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()

    return made


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs, outputs, f"the {kind}", **attributes)


def run(data: bytes, **inputs: Any) -> list[Any]:
    ort = pytest.importorskip("onnxruntime")
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.mark.parametrize("name", ["pioneer", "tiny", "large"])
@pytest.mark.parametrize("batch", [1, 5])
def test_results_are_near_those_of_eager(toy: Any, name: str, batch: int) -> None:
    images = torch.from_numpy(toy.images(batch))
    given = images if name == "pioneer" else toy.eager("pioneer", images)[FEATURES]
    half = half_precision(toy.segment(name).forms[ONNX])
    port = IMAGES if name == "pioneer" else FEATURES
    found = run(half, **{port: given.numpy()})
    for value, wanted in zip(found, toy.eager(name, given).values(), strict=True):
        assert value.dtype == np.float32
        scale = max(1.0, float(wanted.abs().max()))
        assert np.abs(value - wanted.numpy()).max() / scale < TOLERANCE


def test_weights_and_what_is_computed_are_half(toy: Any) -> None:
    inferred = onnx.shape_inference.infer_shapes(
        onnx.load_from_string(half_precision(toy.segment("pioneer").forms[ONNX])),
        check_type=True,
        strict_mode=True,
    )
    types = {t.data_type for t in inferred.graph.initializer}
    types |= {info.type.tensor_type.elem_type for info in inferred.graph.value_info}
    assert types == {onnx.TensorProto.FLOAT16}


def test_the_same_model_gives_the_same_bytes(toy: Any) -> None:
    data = toy.segment("tiny").forms[ONNX]
    assert half_precision(data) == half_precision(data)


def test_an_output_that_is_read_within_is_not_cast_to_and_fro(toy: Any) -> None:
    half = onnx.load_from_string(half_precision(toy.segment("pioneer").forms[ONNX]))
    readers = [n for n in half.graph.node if FEATURES in n.input]
    assert readers == []


def test_constants_given_as_numbers_are_cast(model: Model) -> None:
    nodes = [
        node("Constant", [], ["two"], value_float=2.0),
        node("Constant", [], ["steps"], value_floats=[0.0, 1.0, 2.0]),
        node("Mul", ["x", "two"], ["doubled"]),
        node("Add", ["doubled", "steps"], ["y"]),
    ]
    (found,) = run(half_precision(model(nodes)), x=np.ones((2, 3), np.float32))
    np.testing.assert_allclose(found, [[2.0, 3.0, 4.0]] * 2)


def test_values_beyond_half_become_its_largest(model: Model) -> None:
    large = onnx.numpy_helper.from_array(np.float32([1e9]), "large")
    nodes = [node("Min", ["x", "large"], ["y"])]
    (found,) = run(half_precision(model(nodes, [large])), x=np.full((2, 3), 7.0, np.float32))
    np.testing.assert_allclose(found, 7.0)


def test_scales_of_a_resize_stay_what_the_standard_wants(model: Model) -> None:
    scales = onnx.numpy_helper.from_array(np.float32([1, 2]), "scales")
    resize = node("Resize", ["x", "", "scales"], ["y"], mode="nearest")
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    (found,) = run(half_precision(model([resize], [scales], (2, 6))), x=given)
    np.testing.assert_allclose(found[:, 1::2], given)


def test_whole_numbers_stay_what_they_are(model: Model) -> None:
    shape = onnx.numpy_helper.from_array(np.int64([2, 3]), "shape")
    (found,) = run(
        half_precision(model([node("Reshape", ["x", "shape"], ["y"])], [shape])),
        x=np.ones((2, 3), np.float32),
    )
    assert found.shape == (2, 3)


def test_a_graph_with_branches_is_refused(model: Model) -> None:
    empty = onnx.helper.make_graph([], "branch", [], [])
    branching = node("If", ["x"], ["y"], then_branch=empty, else_branch=empty)
    with pytest.raises(CompileError, match=r"the If \(If\) branches"):
        half_precision(model([branching]))


def test_what_is_no_onnx_file_is_refused() -> None:
    with pytest.raises(CompileError, match="8 bytes that are no ONNX file"):
        half_precision(b"\xff" * 8)
