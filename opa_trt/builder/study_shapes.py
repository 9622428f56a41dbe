"""Which pioneers a study tries: shapes of one stage, of two, … out of all that a space has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from opa_trt.builder.entries import Shape
from opa_trt.builder.recipe import Recipe
from opa_trt.errors import ArchError, RecipeError
from opa_trt.supernet import Arch, Space


def draw_shapes(space: Space, recipe: Recipe, counts: Sequence[int], side: int) -> list[Shape]:
    """At most as many shapes of one stage, of two, … as ``counts`` says, drawn with the recipe's
    seed: the smallest and the largest, and the recipe's own, are among them. By MACs in each.

    Raises:
        RecipeError: no number of stages leaves room for the exits that the recipe asks for.
    """
    draw, made = np.random.default_rng([recipe.seed, 61]), list[Shape]()
    own = Shape.of(recipe.pioneer) if recipe.pioneer.stages else None
    for stages, count in enumerate(counts[: most_stages(space, recipe)], 1):
        every = _shapes(space, stages, side)
        inner = draw.permutation(range(1, len(every) - 1))[: max(0, count - 2)]
        places = sorted({0, len(every) - 1, *inner.tolist()}) if count > 1 else [len(every) - 1]
        found = [every[place] for place in places]
        if own is not None and own.stages == stages:
            archs = {shape.arch(space, side) for shape in found}
            found += [own] if own.arch(space, side) not in archs else []
        made += sorted(found, key=lambda shape: _trunk_macs(space, shape, side))
    return made


def most_stages(space: Space, recipe: Recipe) -> int:
    """The stages that a pioneer may have, so that as many exits follow as the recipe asks for.

    Raises:
        RecipeError: none.
    """
    total, exits = len(space.slots), recipe.baselines.branchynet
    if (most := min(total - 1, total + 2 - exits)) < 1:
        message = f"baselines.branchynet = {exits}, in a space of {total} stages."
        raise RecipeError(message, expected=f"at most {total + 1}.")
    return most


def _shapes(space: Space, stages: int, side: int) -> list[Shape]:
    """Every shape of so many stages, those that are the same network once, by MACs."""
    options = space.depth_options[space.stem_depths :][:stages]
    depths = sorted({depth for each in options for depth in each})
    kernels = space.kernel_choices or (1,)
    ways = product(depths, kernels, space.expand_choices)
    every: dict[Arch, Shape] = {}
    for depth, kernel, expand in ways:
        shape = Shape(stages, depth, kernel, float(expand))
        try:
            every.setdefault(shape.arch(space, side), shape)
        except ArchError:  # one of its stages is never so shallow
            continue
    return sorted(every.values(), key=lambda shape: _trunk_macs(space, shape, side))


def _trunk_macs(space: Space, shape: Shape, side: int) -> int:
    costs = list(space.costs(shape.arch(space, side)).values())
    return sum(cost.macs for cost in costs[: shape.stages + 1])
