"""The stages of a build, in order: each a function from what is known to what it found."""

from __future__ import annotations

from collections.abc import Callable

from opa_trt.builder.parts import Parts
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.stages import engines, network
from opa_trt.builder.stages.fit import fit
from opa_trt.builder.stages.study import study
from opa_trt.builder.stages.tails import tails
from opa_trt.builder.work import Finding

STAGES: dict[str, Callable[[Parts], Finding]] = {
    "data": network.data,
    "supernet": network.supernet,
    "pioneer": network.pioneer,
    "tails": tails,
    "calibrate": network.calibrate_tails,
    "fold": network.fold_all,
    "trace": engines.trace_all,
    "compile": engines.compile_engines,
    "measure": engines.measure_all,
    "fit": fit,
}

STUDY = "study"


def stages_of(recipe: Recipe) -> dict[str, Callable[[Parts], Finding]]:
    """The stages of a recipe's build, in order: with a study, where it leaves the pioneer open."""
    if recipe.pioneer.stages:
        return STAGES
    first = ("data", "supernet")
    before = {name: STAGES[name] for name in first}
    return {**before, STUDY: study, **{k: v for k, v in STAGES.items() if k not in first}}
