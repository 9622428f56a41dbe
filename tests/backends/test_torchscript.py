"""TorchScript: variants of a trace, the choice among them, and what torch is left with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from opa_trt.backends import torchscript
from opa_trt.backends.envelope import Envelope, unseal
from opa_trt.backends.torch_calls import exact, fill, sample_inputs, torch_threads
from opa_trt.backends.torchscript import (
    ROUNDS,
    VARIANTS,
    TorchScriptBackend,
    TorchScriptEngine,
    Variant,
    read_trace,
)
from opa_trt.errors import CompileError, EngineError
from opa_trt.supernet.trace import trace, trace_bytes
from opa_trt.tree import FEATURES, IMAGES, LOGITS, TORCHSCRIPT, Segment, Target, TensorSpec

TARGET = Target("torchscript", torch.__version__, max_batch=8)
EVERY = [Variant(optimized, last) for optimized in (False, True) for last in (False, True)]


def engine(toy: Any, variant: Variant, name: str = "pioneer") -> TorchScriptEngine:
    segment = toy.segment(name)
    return TorchScriptEngine(segment.forms[TORCHSCRIPT], variant, segment, TARGET)


# --- variants -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", EVERY, ids=str)
@pytest.mark.parametrize("batch", [1, 5, 8])
def test_every_variant_gives_what_eager_gives(toy: Any, variant: Variant, batch: int) -> None:
    images = torch.from_numpy(toy.images(batch))
    given = engine(toy, variant).run({IMAGES: images})
    for name, wanted in toy.eager("pioneer", images).items():
        torch.testing.assert_close(given[name], wanted, rtol=1e-4, atol=1e-5)
        assert given[name].is_contiguous()


@pytest.mark.parametrize("variant", EVERY, ids=str)
def test_a_trace_that_was_frozen_before_will_do(toy: Any, variant: Variant) -> None:
    features = torch.rand(3, 4, 4, 4)
    segment = toy.segment("large")
    frozen = trace_bytes(trace(toy.modules["large"], features))
    given = TorchScriptEngine(frozen, variant, segment, TARGET).run({FEATURES: features})
    wanted = toy.eager("large", features)[LOGITS]
    torch.testing.assert_close(given[LOGITS], wanted, rtol=1e-4, atol=1e-5)


def test_channels_last_turns_images_and_nothing_else(toy: Any) -> None:
    made = engine(toy, Variant(False, True))
    images, rows = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5)
    assert made._entering(images).is_contiguous(memory_format=torch.channels_last)
    assert made._entering(rows) is rows


# --- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fastest", VARIANTS, ids=str)
def test_the_fastest_variant_is_kept(
    toy: Any, monkeypatch: pytest.MonkeyPatch, fastest: Variant
) -> None:
    def timed(made: TorchScriptEngine, *_: Any) -> float:
        return 1.0 if made.variant == fastest else 2.0

    monkeypatch.setattr(torchscript, "_run_ms", timed)
    vendor, segment = TorchScriptBackend(), toy.segment("pioneer")
    loaded = vendor.load(vendor.compile(segment, TARGET), segment, TARGET)
    assert isinstance(loaded, TorchScriptEngine)
    assert loaded.variant == fastest


def test_one_slow_run_does_not_decide(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: dict[Variant, int] = {}

    def timed(made: TorchScriptEngine, *_: Any) -> float:
        runs[made.variant] = runs.get(made.variant, 0) + 1
        if made.variant == VARIANTS[1]:
            return 100.0 if runs[made.variant] == 1 else 1.0
        return 2.0

    monkeypatch.setattr(torchscript, "_run_ms", timed)
    payload = unseal(TorchScriptBackend().compile(toy.segment("pioneer"), TARGET)).payload
    assert json.loads(payload)["channels_last"] is VARIANTS[1].channels_last


@pytest.mark.parametrize(("ms", "rounds"), [(1e6, ROUNDS[0]), (0.0, ROUNDS[1])])
def test_comparing_ends(toy: Any, monkeypatch: pytest.MonkeyPatch, ms: float, rounds: int) -> None:
    runs = []

    class Clock:
        now = 0.0

        def now_ms(self) -> float:
            return self.now

    clock = Clock()

    def timed(made: TorchScriptEngine, *_: Any) -> float:
        runs.append(made.variant)
        clock.now += ms
        return 1.0

    monkeypatch.setattr(torchscript, "MonotonicClock", lambda: clock)
    monkeypatch.setattr(torchscript, "_run_ms", timed)
    TorchScriptBackend().compile(toy.segment("pioneer"), TARGET)
    assert runs == list(VARIANTS) * rounds


def test_an_engine_is_the_choice_and_the_traces_hash(toy: Any) -> None:
    payload = unseal(TorchScriptBackend().compile(toy.segment("tiny"), TARGET)).payload
    assert set(json.loads(payload)) == {"form", "optimized", "channels_last"}


def test_another_trace_than_it_was_chosen_for_is_refused(toy: Any) -> None:
    vendor, segment = TorchScriptBackend(), toy.segment("tiny")
    data = vendor.compile(segment, TARGET)
    other = replace(segment, forms=toy.segment("small").forms)
    with pytest.raises(EngineError, match="not the trace of segment tiny"):
        vendor.load(data, other, TARGET)


def test_a_choice_that_is_incomplete_is_refused(toy: Any) -> None:
    vendor, segment = TorchScriptBackend(), toy.segment("tiny")
    found = unseal(vendor.compile(segment, TARGET))
    choice = json.loads(found.payload)
    del choice["optimized"]
    forged = Envelope(found.stamp, json.dumps(choice).encode()).seal()
    with pytest.raises(EngineError, match="optimized"):
        vendor.load(forged, segment, TARGET)


def test_what_is_no_trace_cannot_be_compiled(toy: Any) -> None:
    segment = replace(toy.segment("tiny"), forms={TORCHSCRIPT: b"no trace"})
    with pytest.raises(CompileError, match="torchscript cannot compile tiny"):
        TorchScriptBackend().compile(segment, TARGET)


# --- torch is left as it was --------------------------------------------------------------------


def test_compiling_times_with_the_targets_threads_and_gives_them_back(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def timed(*_: Any) -> float:
        seen.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(torchscript, "_run_ms", timed)
    torch.set_num_threads(3)
    TorchScriptBackend().compile(toy.segment("tiny"), replace(TARGET, threads=2))
    assert set(seen) == {2}
    assert torch.get_num_threads() == 3


def failing(context: Any) -> None:
    with context:
        raise ZeroDivisionError


def test_threads_come_back_after_a_failure() -> None:
    torch.set_num_threads(3)
    with pytest.raises(ZeroDivisionError):
        failing(torch_threads(replace(TARGET, threads=2)))
    assert torch.get_num_threads() == 3


def test_a_gpus_target_leaves_the_threads_alone() -> None:
    torch.set_num_threads(3)
    with torch_threads(replace(TARGET, device="cuda")):
        assert torch.get_num_threads() == 3


@pytest.fixture(params=[True, False])
def rounded(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the user lets torch round fp32 to TF32."""
    flags = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = request.param
    yield request.param
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


