"""One answer for each of many targets (Efficient Incorporation of Multiple Latency Targets).

``cold`` searches each target alone; ``top_down`` and ``bottom_up`` go through them in order and
begin each search with the answer before; ``joint`` is ours: one population that serves them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opa_trt.search.evolution import OVERSAMPLING, Breeder, Pool, Settings, evolve
from opa_trt.search.problem import Problem
from opa_trt.supernet import Arch, Genome, Population


@dataclass(frozen=True)
class Answer:
    """The best arch that was found for a target.

    ``latency`` is its predicted cost in the unit of ``target``, ``accuracy`` (0 to 1) predicted
    too. ``seconds`` is the time that its search took; where one search served all targets, its
    share of it. ``evaluated`` archs were judged for it (a share, too).
    """

    target: float
    latency: float
    accuracy: float
    seconds: float
    evaluated: int
    arch: Arch


@dataclass(frozen=True)
class Budget:
    """Generations for the first target, and for each further one where a search begins warm.

    The paper sets the second to the square root of the first and prints 63 for 500; its recorded
    runs used 100.
    """

    first: int = 500
    further: int = 100

    def total(self, targets: int) -> int:
        """Generations of a warm-started search of so many targets."""
        return self.first + (targets - 1) * self.further


Strategy = Callable[[Problem, Sequence[float], Budget, Settings, np.random.Generator], list[Answer]]


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
    return _answer(problem.genome, target, pool, seconds, breeder.evaluated), pool.rows[0]


def _answer(genome: Genome, target: float, pool: Pool, seconds: float, evaluated: int) -> Answer:
    """The best of ``pool`` (its first), whose archs all meet ``target``."""
    return Answer(
        target=target,
        latency=float(pool.cost[0]),
        accuracy=float(pool.accuracy[0]),
        seconds=seconds,
        evaluated=evaluated,
        arch=genome.arch(pool.rows[0]),
    )


def prune(problem: Problem, row: Population, target: float, rng: np.random.Generator) -> Population:
    """A copy of ``row`` (``[G]``) in which random genes step down until it meets ``target``."""
    row = row.copy()
    while problem.cost(row[None])[0] > target:
        shrinkable = np.flatnonzero((row > 0) & problem.genome.active(row[None])[0])
        if not len(shrinkable):
            return problem.cost.smallest[1].copy()
        row[rng.choice(shrinkable)] -= 1
    return row


# --- one population for all targets ---------------------------------------------------------------


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
        _answer(problem.genome, target, _meeting(pool, target).best(1), seconds, evaluated)
        for target in targets
    ]


def _meeting(pool: Pool, target: float) -> Pool:
    return pool.take(np.flatnonzero(pool.cost <= target))


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
