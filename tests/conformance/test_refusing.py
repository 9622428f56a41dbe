"""What no engine may accept, whoever the vendor is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.errors import DeviceMemoryError, EngineError, ParityError
from opa_trt.tree import IMAGES, LOGITS

Tensors = dict[str, Tensor]

BAD_INPUTS: dict[str, Callable[[Any], Tensors]] = {
    "not contiguous": lambda v: {IMAGES: v.images(6)[IMAGES][::2]},
    "torch.float32": lambda v: {IMAGES: v.images(3)[IMAGES].float()},
    r"\(3, 3, 16, 15\)": lambda v: {IMAGES: v.images(3)[IMAGES][..., :15].contiguous()},
    r"\(3, 768\)": lambda v: {IMAGES: v.images(3)[IMAGES].flatten(1)},
    r"inputs \[\]": lambda v: {},
    r"inputs \['features'\]": lambda v: v.features(3),
    r"\['images', 'more'\]": lambda v: {**v.images(3), "more": torch.zeros(3)},
    "a batch of 0": lambda v: v.images(0),
    "a batch of 9": lambda v: v.images(9),
    "is on meta": lambda v: {IMAGES: v.images(3)[IMAGES].to("meta")},
}

BAD_OUTPUTS: dict[str, Callable[[Any], Tensors]] = {
    r"\(2, 5\)": lambda v: {LOGITS: v.empty(2, 5)},
    "torch.float64": lambda v: {LOGITS: v.empty(3, 5, dtype=torch.float64)},
    "not contiguous": lambda v: {LOGITS: v.empty(5, 3).T},
    r"\['answers'\]": lambda v: {"answers": v.empty(3, 5)},
    r"'answers', 'features'": lambda v: {
        "answers": v.empty(3, 5),
        "features": v.empty(3, 4, 4, 4),
        LOGITS: v.empty(3, 5),
    },
    "is on meta": lambda v: {LOGITS: v.empty(3, 5).to("meta")},
}


@pytest.mark.parametrize("said", BAD_INPUTS)
def test_a_bad_input_is_refused(vendor: Any, pioneer: Engine, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        pioneer.run(BAD_INPUTS[said](vendor))


def test_a_scalar_is_refused(pioneer: Engine) -> None:
    with pytest.raises(EngineError):
        pioneer.run({IMAGES: torch.zeros((), dtype=torch.uint8)})


@pytest.mark.parametrize("said", BAD_OUTPUTS)
def test_a_bad_output_is_refused(vendor: Any, pioneer: Engine, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        pioneer.run(vendor.images(3), BAD_OUTPUTS[said](vendor))


def test_a_refused_run_leaves_the_engine_usable(vendor: Any, pioneer: Engine) -> None:
    wanted = pioneer.run(vendor.images(2))[LOGITS]
    with pytest.raises(EngineError):
        pioneer.run({})
    assert torch.equal(pioneer.run(vendor.images(2))[LOGITS], wanted)


def test_a_closed_engine_is_refused(vendor: Any) -> None:
    engine = vendor.engine("pioneer")
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(vendor.images(1))


def test_a_closed_engine_cannot_be_prepared(vendor: Any) -> None:
    engine = vendor.engine("pioneer")
    out = engine.run(vendor.images(1))
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.prepare(vendor.images(1), out)


def test_closing_twice_is_closing_once(vendor: Any) -> None:
    engine = vendor.engine("pioneer")
    engine.close()
    engine.close()


def test_closing_one_engine_leaves_its_twin_open(vendor: Any) -> None:
    one, two = vendor.engine("pioneer"), vendor.engine("pioneer")
    one.close()
    assert two.run(vendor.images(1))[LOGITS].shape == (1, 5)


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_an_error_of_ours_inside_a_run_stays_what_it_is(
    vendor: Any, pioneer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pioneer, "_run", failing(ParityError("ours")))
    with pytest.raises(ParityError, match="ours"):
        pioneer.run(vendor.images(1))


def test_a_failure_of_the_vendor_is_an_engine_error(
    vendor: Any, pioneer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pioneer, "_run", failing(ZeroDivisionError("inside the vendor")))
    with pytest.raises(EngineError, match="inside the vendor") as caught:
        pioneer.run(vendor.images(1))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert vendor.backend.name in str(caught.value)


def test_a_vendor_without_room_is_told_from_a_failure(
    vendor: Any, pioneer: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pioneer, "_run", failing(RuntimeError("CUDA out of memory")))
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        pioneer.run(vendor.images(1))
