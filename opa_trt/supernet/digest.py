"""A hash of a module's numbers."""

from __future__ import annotations

import hashlib

from torch import nn


def weights_digest(module: nn.Module) -> str:
    """sha256 (64 hex digits) of the names, weights and statistics of ``module``."""
    found = hashlib.sha256()
    for key, value in module.state_dict().items():
        found.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
