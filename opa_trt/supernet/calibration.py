"""Batch-norm statistics of an extracted network, measured on images (OFA; methods of its code)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opa_trt.errors import ConfigError


@dataclass
class _Moments:
    """Image-weighted sums of the batches' means and biased variances."""

    mean: Tensor
    var: Tensor
    images: int = 0

    def add(self, batch: Tensor) -> None:
        count = batch.shape[0]
        var, mean = torch.var_mean(batch, dim=(0, 2, 3), unbiased=False)
        self.mean += mean * count
        self.var += var * count
        self.images += count


@torch.no_grad()
def calibrate(module: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the statistics of every batch norm in ``module`` from ``batches``, in place.

    During the pass every layer normalises by its own batch; afterwards its statistics are the
    image-weighted means of the batches' means and biased variances, so the batch size matters.

    Args:
        module: in evaluation mode; left so.
        batches: inputs of ``module``, ``[N, …] float32``.

    Returns:
        How many images were seen.

    Raises:
        ConfigError: there was no batch.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    moments = {
        norm: _Moments(torch.zeros(norm.num_features), torch.zeros(norm.num_features))
        for norm in norms
    }
    momenta = [norm.momentum for norm in norms]
    hooks = [
        norm.register_forward_pre_hook(lambda layer, args: moments[layer].add(args[0]))
        for norm in norms
    ]
    images = 0
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 0.0  # the pass itself must not move the statistics
        for batch in batches:
            module(batch)
            images += batch.shape[0]
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    if images == 0:
        msg = "no images to calibrate with."
        raise ConfigError(msg, expected="at least one batch.")
    for norm, found in moments.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(found.mean / found.images)
        norm.running_var.copy_(found.var / found.images)
    return images
