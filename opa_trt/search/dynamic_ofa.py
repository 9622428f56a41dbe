"""Dynamic-OFA's family of archs: random search, refinement, Pareto front, one-percent steps.

Its levels are what a run-time manager switches between (Dynamic-OFA, sections 3.2 and 3.3).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from opa_trt.errors import ConfigError
from opa_trt.search import pareto
from opa_trt.search.answers import Answer, Budget, answer
from opa_trt.search.breeder import Breeder, Settings
from opa_trt.search.evolution import evolve
from opa_trt.search.pool import Pool
from opa_trt.search.problem import Problem


@dataclass(frozen=True)
class RandomSearch:
    """The constants of Algorithm 1.

    Args:
        patience: draws at one latency ceiling before it is relaxed (``itr_n``).
        relaxations: how many equal steps lead from the first ceiling to the last (``Lat_add``).
        step: accuracy (0 to 1) that each level must gain on the one before; the paper's 0.01.
        highest: no arch above this accuracy is taken (``Acc_max``).
    """

    patience: int = 500
    relaxations: int = 8
    step: float = 0.01
    highest: float = 1.0

    def __post_init__(self) -> None:
        if min(self.patience, self.relaxations) < 1 or not 0 <= self.step < 1:
            message = f"a random search with {self}."
            raise ConfigError(message, expected="1 draw, 1 relaxation or more, a step below 1.")


def random_search(
    breeder: Breeder, floor: float, first: float, last: float, constants: RandomSearch
) -> Pool:
    """Algorithm 1: random archs above the accuracy ``floor``, under a ceiling that relaxes.

    The ceiling begins at ``first`` and relaxes only after ``patience`` draws without success, at
    most to ``last``; accuracies lie in ``(floor, highest]``. (As printed it relaxes before the
    first draw, and the upper bound is never tested.) All that qualify at one ceiling are taken,
    and none is drawn again: an empty pool says that the last ceiling gave nothing either.
    """
    problem = breeder.problem
    for ceiling in np.linspace(first, last, constants.relaxations + 1):
        rows = problem.genome.sample(constants.patience, breeder.rng)
        pool = breeder.judge(rows[problem.cost(rows) < ceiling])
        good = (pool.accuracy > floor) & (pool.accuracy <= constants.highest)
        if good.any():
            break
    return pool.take(np.flatnonzero(good))


def dynamic_ofa(
    problem: Problem,
    targets: Sequence[float],
    budget: Budget,
    settings: Settings,
    rng: np.random.Generator,
    constants: RandomSearch | None = None,
) -> list[Answer]:
    """For each target the level that Dynamic-OFA's look-up table holds for it.

    Targets are taken in ascending order as ceilings of the latency. For each, Algorithm 1 looks
    for archs that gain a step on the level before, evolution refines them, and what is found is
    kept on the Pareto front and thinned to accuracy steps. A target that gains no step is served
    by the level below it, so that several targets may share one.
    """
    constants = constants or RandomSearch()
    problem.check(targets)
    begun, evaluated = time.perf_counter(), 0
    found: list[Pool] = []
    floor, before = -np.inf, problem.cost.smallest[0]
    for target in sorted(targets):
        scout, breeder = (Breeder(problem, settings, rng) for _ in range(2))
        parents = random_search(scout, floor, before, target, constants)
        generations = budget.further if found else budget.first
        best = evolve(breeder, target, generations, parents.rows).best(1)
        evaluated += scout.evaluated + breeder.evaluated
        found.append(best)
        floor, before = max(floor, float(best.accuracy[0]) + constants.step), target
    levels = _levels(found, constants.step)
    seconds = (time.perf_counter() - begun) / len(targets)
    share = evaluated // len(targets)
    return [
        answer(problem.genome, target, levels.meeting(target).best(1), seconds, share)
        for target in targets
    ]


def _levels(found: Sequence[Pool], step: float) -> Pool:
    """The Pareto front of what was found, in accuracy steps.

    The cheapest takes the place of the lowest: every target that was searched needs a level.
    """
    every = reduce(add, found)
    front = every.take(pareto.front(every.cost, every.accuracy))
    kept = pareto.steps(front.accuracy, step)
    kept[0] = 0
    return front.take(kept)
