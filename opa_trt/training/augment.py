"""Training images as they might also have been taken: random changes that keep what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random, each image by itself; by default nothing.

    Args:
        shift: moved by up to so many pixels, edges repeated.
        flip: whether half of the images are mirrored.
        cutout: side of a square that gets the mean colour, in pixels; it may reach beyond the edge.
        colour: by how much saturation, contrast and brightness are scaled at most (0.3: by 0.7 to
            1.3), below 1.
        cutmix: the share of images of which a rectangle is another image's, as are the labels by
            its area (CutMix, Yun et al. 2019), 0 to 1.
    """

    shift: int = 0
    flip: bool = False
    cutout: int = 0
    colour: float = 0.0
    cutmix: float = 0.0

    def change(self, pixels: Tensor, draw: np.random.Generator, mean: Sequence[float]) -> Tensor:
        """``[N, 3, S, S] uint8`` changed, where they are, but not yet mixed.

        What is random is drawn on the host. ``mean`` is the mean colour, 0 to 1.
        """
        if self.flip:
            mirrored = _moved(draw.random(len(pixels)) < 0.5, pixels)
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        if self.shift:
            pixels = _shifted(pixels, self.shift, draw)
        if self.colour:
            pixels = _coloured(pixels, self.colour, draw)
        return _cut_out(pixels, self.cutout, draw, mean) if self.cutout else pixels

    def mix(
        self, pixels: Tensor, labels: Tensor, classes: int, draw: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Some of the images ``[N, 3, S, S] uint8`` with a rectangle of another.

        Labels ``[N] int64`` become shares of each class, ``[N, C] float32``, where any is mixed.
        """
        if not self.cutmix:
            return pixels, labels
        count, side = len(pixels), pixels.shape[-1]
        length = side * np.sqrt(draw.random(count)) * (draw.random(count) < self.cutmix)
        first = draw.integers(0, side, (2, count)) - length // 2
        inside = _box(side, _moved(first.astype(np.int64), pixels), _moved(length, pixels))
        other = _moved(draw.permutation(count), pixels)
        pixels = torch.where(inside[:, None], pixels[other], pixels)
        kept = 1 - inside.float().mean((1, 2))[:, None]
        shares = F.one_hot(labels, classes).float()
        return pixels, kept * shares + (1 - kept) * shares[other]


UNCHANGED = Augmentation()


def _moved(drawn: npt.NDArray[Any], beside: Tensor) -> Tensor:
    return torch.from_numpy(drawn).to(beside.device)


def _box(side: int, first: Tensor, length: Tensor) -> Tensor:
    """``[N, S, S] bool``: rows and columns from ``first [2, N]``, ``length [N]`` of either."""
    place = torch.arange(side, device=first.device)
    begin = first[..., None]
    rows, columns = (place >= begin) & (place < begin + length[:, None])
    found: Tensor = rows[:, :, None] & columns[:, None, :]
    return found


def _shifted(pixels: Tensor, most: int, draw: np.random.Generator) -> Tensor:
    count, channels, side = len(pixels), pixels.shape[1], pixels.shape[-1]
    place = torch.arange(side, device=pixels.device)
    first = _moved(draw.integers(0, 2 * most + 1, (2, count, 1)), pixels) - most
    rows, columns = (first + place).clamp_(0, side - 1)
    return pixels[
        torch.arange(count, device=pixels.device)[:, None, None, None],
        torch.arange(channels, device=pixels.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _coloured(pixels: Tensor, most: float, draw: np.random.Generator) -> Tensor:
    """Away from or towards each pixel's grey, then the image's, then black."""
    drawn = draw.uniform(1 - most, 1 + most, (3, len(pixels), 1, 1, 1)).astype(np.float32)
    saturation, contrast, brightness = _moved(drawn, pixels)
    found = pixels.float()
    grey = found.mean(1, keepdim=True)
    found = grey + saturation * (found - grey)
    middle = grey.mean((2, 3), keepdim=True)
    found = brightness * (middle + contrast * (found - middle))
    rounded: Tensor = found.clamp_(0, 255).round_().byte()
    return rounded


def _cut_out(pixels: Tensor, side: int, draw: np.random.Generator, mean: Sequence[float]) -> Tensor:
    """A square around a random pixel gets the mean colour."""
    count = len(pixels)
    first = _moved(draw.integers(0, pixels.shape[-1], (2, count, 1)), pixels)[..., 0] - side // 2
    gone = _box(pixels.shape[-1], first, torch.full((count,), side, device=pixels.device))
    colour = torch.tensor(mean).mul(255).round().byte().to(pixels.device)
    return torch.where(gone[:, None], colour[:, None, None], pixels)
