"""What policies know, learned from what every node answered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from opa_trt.builder.branches import Branch
from opa_trt.builder.fit import (
    Floats,
    Groups,
    Records,
    draw_groups,
    fit_estimator,
    fit_predictor,
    fit_rightness,
    report,
)
from opa_trt.builder.parts import Parts
from opa_trt.builder.rightness_report import report_rightness
from opa_trt.builder.work import Finding
from opa_trt.policies import Estimator, Knowledge, Predictor, Rightness
from opa_trt.policies.evidence import evenly, evidence

LEAST_HELD_OUT_GROUPS = 50
TYPICAL = 256  # images


@dataclass(frozen=True)
class Lesson:
    """One entry: what its nodes answered, and what that says of its pioneer's logits."""

    parts: Parts
    branch: Branch

    @property
    def pioneer(self) -> str:
        """The entry's name."""
        return self.branch.entry.name

    @cached_property
    def codes(self) -> Floats:
        """``[T, E]`` of the answers below it."""
        return np.array([node.code for node in self.branch.ends], dtype=np.float32)

    @cached_property
    def fitting(self) -> Records:
        """On the images that are fitted on."""
        return self._records("fit")

    @cached_property
    def held_out(self) -> Records:
        """On those that nothing is fitted on."""
        return self._records("test")

    @cached_property
    def estimator(self) -> Estimator:
        """Of the pioneer's accuracy."""
        return fit_estimator(self.fitting, self.pioneer)

    @cached_property
    def rightness(self) -> Rightness:
        """How likely each node is right on an image."""
        return fit_rightness(self.fitting, self.pioneer, seed=self.parts.recipe.seed)

    @cached_property
    def typical(self) -> Floats:
        """``[K, F]`` evidence of images that are fitted on, evenly from least sure to surest."""
        found = evidence(self.fitting.logits)
        count = min(TYPICAL, len(found))
        return found[np.argsort(found[:, 0], kind="stable")[evenly(len(found), count)]]

    def groups(self, records: Records, count: int, seed: int) -> Groups:
        """The pioneer's estimated accuracy and the tails', on groups of the same rows for every
        entry."""
        size = self.parts.recipe.fit.group_size
        return draw_groups(
            records, self.branch.names, self.estimator, groups=count, size=size, seed=seed
        )

    def report(self, predictor: Predictor, count: int, seed: int) -> dict[str, Any]:
        """Held-out figures."""
        groups = self.groups(self.held_out, count, seed)
        facts = report(self.estimator, predictor, self.held_out, groups, self.codes, self.pioneer)
        trusted = report_rightness(self.rightness, self.fitting, self.held_out, self.branch.macs)
        return facts | {"rightness": trusted}

    def _records(self, part: str) -> Records:
        arrays = self.parts.found["measure"].arrays
        return Records(
            arrays[f"{part}/logits/{self.pioneer}"],
            {name: arrays[f"{part}/right/{name}"] for name in (self.pioneer, *self.branch.names)},
            arrays[f"{part}/condition"],
        )


def fit(parts: Parts) -> Finding:
    """Every entry's estimator and models of rightness, one predictor for all, and how well they
    do on images that nothing was fitted on."""
    wanted, seed = parts.recipe.fit, parts.recipe.seed
    lessons = [Lesson(parts, branch) for branch in parts.branches]
    predictor = fit_predictor(
        [(one.groups(one.fitting, wanted.groups, seed), one.codes) for one in lessons], seed=seed
    )
    count = max(LEAST_HELD_OUT_GROUPS, wanted.groups // 4)
    entries = {one.pioneer: one.report(predictor, count, seed + 1) for one in lessons}
    facts = _together([*entries.values()])
    knowledge = Knowledge(
        {one.pioneer: one.estimator for one in lessons},
        predictor,
        {},
        {one.pioneer: one.rightness for one in lessons},
        typical={one.pioneer: one.typical for one in lessons},
    )
    return Finding(_line(facts, len(lessons)), {**facts, "entries": entries}, knowledge.to_arrays())


def _together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Every figure's mean over the entries, and what is by tail for all tails."""
    found: dict[str, Any] = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows]
        if key == "rightness":
            found[key] = _together(values)
        elif isinstance(first, dict):
            found[key] = {name: each for by_tail in values for name, each in by_tail.items()}
        else:
            found[key] = float(np.mean(values))
    return found


def _line(facts: dict[str, Any], entries: int) -> str:
    trusted = facts["rightness"]
    over = f" (mean of {entries} pioneers)" if entries > 1 else ""
    return (
        f"held out{over}: estimator {facts['judgement']:.1%} right "
        f"(always the commoner: {facts['judgement_base']:.1%}), "
        f"predictor RMSE {facts['rmse']:.3f}, R² {facts['r2']:.2f}, "
        f"an image's rightness log loss {trusted['log_loss']:.3f} "
        f"(always the rate: {trusted['log_loss_base']:.3f}), {100 * trusted['gain']:+.1f} points "
        "image by image at equal MACs"
    )
