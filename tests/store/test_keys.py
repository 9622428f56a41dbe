"""Keys: an engine is found again by all that its outputs depend on, and by nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opa_trt.backends import backend
from opa_trt.backends.null import NullBackend
from opa_trt.store import EngineStore, engine_key
from opa_trt.supernet.fold import fold
from opa_trt.supernet.trace import content, trace, trace_bytes
from opa_trt.tree import FEATURES, LOGITS, TORCHSCRIPT, Segment, Target, TensorSpec

SEGMENT = Segment(
    "pioneer",
    (TensorSpec("images", (3, 16, 16), "uint8"),),
    (TensorSpec("logits", (5,)),),
    {"torchscript": b"container bytes"},
    "hash of graph and weights",
)
TARGET = Target("torchscript", "2.0", max_batch=8, threads=1)


def key(segment: Segment = SEGMENT, target: Target = TARGET) -> str:
    return engine_key(segment, target, backend("torchscript"))


# --- what counts --------------------------------------------------------------------------------


def test_a_key_is_the_same_each_time() -> None:
    assert key() == key(dataclasses.replace(SEGMENT))
    assert len(key()) == 64


def test_container_bytes_and_names_do_not_count() -> None:
    assert key(dataclasses.replace(SEGMENT, forms={"torchscript": b"another save"})) == key()
    assert key(dataclasses.replace(SEGMENT, name="renamed")) == key()


SEGMENTS: dict[str, dict[str, Any]] = {
    "weights": {"content": "other weights"},
    "input shape": {"inputs": (TensorSpec("images", (3, 32, 32), "uint8"),)},
    "input dtype": {"inputs": (TensorSpec("images", (3, 16, 16), "float32"),)},
    "outputs": {"outputs": (TensorSpec("logits", (6,)),)},
    "output's name": {"outputs": (TensorSpec("features", (5,)),)},
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_another_segment_has_another_key(name: str) -> None:
    assert key(dataclasses.replace(SEGMENT, **SEGMENTS[name])) != key()


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2},
        {"precision": "fp16"},
        {"version": "2.1"},
        {"backend": "openvino"},
        {"device": "cuda"},
        {"min_batch": 2},
        {"max_batch": 16},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_target_has_another_key(change: dict[str, Any]) -> None:
    assert key(target=dataclasses.replace(TARGET, **change)) != key()


def test_another_revision_of_our_code_has_another_key() -> None:
    older, newer = NullBackend(), NullBackend()
    newer.revision += 1
    assert engine_key(SEGMENT, TARGET, older) != engine_key(SEGMENT, TARGET, newer)


def test_another_instruction_set_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    here = key()
    monkeypatch.setattr("opa_trt.machine.instruction_set", lambda: "avx9")
    assert key() != here


def test_another_form_has_another_key() -> None:
    openvino = backend("openvino")
    forms = [{name: b"bytes"} for name in openvino.forms]
    keys = {
        engine_key(dataclasses.replace(SEGMENT, forms=form), TARGET, openvino) for form in forms
    }
    assert len(keys) == len(forms) > 1


def test_all_these_keys_differ_from_each_other() -> None:
    segments = [SEGMENT, *(dataclasses.replace(SEGMENT, **c) for c in SEGMENTS.values())]
    targets = [TARGET, *(dataclasses.replace(TARGET, threads=n) for n in range(2, 9))]
    keys = [key(segment, target) for segment in segments for target in targets]
    assert len(set(keys)) == len(keys)


# --- tails of one graph -------------------------------------------------------------------------


class Tail(nn.Module):
    """Operators, shapes and names are the same whatever the arguments are."""

    def __init__(self, *, seed: int = 0, stride: int = 1, mean: float = 0.3, var: float = 1.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            conv, head = nn.Conv2d(4, 4, 3, stride=stride, padding=1), nn.Linear(4, 5)
        norm = nn.BatchNorm2d(4)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.fill_(mean)
        norm.running_var.fill_(var)
        self.body, self.head = nn.Sequential(conv, norm, nn.ReLU()), head

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(features).mean((2, 3)))
        return logits


def segment_of(tail: Tail) -> Segment:
    """As a build makes it: folded, traced, hashed."""
    traced = trace(fold(tail.eval()), torch.zeros(2, 4, 8, 8))
    return Segment(
        "tail",
        (TensorSpec(FEATURES, (4, 8, 8)),),
        (TensorSpec(LOGITS, (5,)),),
        {TORCHSCRIPT: trace_bytes(traced)},
        content(traced),
    )


TAILS: dict[str, Callable[[], Tail]] = {
    "weights": lambda: Tail(seed=1),
    "stride": lambda: Tail(stride=2),
    "batch-norm mean": lambda: Tail(mean=0.30001),
    "batch-norm variance": lambda: Tail(var=1.0001),
}


@pytest.mark.parametrize("what", TAILS)
def test_tails_that_differ_in_one_thing_have_their_own_keys(what: str) -> None:
    assert key(segment_of(TAILS[what]())) != key(segment_of(Tail()))


def test_a_tail_made_and_traced_again_has_the_same_key() -> None:
    assert key(segment_of(Tail())) == key(segment_of(Tail()))


@pytest.mark.parametrize("what", TAILS)
def test_no_tail_is_handed_the_engine_of_another(store: EngineStore, what: str) -> None:
    vendor, first, second = backend("torchscript"), segment_of(Tail()), segment_of(TAILS[what]())
    target = vendor.target(max_batch=8, threads=1)
    own = engine_key(first, target, vendor)
    store.put_engine(own, vendor.compile(first, target))
    assert store.engine(own) is not None
    assert store.engine(engine_key(second, target, vendor)) is None
