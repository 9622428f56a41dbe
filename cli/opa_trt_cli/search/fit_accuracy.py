"""``opa-trt search fit-accuracy``: measure archs of a recipe, and fit a predictor to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.builder.accuracy import FittedAccuracy


@click.command()
@click.argument("recipe")
@options.data
@options.checkpoint
@click.option(
    "--archs",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="How many to measure, 20 or more.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    help="How many held-out images (again, degraded anew, if need be); the recipe's fit.images.",
)
@click.option(
    "--out", type=options.PATH, metavar="FILE", help="Predictor; RECIPE.accuracy.safetensors."
)
@click.option(
    "--plot", type=options.PATH, metavar="FILE.png", help="Predicted against measured, held out."
)
@options.seed
@options.threads
@options.as_json
def command(
    recipe: str,
    data: Path | None,
    skip_bad_images: bool,
    checkpoint: Path | None,
    archs: int,
    images: int | None,
    out: Path | None,
    plot: Path | None,
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure archs of RECIPE's super-network and fit a predictor of their accuracy.

    \b
    opa-trt search fit-accuracy digits --archs 300 --out accuracy.safetensors

    Each arch is calibrated on training images and measured on images held out from training,
    never on the test images. A fifth of the archs judge the predictor. Pairs are kept in
    FILE.pairs: stopped, or with more --archs, the same command goes on.
    """
    import torch

    from opa_trt.builder import read_recipe
    from opa_trt.builder.accuracy import AccuracySettings, fit_accuracy
    from opa_trt.builder.outputs import check_output
    from opa_trt.evaluate.picture import require_matplotlib
    from opa_trt_cli.console import StageLines, resumable

    if plot is not None:
        require_matplotlib()
        check_output(plot)
    found = read_recipe(recipe)
    if checkpoint is not None:
        found = found.with_checkpoint(checkpoint)
    if threads is not None:
        torch.set_num_threads(threads)
    place = out or Path(f"{found.name}.accuracy.safetensors")
    settings = AccuracySettings(archs, images or 0, seed)
    with (
        resumable("The same command goes on after the last measured arch."),
        StageLines(quiet=as_json) as lines,
    ):
        fitted = fit_accuracy(
            found, place, data, settings, skip_bad_images=skip_bad_images, progress=lines
        )
    if plot is not None:
        _draw(plot, fitted)
    _tell(fitted, place, plot, as_json)


def _draw(plot: Path, fitted: FittedAccuracy) -> None:
    from opa_trt.evaluate.scatter import draw_scatter

    facts = fitted.predictor.facts
    scores = facts["predictor"]
    note = f"RMSE {_points(scores['rmse'])}\nR² {_number(scores['r2'])}"
    note += f"\nKendall's tau {_number(scores['tau'])}"
    title = f"{facts['recipe']}: {len(fitted.measured)} archs that the fit did not see"
    draw_scatter(plot, fitted.measured, fitted.predicted, fitted.macs, title=title, note=note)


def _tell(fitted: FittedAccuracy, place: Path, plot: Path | None, as_json: bool) -> None:
    from opa_trt.builder.accuracy import PAIRS
    from opa_trt_cli.console import say, say_json, say_table

    facts = dict(fitted.predictor.facts)
    if as_json:
        files: dict[str, str | None] = {"predictor": str(place), "pairs": f"{place}{PAIRS}"}
        files["plot"] = str(plot) if plot else None
        say_json({"files": files, "seconds_per_arch": fitted.seconds, **facts})
        return
    columns = [(f"{len(fitted.measured)} archs held out", "left"), ("RMSE", "right")]
    columns += [("R²", "right"), ("Kendall's tau", "right")]
    rows = {"predictor": "predictor", "mean_alone": "the mean", "macs_alone": "MACs alone"}
    say()
    say_table(columns, [_row(label, facts[key]) for key, label in rows.items()])
    size = f"{place}, {place.stat().st_size / 1e6:.2f} MB"
    say(f"\n{size}; more --archs go on from {place.name}{PAIRS}" + (f"; {plot}" if plot else ""))
    targets = ",".join(f"{fitted.macs.max() * share / 1e6:.2g}M" for share in (0.25, 0.5, 0.75))
    say(f"next: opa-trt search run --accuracy {place} --latency macs --targets {targets}")


def _row(label: str, scores: dict[str, float | None]) -> tuple[str, ...]:
    get = scores.get
    return (label, _points(get("rmse")), _number(get("r2")), _number(get("tau")))


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} points"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
