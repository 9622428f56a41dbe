"""``opa-trt train``: a recipe's super-network, by progressive shrinking."""

from __future__ import annotations

from pathlib import Path

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
@options.threads
@options.as_json
def command(
    recipe: str,
    data: Path | None,
    skip_bad_images: bool,
    out: Path | None,
    steps: int | None,
    start_from: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train the super-network of RECIPE (a TOML file, or the name of a shipped one).

    \b
    opa-trt train cifar10 --data cifar10/ --out cifar10.safetensors

    The state is kept in FILE.training after every few steps: stopped, the same command goes on.
    """
    from dataclasses import replace

    import torch

    from opa_trt.builder import read_recipe
    from opa_trt.builder.training import train_recipe
    from opa_trt_cli.console import StageLines, resumable, say, say_json

    found = read_recipe(recipe)
    if steps is not None:
        plan = replace(found.training, steps=found.training.steps.scaled(steps))
        found = replace(found, training=plan)
    if threads is not None:
        torch.set_num_threads(threads)
    place = out or Path(f"{found.name}.safetensors")
    with (
        resumable("The same command goes on from the last saved step."),
        StageLines(quiet=as_json) as lines,
    ):
        log = train_recipe(
            found,
            place,
            data,
            skip_bad_images=skip_bad_images,
            start_from=start_from,
            device=device,
            progress=lines,
        )
    if as_json:
        say_json({"weights": str(place), "bytes": place.stat().st_size, "log": log})
    else:
        say(f"{place}, {place.stat().st_size / 1e6:.2f} MB")
