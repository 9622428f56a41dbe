"""ONNX Runtime: the graph that it optimised, its options, and tensors that are bound once."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opa_trt.backends import Engine
from opa_trt.backends.envelope import unseal
from opa_trt.backends.onnxruntime import KEPT, OnnxRuntimeBackend
from opa_trt.errors import CompileError, EngineMismatch
from opa_trt.tree import IMAGES, LOGITS, ONNX, Segment, TensorSpec

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@pytest.fixture
def vendor() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend()


@pytest.fixture
def target(vendor: OnnxRuntimeBackend) -> Any:
    return vendor.target(max_batch=8, threads=2)


@pytest.fixture
def compiled(vendor: OnnxRuntimeBackend, toy: Any, target: Any) -> bytes:
    return vendor.compile(toy.segment("pioneer"), target)


@pytest.fixture
def engine(vendor: OnnxRuntimeBackend, compiled: bytes, toy: Any, target: Any) -> Engine:
    return vendor.load(compiled, toy.segment("pioneer"), target)


def images(toy: Any, count: int) -> dict[str, torch.Tensor]:
    return {IMAGES: torch.from_numpy(toy.images(count))}


# --- the engine's bytes -------------------------------------------------------------------------


def test_an_engine_is_an_onnx_graph_that_holds_its_weights(compiled: bytes) -> None:
    model = onnx.load_from_string(unseal(compiled).payload)
    assert model.graph.initializer
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_the_graph_was_optimised(compiled: bytes, toy: Any) -> None:
    before = onnx.load_from_string(toy.segment("pioneer").forms[ONNX])
    after = onnx.load_from_string(unseal(compiled).payload)
    assert [node.op_type for node in after.graph.node] != [n.op_type for n in before.graph.node]


def test_the_optimised_graph_gives_what_the_portable_one_gives(engine: Engine, toy: Any) -> None:
    session = ort.InferenceSession(
        toy.segment("pioneer").forms[ONNX], providers=["CPUExecutionProvider"]
    )
    pixels = toy.images(5)
    given = engine.run({IMAGES: torch.from_numpy(pixels)})
    for port, wanted in zip(
        session.get_outputs(), session.run(None, {IMAGES: pixels}), strict=True
    ):
        np.testing.assert_array_equal(given[port.name].numpy(), wanted)


def test_compiling_leaves_no_file(
    vendor: OnnxRuntimeBackend, toy: Any, target: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    vendor.compile(toy.segment("tiny"), target)
    assert not list(tmp_path.iterdir())


def test_compiling_and_running_print_nothing(
    vendor: OnnxRuntimeBackend, toy: Any, target: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    segment = toy.segment("pioneer")
    vendor.load(vendor.compile(segment, target), segment, target).run(images(toy, 2))
    assert capfd.readouterr() == ("", "")


# --- what cannot be compiled --------------------------------------------------------------------


def with_form(segment: Segment, data: bytes) -> Segment:
    return replace(segment, forms={ONNX: data})


def test_what_is_no_onnx_is_refused_in_the_vendors_words(
    vendor: OnnxRuntimeBackend, toy: Any, target: Any
) -> None:
    with pytest.raises(CompileError, match=r"cannot compile tiny: .*INVALID_PROTOBUF"):
        vendor.compile(with_form(toy.segment("tiny"), b"no model"), target)


def test_an_operator_that_it_lacks_is_refused_by_name(
    vendor: OnnxRuntimeBackend, toy: Any, target: Any
) -> None:
    model = onnx.load_from_string(toy.segment("tiny").forms[ONNX])
    model.graph.node[0].op_type = "Abacus"
    with pytest.raises(CompileError, match="Abacus"):
        vendor.compile(with_form(toy.segment("tiny"), model.SerializeToString()), target)


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_tensors_of_other_names_are_refused(
    vendor: OnnxRuntimeBackend, toy: Any, target: Any, kind: str
) -> None:
    segment = toy.segment("tiny")
    (spec,) = getattr(segment, kind)
    other = replace(segment, **{kind: (TensorSpec("other", spec.shape, spec.dtype),)})
    with pytest.raises(CompileError, match=f"tiny has the {kind}") as caught:
        vendor.compile(other, target)
    assert caught.value.expected == "['other']."


# --- options and bindings -----------------------------------------------------------------------


def test_a_session_has_the_targets_threads_which_do_not_spin(engine: Any) -> None:
    options = engine._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_threads_spin_where_asked_and_no_longer_than_a_run(toy: Any, target: Any) -> None:
    vendor, segment = OnnxRuntimeBackend(spin=True), toy.segment("tiny")
    engine: Any = vendor.load(vendor.compile(segment, target), segment, target)
    options = engine._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_engines_whose_threads_spin_are_others(toy: Any, target: Any) -> None:
    segment = toy.segment("tiny")
    vendors = [OnnxRuntimeBackend(spin=spin) for spin in (False, True)]
    assert len({vendor.stamp(segment, target).key() for vendor in vendors}) == 2
    with pytest.raises(EngineMismatch, match="another machine"):
        vendors[0].load(vendors[1].compile(segment, target), segment, target)


def test_the_same_tensors_are_bound_once(engine: Any, toy: Any) -> None:
    group = images(toy, 4)
    out = engine.run(group)
    known = dict(engine._known)
    for _ in range(3):
        engine.run(group, out)
    assert engine._known == known


def test_no_more_than_a_few_bindings_are_kept(engine: Any, toy: Any) -> None:
    group = images(toy, 1)
    rooms = torch.empty(3 * KEPT, 1, 5)
    for room in rooms:
        engine.run(group, {LOGITS: room})
    assert 0 < len(engine._known) <= KEPT
    assert (rooms == rooms[0]).all()


def test_memory_that_was_let_go_is_not_kept_alive(engine: Any, toy: Any) -> None:
    group = images(toy, 4)
    out = engine.run(group)
    memory = [weakref.ref(tensor) for tensor in (*group.values(), *out.values())]
    del group, out
    gc.collect()
    assert [ref() for ref in memory] == [None] * 3
