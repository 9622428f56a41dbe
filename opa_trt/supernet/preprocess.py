"""From camera bytes to what a network reads: resize and normalise, inside the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Preprocess(nn.Module):
    """``[N, 3, S, S] uint8`` (0 to 255) or float32 (0 to 1) to ``[N, 3, R, R] float32``.

    Args:
        size: side S of the images that come in, in pixels.
        resolution: side R that the network reads.
        mean: of each channel, on the scale 0 to 1.
        std: of each channel, on the same scale.
        bytes_in: whether images come as uint8 rather than float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int,
        resolution: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        bytes_in: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.resolution = size, resolution
        scale = 255.0 if bytes_in else 1.0
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * scale)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * scale)

    def forward(self, images: Tensor) -> Tensor:
        x = images.float()
        if self.resolution != self.size:
            side = [self.resolution, self.resolution]
            x = F.interpolate(x, side, mode="bilinear", align_corners=False)
        return (x - self.mean) / self.std
