"""OpenVINO: two portable forms, two hints, and tensors that a request is told of once."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from opa_trt.backends.envelope import unseal
from opa_trt.backends.openvino import DividedEngine, OpenVinoBackend
from opa_trt.backends.openvino_request import KEPT
from opa_trt.errors import CompileError, EngineError, EngineMismatch, UnknownNameError
from opa_trt.tree import FEATURES, IMAGES, LOGITS, ONNX, TORCHSCRIPT, Target

pytest.importorskip("openvino")

HINTS = ("latency", "throughput")


def images(toy: Any, count: int) -> dict[str, torch.Tensor]:
    return {IMAGES: torch.from_numpy(toy.images(count))}


def made(toy: Any, vendor: OpenVinoBackend, target: Target | None = None) -> Any:
    target = target or vendor.target(max_batch=8, threads=2)
    segment = toy.segment("pioneer")
    return vendor.load(vendor.compile(segment, target), segment, target)


def properties(engine: Any) -> dict[str, Any]:
    request = getattr(engine, "_request", None) or engine._requests[0]
    model = request._request.get_compiled_model()
    names = ("INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT", "NUM_STREAMS")
    return {name: model.get_property(name) for name in names}


# --- forms --------------------------------------------------------------------------------------


def test_the_form_without_code_comes_first(toy: Any) -> None:
    assert OpenVinoBackend().form(toy.segment("pioneer")) == ONNX


@pytest.mark.parametrize("form", [ONNX, TORCHSCRIPT])
def test_either_form_gives_what_eager_gives(toy: Any, form: str) -> None:
    vendor = OpenVinoBackend()
    target = vendor.target(max_batch=8, threads=1)
    whole = toy.segment("pioneer")
    segment = replace(whole, forms={form: whole.forms[form]})
    data = vendor.compile(segment, target)
    assert unseal(data).stamp.form == form
    given = vendor.load(data, segment, target).run(images(toy, 5))
    for name, wanted in toy.eager("pioneer", torch.from_numpy(toy.images(5))).items():
        torch.testing.assert_close(given[name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [ONNX, TORCHSCRIPT])
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_form_with_another_number_of_tensors_is_refused(toy: Any, form: str, kind: str) -> None:
    vendor = OpenVinoBackend()
    whole = toy.segment("tiny")
    specs = getattr(whole, kind)
    more = replace(
        whole,
        forms={form: whole.forms[form]},
        **{kind: (*specs, replace(specs[0], name="more"))},
    )
    with pytest.raises(CompileError, match="tiny"):
        vendor.compile(more, vendor.target(max_batch=8, threads=1))


# --- hints --------------------------------------------------------------------------------------


def test_an_unknown_hint_says_which_there_are() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'latency'"):
        OpenVinoBackend(hint="latencies")


def test_fp32_means_fp32_and_latency_one_stream(toy: Any) -> None:
    found = properties(made(toy, OpenVinoBackend()))
    assert found["INFERENCE_PRECISION_HINT"].get_type_name() == "f32"
    assert str(found["PERFORMANCE_HINT"]).endswith("LATENCY")
    assert int(found["NUM_STREAMS"]) == 1


def test_throughput_has_a_stream_for_every_thread(toy: Any) -> None:
    found = properties(made(toy, OpenVinoBackend(hint="throughput")))
    assert str(found["PERFORMANCE_HINT"]).endswith("THROUGHPUT")
    assert int(found["NUM_STREAMS"]) == 2


@pytest.mark.parametrize(("hint", "other"), [HINTS, HINTS[::-1]])
def test_an_engine_for_one_hint_is_not_loaded_for_another(toy: Any, hint: str, other: str) -> None:
    vendor = OpenVinoBackend(hint=hint)
    target, segment = vendor.target(max_batch=8, threads=1), toy.segment("tiny")
    data = vendor.compile(segment, target)
    with pytest.raises(EngineMismatch, match="another machine"):
        OpenVinoBackend(hint=other).load(data, segment, target)


def test_the_hint_is_part_of_the_key(toy: Any) -> None:
    segment = toy.segment("tiny")
    vendors = [OpenVinoBackend(hint=hint) for hint in HINTS]
    keys = {v.stamp(segment, v.target(max_batch=8, threads=1)).key() for v in vendors}
    assert len(keys) == 2


@pytest.mark.parametrize("batch", range(1, 9))
def test_divided_rows_are_those_of_the_whole(toy: Any, batch: int) -> None:
    vendor = OpenVinoBackend(hint="throughput")
    engine = made(toy, vendor, vendor.target(max_batch=8, threads=3))
    given = engine.run(images(toy, batch))
    for name, wanted in toy.eager("pioneer", torch.from_numpy(toy.images(batch))).items():
        torch.testing.assert_close(given[name], wanted, rtol=1e-4, atol=1e-5)


def shares(toy: Any, batch: int, min_batch: int, threads: int) -> list[int]:
    vendor = OpenVinoBackend(hint="throughput")
    engine = made(toy, vendor, vendor.target(max_batch=8, threads=threads, min_batch=min_batch))
    assert isinstance(engine, DividedEngine)
    rows = engine._shares(batch)
    assert [row for share in rows for row in range(share.start, share.stop)] == list(range(batch))
    return [share.stop - share.start for share in rows]


def test_rows_are_divided_evenly(toy: Any) -> None:
    assert shares(toy, 8, 1, 3) == [2, 3, 3]


def test_no_more_requests_than_rows(toy: Any) -> None:
    assert shares(toy, 2, 1, 3) == [1, 1]


def test_no_share_is_below_the_smallest_batch(toy: Any) -> None:
    assert shares(toy, 7, 3, 4) == [3, 4]


def test_a_share_that_cannot_start_leaves_none_running(toy: Any) -> None:
    vendor = OpenVinoBackend(hint="throughput")
    engine = made(toy, vendor, vendor.target(max_batch=8, threads=2))
    wanted = engine.run(images(toy, 4))[LOGITS].clone()
    second, engine._requests[1] = engine._requests[1], None
    with pytest.raises(EngineError):
        engine.run(images(toy, 4))
    engine._requests[1] = second
    assert torch.equal(engine.run(images(toy, 4))[LOGITS], wanted)


@pytest.mark.parametrize("hint", HINTS)
def test_a_fork_outlives_its_parent_at_every_hint(toy: Any, hint: str) -> None:
    vendor = OpenVinoBackend(hint=hint)
    engine = made(toy, vendor, vendor.target(max_batch=8, threads=2))
    wanted = engine.run(images(toy, 5))[LOGITS].clone()
    fork = engine.fork()
    engine.close()
    assert type(fork) is type(engine)
    assert torch.equal(fork.run(images(toy, 5))[LOGITS], wanted)


# --- tensors ------------------------------------------------------------------------------------


class Counting:
    """A request that counts what it is told."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.told = 0

    def set_input_tensor(self, index: int, tensor: Any) -> None:
        self.told += 1
        self.request.set_input_tensor(index, tensor)

    def set_output_tensor(self, index: int, tensor: Any) -> None:
        self.told += 1
        self.request.set_output_tensor(index, tensor)

    def infer(self, **options: Any) -> None:
        self.request.infer(**options)


