"""One population for many targets at once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from opa_trt.search.answers import Answer, Budget, answer
from opa_trt.search.breeder import OVERSAMPLING, Breeder, Settings
from opa_trt.search.pool import Pool
from opa_trt.search.problem import Problem
from opa_trt.supernet import Population


def joint(
    problem: Problem,
    targets: Sequence[float],
    budget: Budget,
    settings: Settings,
    rng: np.random.Generator,
) -> list[Answer]:
    """One population and one archive for all targets, in as many generations as a warm search.

    A generation's children are made for every target in turn, from the best archs that meet it
    and those of its neighbours, and each is judged once and serves every target that it meets.
    """
    problem.check(targets)
    begun = time.perf_counter()
    breeder = Breeder(problem, settings, rng)
    ordered = np.array(sorted(targets), dtype=np.float64)
    share = -(-settings.population // len(ordered))
    pool = breeder.random(ordered[-1], settings.population)
    for target in ordered[:-1]:
        pool += breeder.random(target, share)
    for _ in range(budget.total(len(ordered))):
        pool, elites = _serving(pool, ordered, settings.parent_count)
        children, cost = _children_for_all(breeder, pool.rows, elites, ordered)
        least = np.array([_least(pool, places, settings.parent_count) for places in elites])
        pool += breeder.judge(children, cost, least[np.searchsorted(ordered, cost)])
    seconds = (time.perf_counter() - begun) / len(ordered)
    evaluated = breeder.evaluated // len(ordered)
    return [
        answer(problem.genome, target, pool.meeting(target).best(1), seconds, evaluated)
        for target in targets
    ]


def _serving(
    pool: Pool, targets: npt.NDArray[np.float64], count: int
) -> tuple[Pool, list[npt.NDArray[np.intp]]]:
    """Those among the ``count`` best for any target, and for each target where its best are."""
    pool = pool.best(len(pool))
    best = [np.flatnonzero(pool.cost <= target)[:count] for target in targets]
    kept = np.zeros(len(pool), dtype=bool)
    for places in best:
        kept[places] = True
    moved = np.cumsum(kept) - 1
    return pool.take(np.flatnonzero(kept)), [moved[places] for places in best]


def _least(pool: Pool, elite: npt.NDArray[np.intp], count: int) -> float:
    """What an arch must reach to be among a target's ``count`` best."""
    return float(pool.accuracy[elite[-1]]) if len(elite) >= count else -np.inf


def _children_for_all(
    breeder: Breeder,
    rows: Population,
    elites: list[npt.NDArray[np.intp]],
    targets: npt.NDArray[np.float64],
) -> tuple[Population, npt.NDArray[np.float64]]:
    """A population of children, each made for one target that it meets, and what they cost.

    A mutated child comes from the best of its target, a crossed one from them and the best of the
    same or a neighbouring target.
    """
    settings, rng = breeder.settings, breeder.rng
    many = OVERSAMPLING * settings.population
    aims = np.resize(rng.permutation(len(targets)), many)
    near = np.clip(aims + rng.integers(-1, 2, many), 0, len(targets) - 1)
    counts = np.array([len(places) for places in elites])
    table = np.zeros((len(elites), counts.max()), dtype=np.intp)
    for line, places in zip(table, elites, strict=True):
        line[: len(places)] = places
    ranks = (rng.random((2, many)) * counts[[aims, near]]).astype(np.intp)
    mothers, fathers = rows[table[aims, ranks[0]]], rows[table[near, ranks[1]]]
    children = breeder.cross(mothers, fathers)
    mutated = rng.random(many) < settings.mutations
    children[mutated] = breeder.mutate(mothers[mutated])
    cost = breeder.problem.cost(children)
    kept = np.flatnonzero(cost <= targets[aims])[: settings.population]
    return children[kept], cost[kept]
