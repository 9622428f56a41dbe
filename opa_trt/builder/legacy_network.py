"""A recipe's legacy network, with shallow alternatives for its phases."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from opa_trt.builder.recipe import SUFFIX, Recipe
from opa_trt.errors import CheckpointError, RecipeError
from opa_trt.supernet.legacy import Augmented, augment
from opa_trt.supernet.legacy.cost import measured_cost
from opa_trt.supernet.legacy.networks import is_own, load_weights, make_network, phases_of


def legacy_file(recipe: Recipe) -> Path | None:
    """The file of the legacy network's weights; None where they are torchvision's, or one's own
    function brings them."""
    weights = recipe.legacy.weights
    return recipe.folder / weights if weights.endswith(SUFFIX) else None


def untrained(recipe: Recipe, classes: int, *, weights: str | None = None) -> nn.Module:
    """The recipe's legacy network, with random weights, or those that one's own function brings.

    Args:
        recipe: of a legacy network.
        classes: what the images have.
        weights: torchvision's name of some to begin with.

    Raises:
        RecipeError: the recipe says another number of classes.
        UnknownNameError, ConfigError, BackendUnavailable: as ``make_network`` says.
    """
    wanted = recipe.legacy
    if classes != wanted.classes:
        message = f"the images have {classes} classes, [legacy] of recipe {recipe.name} says "
        message += f"{wanted.classes}."
        raise RecipeError(message, expected=f"classes = {classes}.")
    options = dict(wanted.options)
    return make_network(wanted.network, classes, seed=recipe.seed, weights=weights, **options)


def legacy_network(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's legacy network, trained.

    Raises:
        CheckpointError: no weights are named, or they are not its.
        RecipeError, UnknownNameError, ConfigError, BackendUnavailable: as ``untrained`` says.
    """
    wanted, path = recipe.legacy, legacy_file(recipe)
    named = wanted.weights if path is None else ""
    module = untrained(recipe, classes, weights=named or None)
    if path is not None:
        load_weights(module, path)
    elif not named and not is_own(wanted.network):
        message = f"recipe {recipe.name} names no weights of its legacy network."
        raise CheckpointError(
            message,
            expected=f"legacy.weights = a {SUFFIX} file, or the name of torchvision's.",
            remedy=f"opa-trt train {recipe.name} --legacy --out FILE{SUFFIX}, then "
            f"--legacy-weights FILE{SUFFIX}.",
        )
    return module


def augmented(recipe: Recipe, classes: int) -> Augmented:
    """That network with shallow phases as the recipe wants them, untrained.

    Raises:
        CheckpointError, RecipeError, UnknownNameError, BackendUnavailable: as ``legacy_network``
            says.
        ConfigError: its phases cannot be replaced; ``augment`` says why.
    """
    wanted, side = recipe.legacy, recipe.data.size
    draw = torch.Generator().manual_seed(recipe.seed)
    return augment(
        legacy_network(recipe, classes),
        phases_of(wanted.network, wanted.phases),
        ratio=wanted.ratio,
        divisor=wanted.divisor,
        seed=recipe.seed,
        example=torch.randn((2, 3, side, side), generator=draw),
    )


def legacy_macs(recipe: Recipe) -> int:
    """Of the recipe's legacy network, for one image.

    Raises:
        OpaError: as ``untrained`` says.
    """
    side = recipe.data.size
    module = untrained(recipe, recipe.legacy.classes)
    return measured_cost(module, torch.empty((1, 3, side, side), device="meta"))[0].macs
