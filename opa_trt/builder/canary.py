"""Inputs and reference outputs by which an engine is known to be the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from opa_trt.tree import FEATURES, IMAGES, LOGITS, TensorSpec


@torch.no_grad()
def canary_arrays(
    modules: Mapping[str, nn.Module],
    entry: str,
    images: TensorSpec,
    batches: tuple[int, ...],
    seed: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded noise and every node's reference outputs, at each batch size.

    Keys are ``images/BATCH`` and ``NODE/BATCH/OUTPUT``; successors read the entry's features.
    """
    draw = np.random.default_rng([seed, 51])
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for batch in dict.fromkeys(batches):
        noise = draw.integers(0, 256, (batch, *images.shape), dtype=np.uint8)
        pixels = noise if images.dtype == "uint8" else (noise / 255).astype(np.float32)
        features, logits = modules[entry](torch.from_numpy(pixels))
        arrays[f"{IMAGES}/{batch}"] = pixels
        arrays[f"{entry}/{batch}/{FEATURES}"] = features.numpy()
        arrays[f"{entry}/{batch}/{LOGITS}"] = logits.numpy()
        for name, module in modules.items():
            if name != entry:
                arrays[f"{name}/{batch}/{LOGITS}"] = module(features).numpy()
    return arrays
