"""What every backend must do, whoever the vendor is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opa_trt.backends import Backend, Engine, backend, backend_names
from opa_trt.errors import BackendUnavailable, EngineError, OpaError, ParityError
from opa_trt.runtime.engines import verify
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Segment, Tree

MAX_BATCH = 8
NAMES = ("pioneer", "tiny", "small")
Build = Callable[[str], Engine]


class Vendor:
    """One backend that works here, with what it compiled so far."""

    def __init__(self, made: Backend, toy: Any) -> None:
        self.backend = made
        self.target = made.target(max_batch=MAX_BATCH, threads=1)
        self._toy = toy
        self._compiled: dict[str, bytes] = {}

    def compiled(self, name: str) -> bytes:
        """The engine of a segment, compiled once a session."""
        if name not in self._compiled:
            self._compiled[name] = self.backend.compile(self._toy.segment(name), self.target)
        return self._compiled[name]

    def engine(self, name: str) -> Engine:
        """A fresh engine."""
        return self.backend.load(self.compiled(name), self._toy.segment(name), self.target)


@pytest.fixture(scope="module", params=backend_names())
def vendor(request: pytest.FixtureRequest, toy: Any) -> Vendor:
    made = backend(request.param)
    found = made.availability()
    if not found:
        pytest.skip(f"{request.param}: {found.reason} {found.install}")
    return Vendor(made, toy)


@pytest.fixture(scope="module")
def pioneer(vendor: Vendor) -> Engine:
    return vendor.engine("pioneer")


@pytest.fixture(scope="module")
def tiny(vendor: Vendor) -> Engine:
    return vendor.engine("tiny")


def images(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (count, 3, 16, 16)
    return {IMAGES: torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)}


def features(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {FEATURES: torch.rand(count, 4, 4, 4, generator=generator)}


def close(given: Tensor, wanted: Tensor, tolerance: float) -> bool:
    scale = max(1.0, float(wanted.abs().max()))
    return float((given - wanted).abs().max()) / scale <= tolerance


# --- availability and target --------------------------------------------------------------------


@pytest.mark.parametrize("name", backend_names())
def test_says_its_version_or_why_it_does_not_work(name: str) -> None:
    made = backend(name)
    found = made.availability()
    assert made.name == name
    assert bool(found) == bool(found.version) == (not found.reason)


@pytest.mark.parametrize("name", backend_names())
def test_an_unavailable_backend_has_no_target(name: str) -> None:
    made = backend(name)
    found = made.availability()
    if found:
        pytest.skip(f"{name} works here")
    with pytest.raises(BackendUnavailable, match=name) as caught:
        made.target(max_batch=1, threads=1)
    assert caught.value.remedy == found.install


def test_the_target_names_backend_version_and_range(vendor: Vendor) -> None:
    target = vendor.target
    assert target.backend == vendor.backend.name
    assert target.version == vendor.backend.availability().version
    assert (target.min_batch, target.max_batch, target.threads) == (1, MAX_BATCH, 1)
    assert target.precision == "fp32"


# --- running ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", range(1, MAX_BATCH + 1))
def test_every_batch_size_gives_both_outputs(pioneer: Engine, batch: int) -> None:
    outputs = pioneer.run(images(batch))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        FEATURES: (batch, 4, 4, 4),
        LOGITS: (batch, 5),
    }
    assert all(value.dtype == torch.float32 for value in outputs.values())


@pytest.mark.parametrize("batch", range(1, MAX_BATCH + 1))
def test_results_are_those_of_eager(
    vendor: Vendor, pioneer: Engine, tiny: Engine, toy: Any, batch: int
) -> None:
    tolerance = vendor.backend.tolerance
    if tolerance is None:
        pytest.skip(f"outputs of {vendor.backend.name} mean nothing")
    for engine, inputs in ((pioneer, images(batch)), (tiny, features(batch))):
        (tensor,) = inputs.values()
        for name, wanted in toy.eager(engine.segment.name, tensor).items():
            assert close(engine.run(inputs)[name], wanted, tolerance)


def test_each_row_stands_for_itself(vendor: Vendor, pioneer: Engine) -> None:
    group = images(5)
    together = pioneer.run(group)
    for row in range(5):
        alone = pioneer.run({IMAGES: group[IMAGES][row : row + 1]})
        for name, value in alone.items():
            assert close(value, together[name][row : row + 1], vendor.backend.tolerance or 1e-6)


def test_preallocated_outputs_are_filled_and_returned(pioneer: Engine) -> None:
    wanted = pioneer.run(images(3))
    out = {FEATURES: torch.full((3, 4, 4, 4), torch.nan), LOGITS: torch.full((3, 5), torch.nan)}
    given = pioneer.run(images(3), out)
    for name, value in out.items():
        assert given[name] is value
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0)


def test_an_output_left_out_is_allocated(pioneer: Engine) -> None:
    out = {FEATURES: torch.empty(3, 4, 4, 4)}
    given = pioneer.run(images(3), out)
    assert given[FEATURES] is out[FEATURES]
    torch.testing.assert_close(given[LOGITS], pioneer.run(images(3))[LOGITS], rtol=0, atol=0)


def test_rows_of_a_larger_buffer_are_filled_and_no_others(pioneer: Engine) -> None:
    memory = torch.full((MAX_BATCH, 4, 4, 4), -7.0)
    pioneer.run(images(3), {FEATURES: memory[:3]})
    assert (memory[3:] == -7.0).all()
    assert not (memory[:3] == -7.0).any()


def test_repeated_runs_are_identical(pioneer: Engine) -> None:
    first = pioneer.run(images(4))
    for _ in range(5):
        for name, value in pioneer.run(images(4)).items():
            torch.testing.assert_close(value, first[name], rtol=0, atol=0)


def test_outputs_survive_later_runs(pioneer: Engine) -> None:
    kept = pioneer.run(images(4))
    copies = {name: value.clone() for name, value in kept.items()}
    pioneer.run(images(4, seed=1))
    for name, value in kept.items():
        torch.testing.assert_close(value, copies[name], rtol=0, atol=0)


def test_inputs_are_only_read(pioneer: Engine, tiny: Engine) -> None:
    for engine, inputs in ((pioneer, images(4)), (tiny, features(4))):
        before = {name: value.clone() for name, value in inputs.items()}
        engine.run(inputs)
        for name, value in inputs.items():
            assert torch.equal(value, before[name])


def test_inputs_may_go_away_after_the_run(pioneer: Engine) -> None:
    group = images(4)
    first = pioneer.run(group)[LOGITS]
    kept = first.clone()
    group[IMAGES].zero_()
    del group
    assert torch.equal(first, kept)
    assert torch.equal(pioneer.run(images(4))[LOGITS], kept)


def test_two_engines_at_once_do_not_disturb_each_other(vendor: Vendor) -> None:
    one, two, other = (vendor.engine(name) for name in ("pioneer", "pioneer", "tiny"))
    alone = one.run(images(4)), two.run(images(2, seed=1)), other.run(features(3))
    for _ in range(3):
        together = one.run(images(4)), two.run(images(2, seed=1)), other.run(features(3))
        for given, wanted in zip(together, alone, strict=True):
            for name, value in given.items():
                assert torch.equal(value, wanted[name])


# --- refusing -----------------------------------------------------------------------------------


def strided(count: int) -> Tensor:
    return images(2 * count)[IMAGES][::2]


BAD_INPUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "not contiguous": lambda: {IMAGES: strided(3)},
    "torch.float32": lambda: {IMAGES: images(3)[IMAGES].float()},
    r"\(3, 3, 16, 15\)": lambda: {IMAGES: images(3)[IMAGES][..., :15].contiguous()},
    r"\(3, 768\)": lambda: {IMAGES: images(3)[IMAGES].flatten(1)},
    r"inputs \[\]": dict,
    r"inputs \['features'\]": lambda: features(3),
    r"\['images', 'more'\]": lambda: {**images(3), "more": torch.zeros(3)},
    "a batch of 0": lambda: images(0),
    "a batch of 9": lambda: images(MAX_BATCH + 1),
}


@pytest.mark.parametrize("said", BAD_INPUTS)
def test_a_bad_input_is_refused(pioneer: Engine, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        pioneer.run(BAD_INPUTS[said]())


def test_a_scalar_is_refused(pioneer: Engine) -> None:
    with pytest.raises(EngineError):
        pioneer.run({IMAGES: torch.zeros((), dtype=torch.uint8)})


BAD_OUTPUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    r"\(2, 5\)": lambda: {LOGITS: torch.empty(2, 5)},
    "torch.float64": lambda: {LOGITS: torch.empty(3, 5, dtype=torch.float64)},
    "not contiguous": lambda: {LOGITS: torch.empty(5, 3).T},
    r"\['answers'\]": lambda: {"answers": torch.empty(3, 5)},
}


@pytest.mark.parametrize("said", BAD_OUTPUTS)
def test_a_bad_output_is_refused(pioneer: Engine, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        pioneer.run(images(3), BAD_OUTPUTS[said]())


def test_a_refused_run_leaves_the_engine_usable(pioneer: Engine) -> None:
    wanted = pioneer.run(images(2))[LOGITS]
    with pytest.raises(EngineError):
        pioneer.run({})
    assert torch.equal(pioneer.run(images(2))[LOGITS], wanted)


def test_a_closed_engine_is_refused(vendor: Vendor) -> None:
    engine = vendor.engine("pioneer")
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(images(1))


def test_closing_twice_is_closing_once(vendor: Vendor) -> None:
    engine = vendor.engine("pioneer")
    engine.close()
    engine.close()


def test_closing_one_engine_leaves_its_twin_open(vendor: Vendor) -> None:
    one, two = vendor.engine("pioneer"), vendor.engine("pioneer")
    one.close()
    assert two.run(images(1))[LOGITS].shape == (1, 5)


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\0", b"no engine at all", bytes(1000), random.Random(0).randbytes(4096)],
    ids=["empty", "one byte", "text", "zeros", "noise"],
)
def test_garbage_is_refused(vendor: Vendor, toy: Any, garbage: bytes) -> None:
    with pytest.raises(EngineError):
        vendor.backend.load(garbage, toy.segment("pioneer"), vendor.target)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_truncated_engine_is_refused(vendor: Vendor, toy: Any, part: float) -> None:
    data = vendor.compiled("pioneer")
    with pytest.raises(EngineError):
        vendor.backend.load(data[: int(part * len(data))], toy.segment("pioneer"), vendor.target)


@pytest.mark.parametrize(("name", "other"), list(itertools.permutations(NAMES, 2)))
def test_another_segments_engine_gives_no_silent_success(
    vendor: Vendor, toy: Any, name: str, other: str
) -> None:
    node = next(node for node in toy.nodes if node.name == name)

    def load_and_verify() -> None:
        engine = vendor.backend.load(vendor.compiled(other), toy.segment(name), vendor.target)
        verify(engine, Tree(toy.nodes), node, toy.canary, vendor.backend.tolerance)

    with pytest.raises((EngineError, ParityError)):
        load_and_verify()


@pytest.mark.parametrize("name", NAMES)
def test_its_own_engine_passes_the_canary(vendor: Vendor, toy: Any, name: str) -> None:
    node = next(node for node in toy.nodes if node.name == name)
    tolerance = vendor.backend.tolerance
    worst = verify(vendor.engine(name), Tree(toy.nodes), node, toy.canary, tolerance)
    assert tolerance is None or worst <= tolerance


def test_a_segment_without_its_form_cannot_be_compiled(vendor: Vendor, toy: Any) -> None:
    if not vendor.backend.forms:
        pytest.skip(f"{vendor.backend.name} needs no form")
    whole = toy.segment("pioneer")
    bare = Segment(whole.name, whole.inputs, whole.outputs, {}, whole.content)
    with pytest.raises(OpaError, match="pioneer has the forms"):
        vendor.backend.compile(bare, vendor.target)


def test_a_damaged_form_cannot_be_used(vendor: Vendor, toy: Any) -> None:
    if not vendor.backend.forms:
        pytest.skip(f"{vendor.backend.name} needs no form")
    whole = toy.segment("pioneer")
    forms = {name: data[: len(data) // 2] for name, data in whole.forms.items()}
    broken = Segment(whole.name, whole.inputs, whole.outputs, forms, whole.content)

    def compile_and_load() -> None:
        vendor.backend.load(vendor.backend.compile(broken, vendor.target), broken, vendor.target)

    with pytest.raises(OpaError):
        compile_and_load()


def test_a_form_with_other_outputs_than_the_segment_cannot_be_used(
    vendor: Vendor, toy: Any
) -> None:
    if not vendor.backend.forms:
        pytest.skip(f"{vendor.backend.name} needs no form")
    whole = toy.segment("tiny")
    more = replace(whole, outputs=(*whole.outputs, replace(whole.outputs[0], name="more")))

    def compile_load_and_run() -> None:
        data = vendor.backend.compile(more, vendor.target)
        vendor.backend.load(data, more, vendor.target).run(features(2))

    with pytest.raises(OpaError):
        compile_load_and_run()


def test_an_error_of_ours_inside_a_run_stays_what_it_is(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ParityError("ours")

    engine = vendor.engine("pioneer")
    monkeypatch.setattr(engine, "_run", fail)
    with pytest.raises(ParityError, match="ours"):
        engine.run(images(1))


def test_a_failure_of_the_vendor_is_an_engine_error(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("inside the vendor")

    engine = vendor.engine("pioneer")
    monkeypatch.setattr(engine, "_run", fail)
    with pytest.raises(EngineError, match="inside the vendor") as caught:
        engine.run(images(1))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
