"""One sub-network on disk, batch norm folded: safetensors with space and arch in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as safetensors
from torch import nn

from opa_trt.errors import OpaError
from opa_trt.supernet.arch import Arch
from opa_trt.supernet.checkpoint import (
    FileKind,
    check_tensors,
    read_file,
    space_in,
    undescribed,
)
from opa_trt.supernet.fold import fold
from opa_trt.supernet.space import Space
from opa_trt.supernet.supernet import Supernet

SUBNET = FileKind(
    "opa_trt.subnet", 1, "a sub-network's weights", "`opa-trt export … --format state-dict`"
)


def subnet_bytes(module: nn.Module, space: Space, arch: Arch, notes: Mapping[str, str]) -> bytes:
    """The file of the folded ``module``, which is ``arch`` of ``space``; ``notes`` go with it."""
    metadata = {
        **notes,
        "format": SUBNET.format,
        "version": str(SUBNET.version),
        "space": json.dumps(space.to_dict()),
        "arch": json.dumps(arch.to_dict()),
    }
    tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
    return safetensors(tensors, metadata=metadata)


def load_subnet(path: Path | str) -> nn.Module:
    """The network in ``path``: plain layers, no batch norm, in evaluation mode.

    It takes normalised ``[N, 3, R, R] float32`` and gives logits ``[N, classes] float32``.

    Raises:
        CheckpointError: no such file, not a sub-network, a later version, no space or arch that
            can be read, or tensors that are missing, unknown or misshapen (named).
    """
    path = Path(path)
    metadata, tensors = read_file(path, SUBNET)
    space = space_in(path, metadata)
    try:
        module = folded_structure(space, Arch.from_dict(json.loads(metadata["arch"])))
    except (OpaError, KeyError, TypeError, ValueError, RecursionError) as exc:
        raise undescribed(path, "arch", exc) from exc
    check_tensors(path, module.state_dict(), tensors, SUBNET)
    module.load_state_dict(tensors, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def folded_structure(space: Space, arch: Arch) -> nn.Module:
    """The layers of ``arch`` without numbers (on the meta device), batch norm folded away."""
    with torch.device("meta"):
        return fold(Supernet(space).extract(arch))
