"""``opa-trt study``: which pioneer foretells the deep sub-networks best, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.builder.study import Study

JSON, PICTURE = "study.json", "study.png"


@click.command()
@click.argument("recipe")
@options.data
@click.option("--out", type=options.PATH, metavar="FOLDER", help="Of both files; RECIPE.study.")
@options.checkpoint
@click.option("--quick", is_flag=True, help="As few candidates as a build tries.")
@options.threads
@options.as_json
def command(
    recipe: str,
    data: Path | None,
    skip_bad_images: bool,
    out: Path | None,
    checkpoint: Path | None,
    quick: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Study which pioneer RECIPE should take, of one, two and three stages.

    \b
    opa-trt study digits --out digits.study

    Each candidate gets an exit head. It is judged by how well a line through its accuracy over
    groups of images foretells that of deep sub-networks on other groups (R²), and by its latency.
    Of those whose R² lies within the interval of the best one's, the fastest is taken: write it
    into the recipe, or stages = 0 there, and every build makes a small study of its own.
    """
    import torch

    from opa_trt.builder import read_recipe
    from opa_trt.builder.study import QUICK, StudyPlan, study_recipe
    from opa_trt.evaluate.picture import require_matplotlib
    from opa_trt_cli.console import StageLines

    require_matplotlib()
    found = read_recipe(recipe)
    if checkpoint is not None:
        found = found.with_checkpoint(checkpoint)
    if threads is not None:
        torch.set_num_threads(threads)
    place = out or Path(f"{found.name}.study")
    _check(place)
    with StageLines(quiet=as_json) as lines:
        plan = QUICK if quick else StudyPlan()
        studied = study_recipe(found, data, plan, skip_bad_images=skip_bad_images, progress=lines)
    _write(place, found.name, studied)
    _tell(place, studied, as_json)


def _check(place: Path) -> None:
    """Refuse a place that cannot hold the files, before anything is measured."""
    from opa_trt.builder.outputs import check_output

    for name in (JSON, PICTURE):
        check_output(place / name)


def _write(place: Path, name: str, studied: Study) -> None:
    import json

    from opa_trt import atomic
    from opa_trt.evaluate.study_picture import draw_study

    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"recipe": name, **studied.to_dict()}, indent=2)
    atomic.write_bytes(place / JSON, text.encode())
    draw_study(place / PICTURE, studied, title=f"{name}: {len(studied.candidates)} pioneers")


def _tell(place: Path, studied: Study, as_json: bool) -> None:
    from opa_trt_cli.console import say, say_json, say_table

    files = {"json": str(place / JSON), "picture": str(place / PICTURE)}
    if as_json:
        say_json({"files": files, **studied.to_dict()})
        return
    facts = studied.facts
    columns = [("pioneer", "left"), ("M MACs", "right"), ("ms", "right"), ("accuracy", "right")]
    columns += [("R²", "right"), ("95 %", "right"), ("", "left")]
    say()
    say_table(columns, [_row(studied, place) for place in range(len(studied.candidates))])
    others = [
        value
        for row, values in enumerate(studied.pairwise)
        for column, value in enumerate(values)
        if row != column
    ]
    say(f"\nms: {facts['latency']}; {facts['batch']} images, {facts['threads']} threads")
    slowest = studied.deep[-1]
    say(
        f"{len(studied.deep)} deep sub-networks foretell each other with R² {min(others):.2f} to "
        f"{max(others):.2f}; the largest takes {slowest.ms:.2f} ms"
    )
    say(f"{files['json']}, {files['picture']}")


def _row(studied: Study, place: int) -> tuple[str, ...]:
    one = studied.candidates[place]
    subject, told = one.subject, one.foretold
    return (
        str(one.shape),
        f"{subject.macs / 1e6:.2f}",
        f"{subject.ms:.2f}",
        f"{subject.accuracy:.1%}",
        f"{told.r2:.2f}",
        f"{told.low:.2f} to {told.high:.2f}",
        "← taken" if place == studied.chosen else "",
    )
