"""The strategies of "Efficient Incorporation of Multiple Latency Targets", and their control.

``cold`` searches each target alone; ``top_down`` and ``bottom_up`` go through them in order and
begin each search with the answer before. ``search.joint`` is ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from opa_trt.search.answers import Answer, Budget, answer
from opa_trt.search.breeder import Breeder, Settings
from opa_trt.search.evolution import evolve
from opa_trt.search.problem import Problem
from opa_trt.supernet import Population


def cold(
    problem: Problem,
    targets: Sequence[float],
    budget: Budget,
    settings: Settings,
    rng: np.random.Generator,
) -> list[Answer]:
    """Every target alone, from random archs, with ``budget.first`` generations."""
    problem.check(targets)
    return [_search(problem, target, budget.first, settings, rng)[0] for target in targets]


def cold_equal_budget(
    problem: Problem,
    targets: Sequence[float],
    budget: Budget,
    settings: Settings,
    rng: np.random.Generator,
) -> list[Answer]:
    """The control: every target alone, all together with the generations of a warm search."""
    problem.check(targets)
    share = budget.total(len(targets)) // len(targets)
    return cold(problem, targets, Budget(share, share), settings, rng)


def top_down(
    problem: Problem,
    targets: Sequence[float],
    budget: Budget,
    settings: Settings,
    rng: np.random.Generator,
) -> list[Answer]:
    """From the largest target down, each search warm-started with the answer before, pruned."""

    def warm(row: Population, target: float) -> Population:
        return prune(problem, row, target, rng)

    return _chain(problem, sorted(set(targets), reverse=True), warm, budget, settings, rng, targets)


def bottom_up(
    problem: Problem,
    targets: Sequence[float],
    budget: Budget,
    settings: Settings,
    rng: np.random.Generator,
) -> list[Answer]:
    """From the smallest target up, each search warm-started with the answer before."""

    def warm(row: Population, target: float) -> Population:
        return row

    return _chain(problem, sorted(set(targets)), warm, budget, settings, rng, targets)


def _chain(
    problem: Problem,
    ordered: Sequence[float],
    warm: Callable[[Population, float], Population],
    budget: Budget,
    settings: Settings,
    rng: np.random.Generator,
    targets: Sequence[float],
) -> list[Answer]:
    """``ordered`` holds every one of ``targets`` once, in the order that they are searched."""
    problem.check(targets)
    answers: dict[float, Answer] = {}
    row: Population | None = None
    for target in ordered:
        begun = None if row is None else warm(row, target)[None]
        generations = budget.first if row is None else budget.further
        answers[target], row = _search(problem, target, generations, settings, rng, begun)
    return [answers[target] for target in targets]


def _search(
    problem: Problem,
    target: float,
    generations: int,
    settings: Settings,
    rng: np.random.Generator,
    warm: Population | None = None,
) -> tuple[Answer, Population]:
    begun = time.perf_counter()
    breeder = Breeder(problem, settings, rng)
    pool = evolve(breeder, target, generations, warm)
    seconds = time.perf_counter() - begun
    return answer(problem.genome, target, pool, seconds, breeder.evaluated), pool.rows[0]


def prune(problem: Problem, row: Population, target: float, rng: np.random.Generator) -> Population:
    """A copy of ``row`` (``[G]``) in which random genes step down until it meets ``target``."""
    row = row.copy()
    while problem.cost(row[None])[0] > target:
        shrinkable = np.flatnonzero((row > 0) & problem.genome.active(row[None])[0])
        if not len(shrinkable):
            return problem.cost.smallest[1].copy()
        row[rng.choice(shrinkable)] -= 1
    return row
