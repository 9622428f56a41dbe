"""The null backend invents outputs and lets virtual time pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from opa_trt.backends.null import NullBackend
from opa_trt.clock import MonotonicClock, VirtualClock
from opa_trt.errors import EngineError, UnknownNameError
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Segment


@pytest.fixture
def images(toy: Any) -> dict[str, torch.Tensor]:
    return {IMAGES: torch.from_numpy(toy.images(4))}


def engine(backend: NullBackend, segment: Segment):
    target = backend.target(max_batch=8, threads=1)
    return backend.load(backend.compile(segment, target), segment, target)


def test_a_run_takes_as_long_as_it_is_told(toy: Any, images: Any) -> None:
    clock = VirtualClock()
    backend = NullBackend(clock, lambda name, batch: {"pioneer": 2.5}[name] * batch)
    engine(backend, toy.segment("pioneer")).run(images)
    assert clock.now_ms() == 10.0


def test_without_a_latency_no_time_passes(toy: Any, images: Any) -> None:
    clock = VirtualClock()
    engine(NullBackend(clock), toy.segment("pioneer")).run(images)
    assert clock.now_ms() == 0.0


def test_a_refused_run_takes_no_time(toy: Any) -> None:
    clock = VirtualClock()
    made = engine(NullBackend(clock, lambda *_: 5.0), toy.segment("pioneer"))
    with pytest.raises(EngineError):
        made.run({})
    assert clock.now_ms() == 0.0


def test_logits_depend_on_the_image_alone(toy: Any, images: Any) -> None:
    made = engine(NullBackend(), toy.segment("pioneer"))
    logits = made.run(images)[LOGITS]
    assert len({tuple(row.tolist()) for row in logits}) == 4
    torch.testing.assert_close(made.run({IMAGES: images[IMAGES][2:3]})[LOGITS], logits[2:3])


def test_outputs_can_be_given(toy: Any, images: Any) -> None:
    def ones(inputs: Any) -> dict[str, torch.Tensor]:
        return {LOGITS: torch.ones(len(inputs[IMAGES]), 5), FEATURES: torch.zeros(4, 4, 4, 4)}

    made = engine(NullBackend(outputs={"pioneer": ones}), toy.segment("pioneer"))
    given = made.run(images)
    assert (given[LOGITS] == 1).all()
    assert (given[FEATURES] == 0).all()


def test_it_promises_nothing_about_its_outputs() -> None:
    backend = NullBackend()
    assert backend.tolerance is None
    assert not backend.stored
    assert not backend.executes_code


def test_it_takes_its_only_device_by_name() -> None:
    assert NullBackend(device="cpu").label == "null"
    with pytest.raises(UnknownNameError, match="cuda"):
        NullBackend(device="cuda")


def test_a_virtual_clock_moves_only_when_told() -> None:
    clock = VirtualClock()
    assert clock.now_ms() == clock.now_ms() == 0.0
    clock.advance(3)
    clock.advance(0.5)
    assert clock.now_ms() == 3.5


def test_the_machines_clock_never_goes_back() -> None:
    clock = MonotonicClock()
    readings = [clock.now_ms() for _ in range(100)]
    assert readings == sorted(readings)
