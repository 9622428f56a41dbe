"""What surrounds every engine's bytes: what it was compiled from and for, and a hash.

Layout: ``MAGIC``; the header's length (4 bytes, little-endian); the header (ASCII JSON: the stamp,
and size and sha256 of the payload); the payload, which is the vendor's own.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from typing import Any

from opa_trt.errors import EngineError, EngineMismatch
from opa_trt.tree import Target, TensorSpec

MAGIC = b"opa_trt engine 1\n"
_LENGTH = struct.Struct("<I")
_REMEDY = "compile it again from the portable segment."


@dataclass(frozen=True)
class Stamp:
    """All that an engine's outputs depend on, and the name of its segment.

    Args:
        segment: name, for messages.
        content: hash of the segment's canonical graph and weights.
        inputs: its tensors.
        outputs: what it gives.
        form: the portable form that it was compiled from.
        target: backend, version, device, precision, batch range, threads.
        revision: of our compile code.
        capability: of the machine: the instruction set, or the GPU and its driver.
    """

    segment: str
    content: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    form: str
    target: Target
    revision: int
    capability: str

    def key(self) -> str:
        """The name under which the engine is kept: a hash of all but the segment's name."""
        facts = asdict(self)
        del facts["segment"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Envelope:
    """An engine's bytes with its stamp."""

    stamp: Stamp
    payload: bytes

    def seal(self) -> bytes:
        """As bytes."""
        facts = {
            "stamp": asdict(self.stamp),
            "size": len(self.payload),
            "sha256": hashlib.sha256(self.payload).hexdigest(),
        }
        header = json.dumps(facts, sort_keys=True).encode()
        return MAGIC + _LENGTH.pack(len(header)) + header + self.payload


def unseal(data: bytes) -> Envelope:
    """Read what ``seal`` wrote.

    Raises:
        EngineError: no engine, or one that was truncated or altered.
    """
    try:
        stamp, size, digest, payload = _parts(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as exc:
        message = f"{len(data)} bytes that are no engine: {exc}."
        raise EngineError(message, remedy=_REMEDY) from exc
    if len(payload) != size or hashlib.sha256(payload).hexdigest() != digest:
        message = f"the engine of {stamp.segment} is damaged: {len(payload)} bytes of {size}."
        raise EngineError(message, expected=f"sha256 {digest[:16]}….", remedy=_REMEDY)
    return Envelope(stamp, payload)


def check_stamp(found: Stamp, wanted: Stamp) -> None:
    """Refuse an engine that was compiled for something else.

    Raises:
        EngineMismatch: names what differs: the segment, a part of the target, or the machine.
    """
    for what, has, needs in _differences(found, wanted):
        message = f"the engine of {wanted.segment} has another {what}: {has}."
        raise EngineMismatch(message, expected=f"{needs}.", remedy=_REMEDY)


def _differences(found: Stamp, wanted: Stamp) -> list[tuple[str, Any, Any]]:
    """(what, as found, as wanted) of everything that is not the same, the target first."""
    target = asdict(wanted.target)
    pairs = [(key, getattr(found.target, key), value) for key, value in target.items()]
    pairs += [
        ("revision of our compile code", found.revision, wanted.revision),
        ("machine", found.capability, wanted.capability),
        ("portable form", found.form, wanted.form),
        ("input", found.inputs, wanted.inputs),
        ("output", found.outputs, wanted.outputs),
        ("content", f"{found.segment}, {found.content[:12]}", wanted.content[:12]),
    ]
    same = {"content"} if found.content == wanted.content else set()
    return [pair for pair in pairs if pair[1] != pair[2] and pair[0] not in same]


def _parts(data: bytes) -> tuple[Stamp, int, str, bytes]:
    if not data.startswith(MAGIC):
        message = "they do not begin as one"
        raise ValueError(message)
    start = len(MAGIC) + _LENGTH.size
    (length,) = _LENGTH.unpack(data[len(MAGIC) : start])
    header = json.loads(data[start : start + length].decode("ascii"))
    values = header["stamp"]
    texts = [values[key] for key in ("segment", "content", "form", "capability")]
    if not all(isinstance(text, str) for text in texts) or type(values["revision"]) is not int:
        message = "its stamp has values of another type"
        raise ValueError(message)
    tensors = {key: tuple(map(TensorSpec.from_dict, values[key])) for key in ("inputs", "outputs")}
    stamp = Stamp(**{**values, **tensors, "target": Target(**values["target"])})
    return stamp, int(header["size"]), str(header["sha256"]), data[start + length :]
