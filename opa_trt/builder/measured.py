"""Archs of a recipe's super-network, drawn and measured: what an accuracy predictor learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from opa_trt import __version__
from opa_trt.builder.accuracy_pairs import (
    CALIBRATION_IMAGES,
    held_out_images,
    measure_pairs,
    run_facts,
)
from opa_trt.builder.pairs_file import Pair, PairsFile
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.sources import load_splits, source_of
from opa_trt.progress import Progress
from opa_trt.supernet import Genome, Population, Supernet, load
from opa_trt.training.data import Splits

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measured:
    """Archs ``[P, G]`` of ``genome``, their pairs in the same order, and what both depend on."""

    genome: Genome
    population: Population
    pairs: list[Pair]
    facts: Mapping[str, Any]

    @property
    def accuracy(self) -> Values:
        """``[P]``, 0 to 1."""
        return np.array([pair.accuracy for pair in self.pairs])

    @property
    def seconds(self) -> float:
        """That an arch took, the median."""
        return float(np.median([pair.seconds for pair in self.pairs]))

    def line(self, wanted: int) -> str:
        """How many archs, how accurate, how long each took."""
        accuracy, count = 100 * self.accuracy, len(self.pairs)
        archs = f"{count:,} archs" if count >= wanted else f"all {count:,} archs of the space"
        spread = f"{accuracy.min():.1f} to {accuracy.max():.1f} %"
        images = f"on {self.facts['images']:,} images each"
        return f"{archs} {images}, {spread}, deviation {accuracy.std():.2f}, {self.seconds:.2f} s"


@dataclass(frozen=True)
class Weights:
    """A recipe's super-network in evaluation mode, and the sha256 of its file."""

    supernet: Supernet
    sha256: str


def read_weights(recipe: Recipe) -> Weights:
    """The weights that ``recipe`` names.

    Raises:
        CheckpointError: none are named, or they are missing, damaged or of another space.
    """
    path = recipe.named_checkpoint()
    supernet = load(path, expected=recipe.make_space())
    return Weights(supernet, hashlib.sha256(path.read_bytes()).hexdigest())


def read_splits(
    recipe: Recipe, data: Path | None, skip_bad_images: bool, progress: Progress
) -> Splits:
    """The recipe's images, checked against its space; told as the stage ``data``.

    Raises:
        DataError: no folder where one is needed, or one that cannot be used.
        RecipeError: another number of classes.
    """
    progress.start("data")
    splits = load_splits(recipe, data, skip_bad_images=skip_bad_images, progress=progress)
    recipe.make_space(len(splits.train.classes))
    counts = f"{len(splits.train):,} images for calibration, {len(splits.fit):,} held out"
    progress.finish("data", counts)
    return splits


def measure(
    recipe: Recipe,
    weights: Weights,
    splits: Splits,
    population: Population,
    place: Path,
    *,
    wanted: int,
    images: int,
    seed: int,
    progress: Progress,
) -> Measured:
    """Measure the archs of ``population``, or read from ``place`` what was measured before.

    Args:
        recipe: how images become inputs.
        weights: of the archs.
        splits: calibrated on ``train``, measured on ``fit``.
        population: ``[P, G]`` of the weights' space.
        place: of the pairs.
        wanted: how many archs were asked for.
        images: how many held-out images each is measured on.
        seed: of their order.
        progress: hears of the stage ``measure``.
    """
    source, genome = source_of(recipe), weights.supernet.space.genome
    drawn = held_out_images(splits.fit, source, images, seed)
    run = run_facts(weights.supernet, weights.sha256, source, splits, len(drawn), seed)
    archs = [genome.arch(row) for row in population]
    progress.start("measure", len(archs))
    pairs = measure_pairs(
        weights.supernet, archs, source, splits.train, drawn, PairsFile(place, run), progress
    )
    facts = {
        "recipe": recipe.name,
        "weights": weights.sha256,
        "seed": seed,
        "archs": len(archs),
        "images": len(drawn),
        "images_held_out": len(splits.fit),
        "calibration_images": CALIBRATION_IMAGES,
        "opa_trt": __version__,
        "torch": torch.__version__,
    }
    measured = Measured(genome, population, pairs, facts)
    progress.finish("measure", measured.line(wanted))
    return measured
