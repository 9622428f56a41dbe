"""An engine's bytes come back whole and as what they are, or not at all."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.backends.envelope import MAGIC, Envelope, Stamp, check_stamp, unseal
from opa_trt.errors import EngineError, EngineMismatch
from opa_trt.tree import Target, TensorSpec

STAMP = Stamp(
    segment="tail1",
    content="abc",
    inputs=(TensorSpec("features", (4, 2, 2)),),
    outputs=(TensorSpec("logits", (10,)),),
    form="onnx",
    target=Target("openvino", "1.0", max_batch=8),
    revision=3,
    capability="avx2",
)


def headed(header: bytes, payload: bytes = b"engine") -> bytes:
    return MAGIC + struct.pack("<I", len(header)) + header + payload


def forged(**changes: Any) -> bytes:
    """An engine whose stamp says something else, with size and hash that match."""
    data = Envelope(STAMP, b"engine").seal()
    start = len(MAGIC) + 4
    (length,) = struct.unpack("<I", data[len(MAGIC) : start])
    header = json.loads(data[start : start + length])
    header["stamp"].update(changes)
    return headed(json.dumps(header).encode())


@given(payload=st.binary(max_size=200))
def test_what_is_sealed_comes_back(payload: bytes) -> None:
    assert unseal(Envelope(STAMP, payload).seal()) == Envelope(STAMP, payload)


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(place: int, bit: int) -> None:
    data = bytearray(Envelope(STAMP, b"engine" * 20).seal())
    data[place % len(data)] ^= 1 << bit
    try:
        found = unseal(bytes(data))
        check_stamp(found.stamp, STAMP)
    except EngineError:
        return
    assert found.payload == b"engine" * 20
    assert replace(found.stamp, segment="") == replace(STAMP, segment="")  # its name alone


@given(length=st.integers(0, 400))
def test_a_truncated_engine_is_noticed(length: int) -> None:
    data = Envelope(STAMP, b"engine" * 20).seal()
    with pytest.raises(EngineError):
        unseal(data[: min(length, len(data) - 1)])


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"{}", b'{"stamp": 3}', b"[" * 100_000, b"\xff", b'{"stamp": {"a": 1}}']
)
def test_a_header_of_another_shape_is_no_engine(header: bytes) -> None:
    with pytest.raises(EngineError, match="no engine"):
        unseal(headed(header))


@pytest.mark.parametrize(
    "change", [{"content": 3}, {"form": None}, {"revision": "3"}, {"target": {}}, {"inputs": [1]}]
)
def test_a_stamp_of_other_types_is_no_engine(change: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="no engine"):
        unseal(forged(**change))


WANTED: dict[str, tuple[Stamp, str]] = {
    "version": (replace(STAMP, target=replace(STAMP.target, version="2.0")), "version: 1.0"),
    "device": (replace(STAMP, target=replace(STAMP.target, device="cuda")), "device: cpu"),
    "precision": (replace(STAMP, target=replace(STAMP.target, precision="fp16")), "precision"),
    "batch": (replace(STAMP, target=replace(STAMP.target, max_batch=4)), "max_batch: 8"),
    "threads": (replace(STAMP, target=replace(STAMP.target, threads=2)), "threads: 1"),
    "revision": (replace(STAMP, revision=4), "revision of our compile code: 3"),
    "machine": (replace(STAMP, capability="avx512"), "machine: avx2"),
    "form": (replace(STAMP, form="torchscript"), "portable form: onnx"),
    "content": (replace(STAMP, content="def"), "content: tail1, abc"),
    "inputs": (replace(STAMP, inputs=(TensorSpec("features", (4, 4, 4)),)), "input"),
    "outputs": (replace(STAMP, outputs=(TensorSpec("logits", (2,)),)), "output"),
}


@pytest.mark.parametrize("name", WANTED)
def test_an_engine_for_something_else_is_refused_by_name(name: str) -> None:
    wanted, said = WANTED[name]
    with pytest.raises(EngineMismatch, match=said) as caught:
        check_stamp(STAMP, wanted)
    assert "compile it again" in caught.value.remedy


@pytest.mark.parametrize("name", WANTED)
def test_everything_but_the_segments_name_is_in_the_key(name: str) -> None:
    assert WANTED[name][0].key() != STAMP.key()
    assert replace(STAMP, segment="another").key() == STAMP.key()
