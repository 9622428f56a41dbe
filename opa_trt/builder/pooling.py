"""Pools of images drawn anew from a split: for the exit head, for choosing, for fitting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.builder.recipe import Recipe
from opa_trt.builder.sources import source_of
from opa_trt.training.batches import Source
from opa_trt.training.data import Images, Splits
from opa_trt.training.degrade import degrade

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
SEVERITIES = (1, 2, 3)
BATCH = 200


def conditions(source: Source) -> list[tuple[str, int]]:
    """Every kind of content that the source's degradations make: clean, and family × severity."""
    return [("clean", 0), *((f, s) for f in source.degradations for s in SEVERITIES)]


def draw(images: Images, source: Source, count: int, seed: int) -> tuple[Pixels, Ints, Ints]:
    """About ``count`` images: as many of each condition, drawn with a seed.

    Returns:
        Pixels ``[N, 3, S, S] uint8``, labels ``[N] int64`` and conditions ``[N] int64``. Without
        degradations the condition is the class, and each image is drawn at most once.
    """
    rng = np.random.default_rng([seed, 41])
    if not source.degradations:
        rows = rng.permutation(len(images))[:count]
        labels = images.labels[rows]
        return images.pixels[rows], labels, labels.copy()
    kinds = conditions(source)
    each = max(1, count // len(kinds))
    pixels: list[Pixels] = []
    chosen: list[Ints] = []
    kind: list[Ints] = []
    for index, (family, severity) in enumerate(kinds):
        part = rng.choice(len(images), size=each, replace=each > len(images))
        pixels.append(degrade(images.pixels[part], family, severity, seed + index))
        chosen.append(part)
        kind.append(np.full(each, index))
    return np.concatenate(pixels), images.labels[np.concatenate(chosen)], np.concatenate(kind)


def head_images(images: Images, source: Source, recipe: Recipe) -> tuple[list[Pixels], Tensor]:
    """What the exit head learns from: batches of pixels, and all labels ``[N] int64``."""
    rng = np.random.default_rng([recipe.seed, 42])
    count = (
        recipe.pioneer.images if source.degradations else min(recipe.pioneer.images, len(images))
    )
    rows = np.concatenate([rng.permutation(len(images)) for _ in range(-(-count // len(images)))])[
        :count
    ]
    pixels = source.degrade(images.pixels[rows], recipe.seed + 43)
    return list(_parts(pixels)), torch.from_numpy(images.labels[rows])


def as_input(pixels: Pixels, floats: bool) -> Tensor:
    """Pixels as a bundle's images: uint8, or float32 0 to 1."""
    tensor = torch.from_numpy(pixels)
    return tensor.float() / 255 if floats else tensor


def _parts(pixels: Pixels) -> Iterator[Pixels]:
    for start in range(0, len(pixels), BATCH):
        yield pixels[start : start + BATCH]


@dataclass(frozen=True)
class Pools:
    """What is drawn from a recipe's images, at any resolution."""

    recipe: Recipe
    splits: Splits

    @cached_property
    def source(self) -> Source:
        """How images become inputs."""
        return source_of(self.recipe)

    @cached_property
    def choosing(self) -> Images:
        """The images that tails are chosen on: one half of those held out from training."""
        return self.splits.fit.select(np.arange(0, len(self.splits.fit), 2))

    @cached_property
    def fitting(self) -> Images:
        """The images that predictors are fitted on: the other half."""
        return self.splits.fit.select(np.arange(1, len(self.splits.fit), 2))

    def calibration(self, side: int, limit: int) -> list[Tensor]:
        """At most ``limit`` normalised training inputs, in calibration batches."""
        batch, seed = self.recipe.calibrate.batch, self.recipe.seed
        return list(self.source.inputs(self.splits.train, limit, batch, side, seed))

    @cached_property
    def choosing_pool(self) -> tuple[Pixels, Ints, Ints]:
        """Pixels, labels and conditions that candidates are compared on."""
        return draw(self.choosing, self.source, self.recipe.tails.images, self.recipe.seed)

    def choosing_inputs(self, side: int) -> tuple[list[Tensor], Tensor]:
        """Inputs (in batches) and labels that candidates are compared on."""
        pixels, labels, _ = self.choosing_pool
        parts = torch.split(torch.from_numpy(pixels), self.recipe.calibrate.batch)
        inputs = [self.source.tensor(part.numpy(), side) for part in parts]
        return inputs, torch.from_numpy(labels)

    def example(self) -> Tensor:
        """Two images as a bundle takes them."""
        return as_input(self.splits.train.pixels[:2].copy(), self.recipe.data.float_images)
