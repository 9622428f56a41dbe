"""Segments joined into one: the same logits, and nothing that they do not need."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from opa_trt.builder.monolith import monolith
from opa_trt.errors import ConfigError
from opa_trt.supernet.onnx_form import onnx_bytes
from opa_trt.supernet.pt2_form import pt2_bytes, read_pt2
from opa_trt.supernet.trace import content, trace, trace_bytes
from opa_trt.tree import FEATURES, IMAGES, LOGITS, ONNX, PT2, TORCHSCRIPT, Segment, TensorSpec

HEAD = (5, 4)  # shape of the weights of the toy's exit head
EXPANDED = TensorSpec("features", (7, 4, 4))


class Middle(nn.Module):
    """A second exit: features to more features and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(4, 7, 3, padding=1)
        self.head = nn.Linear(7, 5)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.relu(self.body(features))
        return out, self.head(out.mean((2, 3)))


class Last(nn.Module):
    """The middle's features to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(7, 5)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features.mean((2, 3)).square())


def segment(
    name: str, module: nn.Module, reads: TensorSpec, gives: tuple[TensorSpec, ...]
) -> Segment:
    """A module in the two forms that every bundle has."""
    example = torch.rand(2, *reads.shape)
    traced = trace(module, example)
    names = [spec.name for spec in gives]
    forms = {
        TORCHSCRIPT: trace_bytes(traced),
        ONNX: onnx_bytes(module, example, reads.name, names),
    }
    return Segment(name, (reads,), gives, forms, content(traced))


def torchscript_logits(made: Segment, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What the TorchScript form gives; it must be one tensor."""
    module = torch.jit.load(io.BytesIO(made.forms[TORCHSCRIPT]))
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


def onnx_logits(made: Segment, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What the ONNX form gives on ONNX Runtime; it must be one tensor."""
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    session = runtime.InferenceSession(made.forms[ONNX], providers=["CPUExecutionProvider"])
    (logits,) = session.run([spec.name for spec in made.outputs], {IMAGES: images})
    return logits


RUNS = {TORCHSCRIPT: torchscript_logits, ONNX: onnx_logits}


def weight_shapes(made: Segment, form: str) -> list[tuple[int, ...]]:
    """Shapes of every tensor that a form holds."""
    if form == ONNX:
        onnx = pytest.importorskip("onnx")
        graph = onnx.load_from_string(made.forms[ONNX]).graph
        return [tuple(tensor.dims) for tensor in graph.initializer]
    module = torch.jit.load(io.BytesIO(made.forms[TORCHSCRIPT]))
    constants = [
        tuple(node.t("value").shape)
        for node in module.inlined_graph.nodes()
        if node.kind() == "prim::Constant" and "value" in node.attributeNames()
        if node.kindOf("value") == "t"
    ]
    return constants + [tuple(weight.shape) for weight in module.parameters()]


@pytest.mark.parametrize("form", [TORCHSCRIPT, ONNX])
@pytest.mark.parametrize("batch", [1, 5])
def test_it_equals_pioneer_and_tail(toy: Any, form: str, batch: int) -> None:
    made = monolith(toy.segment("pioneer"), toy.segment("large"), "whole")
    images = toy.images(batch, seed=3)
    np.testing.assert_allclose(
        RUNS[form](made, images), toy.monolith("large", images), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("form", [TORCHSCRIPT, ONNX])
def test_nothing_of_the_exit_head_is_left(toy: Any, form: str) -> None:
    pioneer, tail = toy.segment("pioneer"), toy.segment("large")
    made = monolith(pioneer, tail, "whole")
    assert HEAD in weight_shapes(pioneer, form)
    assert HEAD not in weight_shapes(made, form)
    body, head = (5, 4, 3, 3), (5, 5)  # of the tail
    assert {body, head} <= set(weight_shapes(made, form))


def test_it_reads_images_and_gives_logits_alone(toy: Any) -> None:
    made = monolith(toy.segment("pioneer"), toy.segment("tiny"), "whole")
    assert made.name == "whole"
    assert [spec.name for spec in made.inputs] == [IMAGES]
    assert [spec.name for spec in made.outputs] == [LOGITS]


def test_its_content_follows_from_what_it_computes(toy: Any) -> None:
    pioneer = toy.segment("pioneer")
    first, again = (monolith(pioneer, toy.segment("tiny"), name) for name in ("a", "b"))
    assert first.content == again.content
    assert first.content != monolith(pioneer, toy.segment("small"), "a").content


@pytest.mark.parametrize("form", [TORCHSCRIPT, ONNX])
def test_a_chain_is_joined_step_by_step(toy: Any, form: str) -> None:
    torch.manual_seed(3)
    middle, last = Middle().eval(), Last().eval()
    pioneer = toy.segment("pioneer")
    features, logits = pioneer.outputs
    both = monolith(
        pioneer, segment("middle", middle, features, (EXPANDED, logits)), "pioneer and middle"
    )
    assert [spec.name for spec in both.outputs] == [FEATURES, LOGITS]
    made = monolith(both, segment("last", last, EXPANDED, (logits,)), "whole")
    images = toy.images(3, seed=5)
    with torch.no_grad():
        given = toy.eager("pioneer", torch.from_numpy(images))[FEATURES]
        wanted = last(middle(given)[0]).numpy()
    np.testing.assert_allclose(RUNS[form](made, images), wanted, rtol=0, atol=1e-5)
    assert HEAD not in weight_shapes(made, form)
    assert weight_shapes(made, form).count((5, 7)) == 1  # the last head's, not the middle's


def test_exported_programs_are_joined_too(toy: Any) -> None:
    given = {"pioneer": torch.from_numpy(toy.images(2)), "tiny": torch.rand(2, 4, 4, 4)}
    first, second = (
        Segment(
            name,
            toy.segment(name).inputs,
            toy.segment(name).outputs,
            {PT2: pt2_bytes(toy.modules[name], example, 8)},
            name,
        )
        for name, example in given.items()
    )
    made = monolith(first, second, "whole")
    images = toy.images(8, seed=4)
    logits = read_pt2(made.forms[PT2]).module()(torch.from_numpy(images))
    np.testing.assert_allclose(
        logits.detach().numpy(), toy.monolith("tiny", images), rtol=0, atol=1e-5
    )


def test_segments_that_do_not_fit_together_are_refused(toy: Any) -> None:
    tail = toy.segment("tiny")
    with pytest.raises(ConfigError, match="large reads features"):
        monolith(tail, toy.segment("large"), "whole")


def test_segments_without_a_form_in_common_are_refused(toy: Any) -> None:
    pioneer, tail = toy.segment("pioneer"), toy.segment("tiny")
    bare = Segment(tail.name, tail.inputs, tail.outputs, {}, tail.content)
    with pytest.raises(ConfigError, match="has the forms"):
        monolith(pioneer, bare, "whole")
