"""``opa-trt train``: a recipe's super-network, by progressive shrinking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from opa_trt_cli import options


@click.command()
@click.argument("recipe")
@options.data
@click.option("--out", type=options.PATH, metavar="FILE", help="Weights; RECIPE.safetensors.")
@click.option(
    "--steps",
    type=click.IntRange(min=6),
    help="So many steps in all, shared out between the phases as the recipe does.",
)
@click.option(
    "--legacy",
    is_flag=True,
    help="Of a recipe with [legacy]: that network, not its shallow phases.",
)
@click.option(
    "--start-from",
    type=options.PATH,
    metavar="FILE",
    help="Weights of the full network: the elastic phases begin with them.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where the steps are computed.",
)
@options.legacy_weights
@options.threads
@options.as_json
def command(
    recipe: str,
    data: Path | None,
    skip_bad_images: bool,
    out: Path | None,
    steps: int | None,
    legacy: bool,
    start_from: Path | None,
    device: str,
    legacy_weights: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train the super-network of RECIPE (a TOML file, or the name of a shipped one), or of one
    with [legacy] the shallow phases.

    \b
    opa-trt train cifar10 --data cifar10/ --out cifar10.safetensors

    The state is kept in FILE.training after every few steps: stopped, the same command goes on.
    """
    import torch

    from opa_trt.builder import read_recipe
    from opa_trt_cli.console import StageLines, resumable, say, say_json

    found = read_recipe(recipe)
    if legacy_weights is not None:
        found = found.with_legacy_weights(legacy_weights)
    train = _trainer(found, legacy, start_from)
    if steps is not None:
        found = _in_steps(found, legacy, steps)
    if threads is not None:
        torch.set_num_threads(threads)
    place = out or Path(f"{found.name}.safetensors")
    with (
        resumable("The same command goes on from the last saved step."),
        StageLines(quiet=as_json) as lines,
    ):
        log = train(
            found, place, data, skip_bad_images=skip_bad_images, device=device, progress=lines
        )
    if as_json:
        say_json({"weights": str(place), "bytes": place.stat().st_size, "log": log})
    else:
        say(f"{place}, {place.stat().st_size / 1e6:.2f} MB")


def _trainer(recipe: Any, legacy: bool, start_from: Path | None) -> Callable[..., Any]:
    """What trains the network that is asked for.

    Raises:
        ConfigError: the recipe is of another kind of network.
    """
    from opa_trt.builder import training
    from opa_trt.errors import ConfigError

    if legacy and not recipe.is_legacy:
        message = f"--legacy for recipe {recipe.name}, which has no [legacy]."
        raise ConfigError(message, expected="a recipe of a legacy network.")
    if start_from is not None and recipe.is_legacy:
        message = f"--start-from for recipe {recipe.name}, which is of a legacy network."
        raise ConfigError(message, expected="legacy.weights in the recipe.")
    if recipe.is_legacy:
        return training.train_legacy if legacy else training.train_shallow
    return partial(training.train_recipe, start_from=start_from)


def _in_steps(recipe: Any, legacy: bool, steps: int) -> Any:
    """The recipe with so many steps in all."""
    if not recipe.is_legacy:
        plan = replace(recipe.training, steps=recipe.training.steps.scaled(steps))
    elif legacy:
        plan = replace(recipe.training, steps=replace(recipe.training.steps, full=steps))
    else:
        return replace(recipe, leaf=recipe.leaf.scaled(steps))
    return replace(recipe, training=plan)
