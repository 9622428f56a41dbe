"""Inputs and reference outputs by which an engine is known to be the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from opa_trt.builder.network import walk
from opa_trt.tree import IMAGES, TensorSpec, Tree


def canary_arrays(
    tree: Tree,
    modules: Mapping[str, nn.Module],
    images: TensorSpec,
    batches: tuple[int, ...],
    seed: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded noise and every node's reference outputs, at each batch size.

    Keys are ``images/BATCH`` and ``NODE/BATCH/OUTPUT``.

    Args:
        tree: the nodes, parents first.
        modules: folded, by segment.
        images: what the entries read.
        batches: sizes.
        seed: of the noise.
    """
    draw = np.random.default_rng([seed, 51])
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for batch in dict.fromkeys(batches):
        noise = draw.integers(0, 256, (batch, *images.shape), dtype=np.uint8)
        pixels = noise if images.dtype == "uint8" else (noise / 255).astype(np.float32)
        arrays[f"{IMAGES}/{batch}"] = pixels
        for node, _, given in walk(tree, modules, torch.from_numpy(pixels)):
            for output, tensor in given.items():
                arrays[f"{node.name}/{batch}/{output}"] = tensor.numpy()
    return arrays