def test_on_a_gpu_fp32_is_not_rounded_and_the_users_choice_comes_back(rounded: bool) -> None:
    with exact(replace(TARGET, device="cuda")):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(ZeroDivisionError):
        failing(exact(replace(TARGET, device="cuda")))
    assert torch.backends.cudnn.allow_tf32 is rounded
    assert torch.backends.cuda.matmul.allow_tf32 is rounded


def test_fp32_is_exact_until_the_last_run_of_several_threads_is_over(rounded: bool) -> None:
    target = replace(TARGET, device="cuda")
    first, second = exact(target), exact(target)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.cudnn.allow_tf32
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.allow_tf32 is rounded


# --- parts --------------------------------------------------------------------------------------


def test_samples_are_the_same_every_time(toy: Any) -> None:
    for name, spec in (("pioneer", IMAGES), ("tiny", FEATURES)):
        one, two = (sample_inputs(toy.segment(name), TARGET, 4)[spec] for _ in range(2))
        assert torch.equal(one, two)
        assert len(one.unique()) > 10


def test_samples_have_the_segments_dtypes(toy: Any) -> None:
    assert sample_inputs(toy.segment("pioneer"), TARGET, 2)[IMAGES].dtype == torch.uint8
    assert sample_inputs(toy.segment("tiny"), TARGET, 2)[FEATURES].dtype == torch.float32


SPECS = (TensorSpec("one", (2,)), TensorSpec("two", (3,)))


def test_outputs_are_filled_in_order() -> None:
    out = {"one": torch.empty(4, 2), "two": torch.empty(4, 3)}
    fill(SPECS, (torch.ones(4, 2), torch.zeros(4, 3)), out)
    assert (out["one"] == 1).all()
    assert (out["two"] == 0).all()


def test_an_output_of_another_shape_is_not_broadcast() -> None:
    out = {"one": torch.empty(4, 2), "two": torch.empty(4, 3)}
    with pytest.raises(EngineError, match=r"two came as \(1, 3\)"):
        fill(SPECS, (torch.ones(4, 2), torch.zeros(1, 3)), out)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_outputs_is_refused(count: int) -> None:
    out = {"one": torch.empty(4, 2), "two": torch.empty(4, 3)}
    with pytest.raises(EngineError, match=f"{count} outputs came"):
        fill(SPECS, (torch.ones(4, 2),) * count, out)


def test_a_trace_is_read_in_evaluation_mode(toy: Any) -> None:
    segment: Segment = toy.segment("tiny")
    assert not read_trace(segment.forms[TORCHSCRIPT]).training
