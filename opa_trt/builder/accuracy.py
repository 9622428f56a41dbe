"""A recipe's accuracy predictor: archs drawn, measured, and a network fitted to them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from opa_trt.builder.measured import Measured, Values, measure, read_splits, read_weights
from opa_trt.builder.outputs import check_output
from opa_trt.builder.recipe import Recipe
from opa_trt.errors import ConfigError
from opa_trt.progress import Progress
from opa_trt.search.accuracy_predictor import AccuracyPredictor
from opa_trt.search.additive import AdditiveCost
from opa_trt.search.fit import Fit, FitSettings, fit, split_pairs
from opa_trt.search.metrics import agreement, kendall, number, require_scipy
from opa_trt.search.problem import macs_of
from opa_trt.search.sampling import draw_archs

PAIRS = ".pairs"  # after the predictor's name


@dataclass(frozen=True)
class AccuracySettings:
    """What is measured and how it is fitted.

    Args:
        archs: how many to measure; all of a space that has fewer.
        images: how many held-out images each is measured on; 0 for the recipe's ``fit.images``.
        seed: of the archs, the images, the split and the fit.
        fit: the network and its training.
    """

    archs: int = 1000
    images: int = 0
    seed: int = 0
    fit: FitSettings = field(default_factory=FitSettings)


@dataclass(frozen=True, eq=False)
class FittedAccuracy:
    """A predictor, and the archs that were held out from it.

    Args:
        predictor: with its facts, as it was written.
        measured, predicted: accuracy (0 to 1) of the archs held out, ``[H]``.
        macs: theirs, ``[H]``.
        seconds: that an arch took to measure, the median.
    """

    predictor: AccuracyPredictor
    measured: Values
    predicted: Values
    macs: Values
    seconds: float


def fit_accuracy(
    recipe: Recipe,
    out: Path,
    data: Path | None = None,
    settings: AccuracySettings | None = None,
    *,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
) -> FittedAccuracy:
    """Measure archs of the recipe's super-network, fit a predictor to them and write it.

    Pairs are kept in ``OUT.pairs`` as they are measured: called again, it goes on after the
    last of them, and where more archs are wanted it measures those that are missing.

    Args:
        recipe: space, weights, images. Its test images are never measured on.
        out: the predictor; a file already there is replaced at the very end.
        data: the image folder, where the recipe reads one.
        settings: how many archs and images, the seed, the fit.
        skip_bad_images: leave out images that cannot be decoded.
        progress: hears of the stages ``data``, ``measure`` and ``fit``.

    Raises:
        OpaError: ConfigError (too few archs, a place that cannot be written), CheckpointError
            (weights, or pairs of another run), DataError, BackendUnavailable …
    """
    progress, settings = progress or Progress(), settings or AccuracySettings()
    _check(recipe, out, settings)
    weights = read_weights(recipe)
    population = draw_archs(weights.supernet.space.genome, settings.archs, settings.seed)
    split_pairs(len(population), settings.seed)
    splits = read_splits(recipe, data, skip_bad_images, progress)
    measured = measure(
        recipe,
        weights,
        splits,
        population,
        out.with_name(out.name + PAIRS),
        wanted=settings.archs,
        images=settings.images or recipe.fit.images,
        seed=settings.seed,
        progress=progress,
    )
    return _fit(measured, settings, out, progress)


def _check(recipe: Recipe, out: Path, settings: AccuracySettings) -> None:
    """Tell what cannot be done before anything is read."""
    split_pairs(settings.archs, settings.seed)
    require_scipy()
    check_output(out)
    weights = recipe.checkpoint_path()
    if weights is not None and weights.exists() and out.exists() and out.samefile(weights):
        message = f"{out} holds the weights that are to be measured."
        raise ConfigError(message, expected="another place for the predictor.")


def _fit(
    measured: Measured, settings: AccuracySettings, out: Path, progress: Progress
) -> FittedAccuracy:
    """Fit a predictor, judge it on the archs held out, and write it."""
    progress.start("fit", settings.fit.most_epochs)
    fitted = fit(
        measured.genome,
        measured.population,
        measured.accuracy,
        name=out.name,
        seed=settings.seed,
        settings=settings.fit,
        progress=progress,
    )
    split, predicted = fitted.split, fitted.predicted.astype(np.float64)
    macs = AdditiveCost(measured.genome, macs_of)(measured.population[split.held_out])
    facts = {**measured.facts, **_judged(measured.accuracy, macs, fitted)}
    predictor = replace(fitted.predictor, facts=facts)
    predictor.save(out)
    counts = f"{len(split.fitted)} archs fitted, {len(split.choosing)} chose {fitted.epochs} epochs"
    progress.finish("fit", f"{counts}, {len(split.held_out)} held out")
    truth = measured.accuracy[split.held_out]
    return FittedAccuracy(predictor, truth, predicted, macs, measured.seconds)


def _judged(accuracy: Values, macs: Values, fitted: Fit) -> dict[str, Any]:
    """The spread of accuracies, and how well predictor, mean and MACs do on the archs held out."""
    split = fitted.split
    truth = accuracy[split.held_out]
    mean = np.full(len(truth), np.delete(accuracy, split.held_out).mean())
    spread = {"least": accuracy.min(), "mean": accuracy.mean(), "greatest": accuracy.max()}
    spread["deviation"] = accuracy.std()
    pairs = {"fitted": split.fitted, "choosing": split.choosing, "held_out": split.held_out}
    return {
        "pairs": {name: len(places) for name, places in pairs.items()},
        "epochs": fitted.epochs,
        "accuracy": {name: float(value) for name, value in spread.items()},
        "predictor": agreement(fitted.predicted, truth).to_dict(),
        "mean_alone": agreement(mean, truth).to_dict(),
        "macs_alone": {"tau": number(kendall(macs, truth))},
    }
