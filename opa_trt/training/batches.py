"""Images as the network reads them: degraded, augmented, resized, normalised."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.device import CPU
from opa_trt.errors import DataError
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.training.augment import UNCHANGED, Augmentation
from opa_trt.training.data import Images
from opa_trt.training.degrade import mixed


@dataclass(frozen=True)
class Source:
    """How images become inputs.

    Args:
        size: side of the images in pixels.
        mean: of each channel, 0 to 1.
        std: of each channel, 0 to 1.
        degradations: families that images are drawn from (``training.degrade``), or none.
        clean: the share of images left as they are, where there are degradations.
    """

    size: int = 32
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    degradations: tuple[str, ...] = ()
    clean: float = 0.25

    def degrade(self, pixels: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
        """``[N, 3, S, S] uint8``, each image with its own family and severity."""
        if not self.degradations:
            return pixels
        return mixed(pixels, self.degradations, seed, clean=self.clean)[0]

    def normalise(self, pixels: Tensor, resolution: int | None = None) -> Tensor:
        """``[N, 3, S, S] uint8`` to normalised ``[N, 3, R, R] float32``, where the pixels are."""
        preprocess = Preprocess(self.size, resolution or self.size, self.mean, self.std)
        result: Tensor = preprocess.to(pixels.device)(pixels)
        return result

    def tensor(self, pixels: npt.NDArray[np.uint8], resolution: int | None = None) -> Tensor:
        """The same of an array."""
        return self.normalise(torch.from_numpy(np.ascontiguousarray(pixels)), resolution)

    def batch(
        self,
        images: Images,
        indices: npt.NDArray[np.int64],
        *,
        seed: int,
        resolution: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The degraded inputs ``[N, 3, R, R] float32`` and labels ``[N] int64`` at ``indices``."""
        pixels = self.degrade(images.pixels[indices], seed)
        return self.tensor(pixels, resolution), torch.tensor(images.labels[indices])

    def check(self, images: Images) -> None:
        """Raises ``DataError`` unless there are images, of this size."""
        if len(images) == 0:
            msg = "no images to train on, or none to check with."
            raise DataError(msg, expected="at least one of each.")
        if images.pixels.shape[-1] != self.size:
            msg = f"images of {images.pixels.shape[-1]} px."
            raise DataError(msg, expected=f"{self.size} px, as the source says.")

    def inputs(
        self, images: Images, limit: int, batch_size: int, resolution: int, seed: int = 0
    ) -> Iterator[Tensor]:
        """At most ``limit`` inputs in batches, drawn evenly: what calibration reads.

        A last batch of one image is left out: it may have no variance to normalise by.
        """
        order = np.random.default_rng([seed, 11]).permutation(len(images))
        repeats = -(-limit // len(images)) if self.degradations else 1
        chosen = np.tile(order, repeats)[:limit]
        for start in range(0, len(chosen), batch_size):
            rows = chosen[start : start + batch_size]
            if start > 0 and len(rows) == 1 < batch_size:
                return
            yield self.batch(images, rows, seed=seed + 1000 + start, resolution=resolution)[0]


def spread(images: Images, count: int) -> Images:
    """At most ``count`` of ``images``, evenly."""
    places = np.linspace(0, len(images) - 1, min(len(images), count))
    return images.select(places.astype(np.int64))


@dataclass(frozen=True)
class Batches:
    """Training batches, each a function of (seed, phase, step) alone, the same on any device.

    What is drawn is drawn on the host; pixels are moved once, and augmented on ``device``.
    """

    images: Images
    source: Source
    batch_size: int
    seed: int
    augmentation: Augmentation = UNCHANGED
    device: str | torch.device = CPU

    @cached_property
    def _pixels(self) -> Tensor:
        """``[N, 3, S, S] uint8``, all of them: on the CPU the images' own, so never write."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return self._moved(self.images.pixels)

    @cached_property
    def _labels(self) -> Tensor:
        return torch.tensor(self.images.labels, device=self.device)

    def batch(self, phase: int, step: int, resolution: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[N, 3, R, R] float32`` and labels of one step: ``[N] int64``, or each class's
        share ``[N, C] float32`` where images are mixed."""
        count = len(self.images)
        size = min(self.batch_size, count)
        per_epoch = count // size
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([self.seed, phase, epoch, 1]).permutation(count)
        rows = self._moved(order[place * size : (place + 1) * size])
        draw = np.random.default_rng([self.seed, phase, step, 2])
        pixels = self.augmentation.change(self._pixels[rows], draw, self.source.mean)
        if self.source.degradations:
            degraded = self.source.degrade(pixels.cpu().numpy(), int(draw.integers(2**31)))
            pixels = self._moved(degraded)
        classes = len(self.images.classes)
        pixels, labels = self.augmentation.mix(pixels, self._labels[rows], classes, draw)
        return self.source.normalise(pixels, resolution), labels

    def _moved(self, drawn: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(drawn).to(self.device)
