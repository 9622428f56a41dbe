"""Super-networks on disk: safetensors with the space in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors
from torch import nn

from opa_trt import atomic
from opa_trt.errors import CheckpointError, OpaError
from opa_trt.supernet.registry import space_from_dict
from opa_trt.supernet.space import Space
from opa_trt.supernet.supernet import Supernet

COUNTER = "num_batches_tracked"
FORMAT = "opa_trt.supernet"
VERSION = 1


def save(
    supernet: Supernet, path: Path, *, half: bool = False, notes: Mapping[str, Any] | None = None
) -> None:
    """Write weights and space to ``path``, atomically.

    Args:
        supernet: what to write.
        path: a ``.safetensors`` file.
        half: store float32 tensors as float16 (``load`` reads them back as float32).
        notes: JSON values kept beside the space: recipe, seed, steps.
    """
    tensors = stored(supernet, half=half)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "space": json.dumps(supernet.space.to_dict()),
        "notes": json.dumps(dict(notes or {})),
    }
    atomic.write_bytes(path, safetensors(tensors, metadata=metadata))


def stored(module: nn.Module, *, half: bool = False) -> dict[str, torch.Tensor]:
    """A module's tensors as a file has them: without counters of batches, in float16 with
    ``half``."""
    return {
        key: (value.half() if half and value.is_floating_point() else value).contiguous()
        for key, value in module.state_dict().items()
        if not key.endswith(COUNTER)
    }


def load(path: Path | str, *, expected: Space | None = None) -> Supernet:
    """Read what ``save`` wrote, in float32 and evaluation mode.

    Args:
        path: the file.
        expected: the space that a recipe describes; a checkpoint of another is refused.

    Raises:
        CheckpointError: no such file, not a super-network, a later version, no space that can
            be read, another space, or tensors that are missing, unknown or misshapen (named).
    """
    path = Path(path)
    metadata, tensors = read_file(path, SUPERNET)
    space = space_in(path, metadata)
    if expected is not None and expected != space:
        raise _disagreement(path, space, expected)
    supernet = Supernet(space)
    check_tensors(path, supernet.state_dict(), tensors, SUPERNET)
    supernet.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    return supernet.eval()


@dataclass(frozen=True)
class FileKind:
    """What a ``.safetensors`` file of ours holds: its format's name and version, in words, and
    the command that writes one."""

    format: str
    version: int
    what: str
    command: str


SUPERNET = FileKind(
    FORMAT, VERSION, "a super-network's weights", "`opa-trt train RECIPE --out FILE`"
)


def read_notes(path: Path | str, kind: FileKind = SUPERNET) -> dict[str, Any]:
    """What ``save``, or what else writes files of ``kind``, was given as ``notes``.

    Raises:
        CheckpointError: as ``read_file`` says, or the notes cannot be read.
    """
    metadata, _ = read_file(Path(path), kind)
    try:
        return dict(json.loads(metadata.get("notes", "{}")))
    except (TypeError, ValueError, RecursionError) as exc:
        msg = f"{path} has notes that cannot be read: {exc}."
        raise CheckpointError(msg) from exc


def read_file(path: Path, kind: FileKind) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a file of ``kind``.

    Raises:
        CheckpointError: no such file, one that cannot be read, not safetensors, of another kind,
            or of a later version.
    """
    if not path.is_file():
        msg = f"{path} {'is no file' if path.exists() else 'does not exist'}."
        raise CheckpointError(
            msg,
            expected=f"{kind.what} (.safetensors).",
            remedy=f"write them with {kind.command}.",
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        msg = f"{path} is not a readable safetensors file: {exc}."
        raise CheckpointError(msg) from exc
    if metadata.get("format") != kind.format:
        msg = f"{path} has format {metadata.get('format')!r}."
        raise CheckpointError(msg, expected=f"{kind.format!r}.")
    if not metadata.get("version", "").isdecimal() or int(metadata["version"]) > kind.version:
        msg = f"{path} has version {metadata.get('version')!r}."
        raise CheckpointError(
            msg,
            expected=f"at most {kind.version}.",
            remedy="install a newer opa-trt.",
        )
    return metadata, tensors


def check_tensors(
    path: Path,
    own: Mapping[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
    kind: FileKind,
) -> None:
    """CheckpointError unless ``found`` has the names and shapes of ``own``, counters aside."""
    wanted = {key for key in own if not key.endswith(COUNTER)}
    for problem, keys in (
        ("lacks", wanted - set(found)),
        ("has unknown", set(found) - wanted),
        ("has misshapen", {k for k in wanted & set(found) if own[k].shape != found[k].shape}),
    ):
        if keys:
            listing = ", ".join(sorted(keys)[:3]) + (" …" if len(keys) > 3 else "")
            msg = f"{path} {problem} {len(keys)} of the network's tensors: {listing}."
            raise CheckpointError(msg, remedy=f"write it again with {kind.command}.")


def space_in(path: Path, metadata: Mapping[str, str]) -> Space:
    """The space in a file's metadata; CheckpointError where it does not describe one."""
    try:
        return space_from_dict(json.loads(metadata["space"]))
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise undescribed(path, "space", exc) from exc


def undescribed(path: Path, what: str, exc: Exception) -> CheckpointError:
    """The error of a file whose metadata do not describe its ``what``, which ``exc`` found."""
    if isinstance(exc, OpaError):
        reason, expected = exc.received.removesuffix("."), exc.expected
    else:
        reason, expected = str(exc), ""
    return CheckpointError(f"{path} does not describe its {what}: {reason}.", expected=expected)


def _disagreement(path: Path, space: Space, expected: Space) -> CheckpointError:
    found, wanted = space.to_dict(), expected.to_dict()
    differing = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
    key = differing[0]
    return CheckpointError(
        f"{path} and the recipe disagree on the space's {', '.join(differing)}.",
        expected=f"{key} = {wanted.get(key)} (recipe); the checkpoint has {found.get(key)}.",
        remedy="name the recipe that it was trained with, or train it again.",
    )
