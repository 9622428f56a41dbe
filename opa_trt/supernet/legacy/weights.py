"""The shallow phases on disk: safetensors, beside a legacy network that the caller has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors

from opa_trt import atomic
from opa_trt.errors import CheckpointError
from opa_trt.supernet.checkpoint import FileKind, check_tensors, read_file, stored
from opa_trt.supernet.digest import weights_digest
from opa_trt.supernet.legacy.augmented import Augmented

SHALLOW = FileKind(
    "opa_trt.leaf", 1, "the shallow phases of an augmented network", "save_shallow(network, FILE)"
)


def save_shallow(network: Augmented, path: Path, *, notes: Mapping[str, Any] | None = None) -> None:
    """Write the shallow phases to ``path``, atomically; the legacy network is not in the file.

    Args:
        network: whose phases.
        path: a ``.safetensors`` file.
        notes: JSON values kept beside them.
    """
    tensors = stored(network.shallow)
    metadata = {
        "format": SHALLOW.format,
        "version": str(SHALLOW.version),
        "augmentation": json.dumps(_augmentation(network)),
        "notes": json.dumps(dict(notes or {})),
    }
    atomic.write_bytes(path, safetensors(tensors, metadata=metadata))


def load_shallow(network: Augmented, path: Path | str) -> None:
    """Put the shallow phases that ``save_shallow`` wrote into ``network``, in place.

    Raises:
        CheckpointError: no such file, not shallow phases, a later version, or those of another
            legacy network, other phases or another ratio.
    """
    path = Path(path)
    metadata, tensors = read_file(path, SHALLOW)
    try:
        found = json.loads(metadata["augmentation"])
    except (KeyError, ValueError) as exc:
        message = f"{path} does not say what was augmented."
        raise CheckpointError(message) from exc
    own = _augmentation(network)
    differing = sorted(key for key in own if found.get(key) != own[key])
    if differing:
        message = f"{path} has other {', '.join(differing)} than this network."
        raise CheckpointError(
            message,
            expected=f"{differing[0]} = {own[differing[0]]}; the file has "
            f"{found.get(differing[0])}.",
            remedy="augment the network that they were trained with, in the same way.",
        )
    check_tensors(path, network.shallow.state_dict(), tensors, SHALLOW)
    network.shallow.load_state_dict(tensors, strict=False)


def _augmentation(network: Augmented) -> dict[str, Any]:
    """What a file of shallow phases must agree on; which channels were sampled is no part."""
    return {
        "phases": list(network.phases),
        "ratio": network.facts["ratio"],
        "divisor": network.facts["divisor"],
        "weights": weights_digest(network.legacy) + weights_digest(network.links),
    }
