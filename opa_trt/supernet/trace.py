"""From a module to its portable form: TorchScript, and a hash of graph and weights."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

DEBUG = ".debug_pkl"  # files of the archive that hold paths of the machine that traced


@torch.no_grad()
def trace(module: nn.Module, example: Tensor) -> Any:
    """The frozen TorchScript trace of ``module`` (any batch size)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit says at every call that it is deprecated
        traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            module.eval(), example, check_trace=False
        )
        return torch.jit.freeze(traced)


def trace_bytes(traced: Any, extra: Mapping[str, str] | None = None) -> bytes:
    """The trace as a file's bytes, without the source paths that torch writes into it.

    Two saves of one trace may differ; ``content`` does not.

    Args:
        traced: what ``trace`` returned.
        extra: texts that the archive holds beside it, by name (torch's ``_extra_files``).
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(traced, buffer, _extra_files=dict(extra or {}))
    stripped = io.BytesIO()
    with zipfile.ZipFile(buffer) as saved, zipfile.ZipFile(stripped, "w") as kept:
        for entry in saved.infolist():
            if not entry.filename.endswith(DEBUG):
                kept.writestr(entry, saved.read(entry))
    return stripped.getvalue()


def content(traced: Any) -> str:
    """sha256 of what the trace computes: operators, their order, every constant and weight.

    Value names, scopes and source positions do not count, so two traces of one module agree.
    """
    digest = hashlib.sha256()
    _hash_block(traced.graph, digest, {})
    return digest.hexdigest()


def _hash_block(block: Any, digest: Any, numbers: dict[str, int]) -> None:
    def number(value: Any) -> int:
        return numbers.setdefault(value.debugName(), len(numbers))

    for value in block.inputs():
        number(value)
    for node in block.nodes():
        inputs = [number(value) for value in node.inputs()]
        outputs = [number(value) for value in node.outputs()]
        kinds = [value.type().kind() for value in node.outputs()]
        digest.update(f"{node.kind()} {inputs} {outputs} {kinds}\n".encode())
        for name in sorted(node.attributeNames()):
            _hash_attribute(node, name, digest)
        for inner in node.blocks():
            _hash_block(inner, digest, numbers)
    digest.update(f"return {[number(value) for value in block.outputs()]}\n".encode())


def _hash_attribute(node: Any, name: str, digest: Any) -> None:
    kind = node.kindOf(name)
    value = getattr(node, kind)(name)
    tensors = [value] if kind == "t" else list(value) if kind == "ts" else []
    if not tensors:
        digest.update(f"{name} {kind} {value!r}\n".encode())
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.ndim else b"")
        if plain.ndim == 0:
            digest.update(repr(plain.item()).encode())
