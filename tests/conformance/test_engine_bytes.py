"""Engines as bytes: what is damaged, or made for something else, is refused by name."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from opa_trt.backends.envelope import MAGIC, Envelope, Stamp, unseal
from opa_trt.errors import EngineError, EngineMismatch, ParityError
from opa_trt.tree import Target

NAMES = ("pioneer", "tiny", "small")


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\0", b"no engine at all", bytes(1000), random.Random(0).randbytes(4096), MAGIC],
    ids=["empty", "one byte", "text", "zeros", "noise", "its beginning"],
)
def test_garbage_is_refused(vendor: Any, garbage: bytes) -> None:
    with pytest.raises(EngineError):
        vendor.backend.load(garbage, vendor.segment("pioneer"), vendor.target)


@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.99])
def test_a_truncated_engine_is_refused(vendor: Any, part: float) -> None:
    data = vendor.compiled("pioneer")
    with pytest.raises(EngineError):
        vendor.backend.load(data[: int(part * len(data))], vendor.segment("pioneer"), vendor.target)


def test_bytes_behind_an_engine_are_refused(vendor: Any) -> None:
    with pytest.raises(EngineError, match="damaged"):
        vendor.backend.load(
            vendor.compiled("pioneer") + b"\0", vendor.segment("pioneer"), vendor.target
        )


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_flipped_bit_of_the_engine_is_refused(vendor: Any, part: float) -> None:
    data = bytearray(vendor.compiled("pioneer"))
    size = len(unseal(bytes(data)).payload)
    data[len(data) - size + int(part * (size - 1))] ^= 1
    with pytest.raises(EngineError, match="pioneer is damaged"):
        vendor.backend.load(bytes(data), vendor.segment("pioneer"), vendor.target)


# --- for something else -------------------------------------------------------------------------

OTHER_TARGETS: dict[str, Callable[[Target], Target]] = {
    "version": lambda target: replace(target, version="0.0.1"),
    "backend": lambda target: replace(target, backend="another"),
    "device": lambda target: replace(target, device="abacus"),
    "precision": lambda target: replace(target, precision="fp3"),
    "min_batch": lambda target: replace(target, min_batch=2),
    "max_batch": lambda target: replace(target, max_batch=16),
    "threads": lambda target: replace(target, threads=7),
}

OTHER_STAMPS: dict[str, Callable[[Stamp], Stamp]] = {
    "machine": lambda stamp: replace(stamp, capability="an abacus"),
    "revision of our compile code": lambda stamp: replace(stamp, revision=-1),
    "portable form": lambda stamp: replace(stamp, form="papyrus"),
    "content": lambda stamp: replace(stamp, content="another network"),
    "input": lambda stamp: replace(stamp, inputs=()),
    "output": lambda stamp: replace(stamp, outputs=stamp.outputs[:1]),
}


@pytest.mark.parametrize("what", OTHER_TARGETS)
def test_an_engine_for_another_target_is_refused_by_name(vendor: Any, what: str) -> None:
    wanted = OTHER_TARGETS[what](vendor.target)
    with pytest.raises(EngineMismatch, match=f"pioneer has another {what}"):
        vendor.backend.load(vendor.compiled("pioneer"), vendor.segment("pioneer"), wanted)


@pytest.mark.parametrize("what", OTHER_STAMPS)
def test_an_engine_made_of_something_else_is_refused_by_name(vendor: Any, what: str) -> None:
    found = unseal(vendor.compiled("pioneer"))
    other = Envelope(OTHER_STAMPS[what](found.stamp), found.payload).seal()
    with pytest.raises(EngineMismatch, match=f"pioneer has another {what}"):
        vendor.backend.load(other, vendor.segment("pioneer"), vendor.target)


def test_an_engine_of_another_machine_is_refused(
    vendor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = vendor.compiled("pioneer")
    monkeypatch.setattr(type(vendor.backend), "capability", lambda self: "an abacus")
    with pytest.raises(EngineMismatch, match="another machine") as caught:
        vendor.backend.load(data, vendor.segment("pioneer"), vendor.target)
    assert "an abacus" in caught.value.expected


def test_another_segments_engine_is_refused(vendor: Any) -> None:
    with pytest.raises(EngineMismatch, match="the engine of tiny"):
        vendor.backend.load(vendor.compiled("pioneer"), vendor.segment("tiny"), vendor.target)


@pytest.mark.parametrize(("name", "other"), list(itertools.permutations(NAMES, 2)))
def test_another_segments_engine_under_its_stamp_gives_no_silent_success(
    many: Any, name: str, other: str
) -> None:
    if many.tolerance is None:
        pytest.skip(f"outputs of {many} mean nothing")
    stamp = unseal(many.compiled(name)).stamp
    forged = Envelope(stamp, unseal(many.compiled(other)).payload).seal()

    def load_and_verify() -> None:
        many.verified(many.backend.load(forged, many.segment(name), many.target), name)

    with pytest.raises((EngineError, ParityError)):
        load_and_verify()


@pytest.mark.parametrize("payload", [b"", b"{}", b"no engine at all", bytes(1000)])
def test_a_payload_that_is_none_is_refused(vendor: Any, payload: bytes) -> None:
    forged = Envelope(unseal(vendor.compiled("pioneer")).stamp, payload).seal()
    with pytest.raises(EngineError):
        vendor.backend.load(forged, vendor.segment("pioneer"), vendor.target)