@pytest.fixture
def engine(toy: Any) -> Any:
    found = made(toy, OpenVinoBackend())
    found._request._request = Counting(found._request._request)
    return found


def test_a_request_is_told_of_the_same_tensors_once(engine: Any, toy: Any) -> None:
    group = images(toy, 4)
    out = engine.run(group)
    for _ in range(3):
        engine.run(group, out)
    assert engine._request._request.told == 3  # the images, the features and the logits


def test_fewer_rows_at_the_same_place_are_told(engine: Any, toy: Any) -> None:
    group = images(toy, 4)
    out = engine.run(group)
    fewer = {name: tensor[:2] for name, tensor in out.items()}
    engine.run({IMAGES: group[IMAGES][:2]}, fewer)
    assert engine._request._request.told == 6


def test_what_could_not_be_told_is_told_again(engine: Any, toy: Any) -> None:
    group, counting = images(toy, 4), engine._request._request
    out = {FEATURES: torch.empty(4, 4, 4, 4), LOGITS: torch.empty(4, 5)}
    counting.request, request = None, counting.request
    with pytest.raises(EngineError):
        engine.run(group, out)
    counting.request = request
    wanted = toy.eager("pioneer", group[IMAGES])[LOGITS]
    torch.testing.assert_close(engine.run(group, out)[LOGITS], wanted, rtol=1e-4, atol=1e-5)


def test_no_more_than_a_few_tensors_are_remembered(engine: Any, toy: Any) -> None:
    rooms = torch.empty(3 * KEPT, 1, 5)
    group = images(toy, 1)
    for room in rooms:
        engine.run(group, {LOGITS: room})
    assert 0 < len(engine._request._known) <= KEPT
    assert (rooms == rooms[0]).all()


def test_memory_that_was_let_go_is_not_kept_alive(engine: Any, toy: Any) -> None:
    group = images(toy, 4)
    out = engine.run(group)
    memory = [weakref.ref(tensor) for tensor in (*group.values(), *out.values())]
    del group, out
    gc.collect()
    assert [ref() for ref in memory] == [None] * 3
