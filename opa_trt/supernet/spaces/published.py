"""How OFA's checkpoints call the tensors of layers that several spaces have.

Each function maps keys of ``nn.ModuleDict(space.elastic_parts())`` to keys in the newest published
style. There elastic layers hold their weights a level deeper: ``conv.conv``, ``bn.bn``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
Names = dict[str, str]


def convolution_and_norm(conv: str, norm: str, theirs: str, *, elastic: bool = True) -> Names:
    """A convolution without bias and the norm after it; ``theirs`` is what holds both."""
    deeper_conv, deeper_norm = (".conv.conv", ".bn.bn") if elastic else (".conv", ".bn")
    names = {f"{conv}.weight": f"{theirs}{deeper_conv}.weight"}
    return names | {f"{norm}.{key}": f"{theirs}{deeper_norm}.{key}" for key in NORM}


def weight_and_bias(ours: str, theirs: str) -> Names:
    """A layer with a bias."""
    return {f"{ours}.{key}": f"{theirs}.{key}" for key in ("weight", "bias")}


def kernel_matrices(ours: str, theirs: str, kernels: Sequence[int]) -> Names:
    """The matrices from each kernel size to the next smaller one."""
    pairs = itertools.pairwise(sorted(kernels, reverse=True))
    return {
        f"{ours}.matrices.{large}to{small}": f"{theirs}.{large}to{small}_matrix"
        for large, small in pairs
    }
