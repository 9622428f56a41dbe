"""Which pioneer foretells the deep sub-networks, and what it costs (OPA, Fig. 3 and Table II).

    python benchmarks/pioneers.py cifar10 --data DIR --out docs/results/pioneers.md

The study of ``opa-trt study`` as a page. The peers of a pioneer are the deep sub-networks
themselves: how well they foretell each other, and how long they take.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from alternating import (
    bracketed,
    finish,
    name_of,
    options,
    pictures_of,
    remarks,
    table,
    use_threads,
)
from bundles import Lines, chosen_recipe, data_option, with_recipe
from measuring import describe

from opa_trt.builder.entries import Shape
from opa_trt.builder.study import QUICK, StudyPlan, study_recipe
from opa_trt.evaluate.compare_page import words
from opa_trt.evaluate.study_picture import draw_study

PICTURE = "study.png"


def main() -> None:
    """Study, draw, write the page."""
    chosen = with_recipe(options(__doc__ or "")).parse_args()
    use_threads(chosen.threads)
    recipe = chosen_recipe(chosen)
    plan = QUICK if chosen.quick else StudyPlan()
    studied = study_recipe(recipe, chosen.data, plan, progress=Lines())
    if chosen.out is not None:
        title = f"{recipe.name}: {len(studied.candidates)} pioneers"
        draw_study(pictures_of(chosen.out) / PICTURE, studied, title=title)
    report = {"benchmark": "pioneers", "recipe": recipe.name, **studied.to_dict(), "met": None}
    report["own"] = None if not recipe.pioneer.stages else str(Shape.of(recipe.pioneer))
    report["names"] = [str(one.shape) for one in studied.candidates]
    report["reading"] = remarks(chosen.out)
    report["folder"] = name_of(chosen.out, "pioneers")
    finish(report, page, chosen, ())


PAGE = """# Which pioneer foretells the deep sub-networks: {recipe}

`python benchmarks/pioneers.py {recipe}{options} --out docs/results/{folder}.md`, on {machine},
{threads} threads.

{reading}Candidates of one, two and three stages, each with an exit head of its own, and {deep} deep
sub-networks are right or wrong on {images} images that the networks were not trained on. R² is that
of lines through a candidate's accuracy over groups of {group_size} images, fitted to three quarters
of {groups} groups and judged on the others, in the mean over the deep sub-networks; brackets hold
95 % bootstrap intervals over the judging groups. Groups share images. ms: {latency}; {batch} images
at {resolution} px, {threads} threads. Of the candidates whose R² lies within the interval of the
best one's the fastest is taken; `pioneer.stages = 0` lets a build do so.

![R² over latency of every candidate, and R² between the deep sub-networks]({folder}/{picture})

## By number of stages

{stages}

## The deep sub-networks as pioneers of each other

R² of each of the others, in the mean (Table II). The paper's ten lie between 0.61 and 0.71; its
pioneer of two stages has 0.69 at half their latency. Correlations of accuracies over all groups
(Fig. 3b) go from {least_correlation} to {most_correlation}; the paper's are above 0.7.

{deep_table}

## Every candidate

{candidates}
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    correlation = _others(np.array(report["correlation"]))
    return PAGE.format(
        **{key: report[key] for key in SAME},
        options=data_option(report["recipe"]),
        machine=describe(report["machine"]),
        deep=len(report["deep"]),
        picture=PICTURE,
        stages=_by_stages(report),
        deep_table=_deep(report),
        least_correlation=f"{correlation.min():.2f}",
        most_correlation=f"{correlation.max():.2f}",
        candidates=_candidates(report),
    )


SAME = ("recipe", "folder", "threads", "reading", "images", "group_size", "groups", "latency",
        "batch", "resolution")  # fmt: skip


def _by_stages(report: dict[str, Any]) -> str:
    """The ends of what candidates of so many stages reach, and the best of them."""
    head = ("stages", "candidates", "ms", "right", "R²", "the best R²", "its ms")
    rows = []
    for stages in sorted({one["stages"] for one in report["candidates"]}):
        own = [one for one in report["candidates"] if one["stages"] == stages]
        best = max(own, key=lambda one: one["r2"])
        rows.append(
            (
                str(stages),
                str(len(own)),
                _ends([one["ms"] for one in own], words.ms),
                _ends([one["accuracy"] for one in own], words.percent),
                _ends([one["r2"] for one in own], _two),
                _judged(best),
                words.ms(best["ms"]),
            )
        )
    return table(head, rows)


def _deep(report: dict[str, Any]) -> str:
    pairs = np.array(report["pairwise"])
    means = _others(pairs).mean(axis=1)
    head = ("sub-network", "M MACs", "ms", "right", "R²")
    rows = [
        (one["arch"], f"{one['macs'] / 1e6:.1f}", words.ms(one["ms"]),
         words.percent(one["accuracy"]), _two(mean))
        for one, mean in zip(report["deep"], means.tolist(), strict=True)
    ]  # fmt: skip
    return table(head, rows)


def _candidates(report: dict[str, Any]) -> str:
    head = ("pioneer", "M MACs", "ms", "right", "R²", "")
    rows = []
    for place, (one, name) in enumerate(zip(report["candidates"], report["names"], strict=True)):
        marks = ["taken"] * (place == report["chosen"]) + ["the recipe's"] * (name == report["own"])
        cells = (name, f"{one['macs'] / 1e6:.2f}", words.ms(one["ms"]))
        rows.append((*cells, words.percent(one["accuracy"]), _judged(one), ", ".join(marks)))
    return table(head, rows)


def _others(square: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``[D, D - 1]``: each row without its diagonal."""
    size = len(square)
    return square[~np.eye(size, dtype=bool)].reshape(size, size - 1)


def _judged(one: dict[str, Any]) -> str:
    return bracketed((one["r2"], one["low"], one["high"]), 2).replace("-", "−")


def _two(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _ends(values: list[float], shown: Any) -> str:
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    main()
