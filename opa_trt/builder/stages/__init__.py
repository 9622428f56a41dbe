"""The stages of a build, in order: each a function from what is known to what it found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opa_trt.builder.recipe import Recipe
from opa_trt.builder.stages import engines, legacy, network
from opa_trt.builder.stages.fit import fit
from opa_trt.builder.stages.study import study
from opa_trt.builder.stages.tails import tails
from opa_trt.builder.stages.wholes import wholes
from opa_trt.builder.work import Finding

Stage = Callable[[Any], Finding]  # of the parts that its recipe's kind of network has

STAGES: dict[str, Stage] = {
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

LEGACY_STAGES: dict[str, Stage] = {
    "data": network.data,
    "network": legacy.network,
    "configurations": legacy.configurations,
    "pioneer": legacy.pioneer,
    "fold": network.fold_all,
    "trace": engines.trace_all,
    "compile": engines.compile_engines,
    "routes": legacy.routes,
    "measure": engines.measure_all,
    "fit": fit,
}

STUDY, WHOLES = "study", "wholes"


def stages_of(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recipe's build, in order: with a study, where it leaves the pioneer open,
    and with complete sub-networks, where it wants some."""
    if recipe.is_legacy:
        return LEGACY_STAGES
    found: dict[str, Stage] = {}
    for name, stage in STAGES.items():
        found[name] = stage
        if name == "supernet" and not recipe.pioneer.stages:
            found[STUDY] = study
        if name == "tails" and recipe.baselines.whole:
            found[WHOLES] = wholes
    return found
