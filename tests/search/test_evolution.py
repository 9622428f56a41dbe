"""Evolution for one target: what it judges, how it varies archs, and that it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opa_trt.errors import ConfigError
from opa_trt.search.additive import AdditiveCost
from opa_trt.search.breeder import Breeder, Settings
from opa_trt.search.evolution import evolve
from opa_trt.search.pool import Pool
from opa_trt.search.problem import Problem
from opa_trt.supernet import Genome, Population, published_space
from opa_trt.supernet.space import Space

MakeProblem = Callable[..., Problem]
SMALL = Settings(population=20)


def breeder_of(problem: Problem, settings: Settings = SMALL, seed: int = 0) -> Breeder:
    return Breeder(problem, settings, np.random.default_rng(seed))


def between(problem: Problem, share: float) -> float:
    """A target so far on the way from the smallest to the largest cost."""
    low, high = problem.cost.smallest[0], problem.cost.largest[0]
    return low + share * (high - low)


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_the_best_arch_of_a_little_space_is_found(
    tiny: Space, problem_of: MakeProblem, optimum: Any, seed: int, share: float
) -> None:
    problem = problem_of(tiny, seed)
    target = between(problem, share)
    found = evolve(breeder_of(problem, Settings(population=50), seed), target, 40)
    assert found.accuracy[0] == pytest.approx(optimum(problem, target), abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.02, 0.5, 1.0])
def test_every_answer_meets_its_target(
    tiny: Space, problem_of: MakeProblem, bumpy: Any, share: float
) -> None:
    problem = problem_of(tiny)
    problem = replace(problem, cost=AdditiveCost(problem.genome, bumpy(1), scale=1.7, offset=0.1))
    target = between(problem, share)
    found = evolve(breeder_of(problem), target, 10)
    assert (problem.cost(found.rows) <= target).all()
    assert (problem.cost(found.rows) == found.cost).all()
    np.testing.assert_allclose(problem.accuracy(found.rows), found.accuracy, atol=1e-6)


def test_parents_are_the_best_of_all_that_was_judged(problem: Problem, spy: Any) -> None:
    noted, target = spy(problem), between(problem, 0.4)
    found = evolve(breeder_of(noted.problem), target, 15)
    assert found.accuracy[0] == noted.best(target)
    assert (np.diff(found.accuracy) <= 0).all()
    assert len(found) == SMALL.parent_count == 5


def test_nothing_is_judged_twice(problem: Problem, spy: Any) -> None:
    noted = spy(problem)
    breeder = breeder_of(noted.problem)
    evolve(breeder, between(problem, 0.6), 30)
    judged = noted.judged()
    assert len(np.unique(judged, axis=0)) == len(judged) == breeder.evaluated


def test_all_archs_of_a_space_are_told_apart(
    tiny: Space, problem_of: MakeProblem, every_row: Callable[[Genome], Population]
) -> None:
    rows = every_row(tiny.genome)
    breeder = breeder_of(problem_of(tiny))
    assert len(breeder.judge(np.concatenate([rows, rows]))) == len(rows)
    assert len(breeder.judge(rows[:7])) == 0


def test_rows_that_differ_where_it_does_not_count_are_one_arch(problem: Problem) -> None:
    row = np.zeros((1, len(problem.genome)), dtype=np.int16)
    same = row.copy()
    same[0, problem.genome.columns("kernel")[1]] = 1  # a block that depth 1 leaves out
    assert len(breeder_of(problem).judge(np.concatenate([row, same]))) == 1


def test_the_first_of_equal_rows_is_judged_in_order(problem: Problem) -> None:
    rows = problem.genome.sample(30, np.random.default_rng(0))
    found = breeder_of(problem).judge(np.concatenate([rows, rows[::-1]]))
    _, first = np.unique(rows, axis=0, return_index=True)
    assert found.rows.tolist() == rows[np.sort(first)].tolist()


def test_a_seed_gives_one_answer(problem: Problem) -> None:
    target = between(problem, 0.5)
    one, same, other = (evolve(breeder_of(problem, seed=s), target, 5) for s in (3, 3, 4))
    assert (one.rows == same.rows).all()
    assert one.rows.shape != other.rows.shape or (one.rows != other.rows).any()


def test_a_warm_start_is_never_left_behind(problem: Problem, every_row: Any) -> None:
    target, rows = between(problem, 0.5), every_row(problem.genome)
    rows = rows[problem.cost(rows) <= target]
    best = rows[problem.accuracy(rows).argmax()]
    found = evolve(breeder_of(problem), target, 0, best[None])
    assert found.rows[0].tolist() == best.tolist()


def test_a_warm_start_that_misses_the_target_is_left_out(problem: Problem, every_row: Any) -> None:
    target, rows = between(problem, 0.2), every_row(problem.genome)
    warm = rows[problem.accuracy(rows).argsort()[-3:]]
    assert (problem.cost(warm) > target).any()
    found = evolve(breeder_of(problem), target, 0, warm)
    assert (found.cost <= target).all()


# --- that it ends ---------------------------------------------------------------------------------


def test_it_ends_where_only_one_arch_meets_the_target(
    tiny: Space, problem_of: MakeProblem, bumpy: Any
) -> None:
    problem = problem_of(tiny)
    problem = replace(problem, cost=AdditiveCost(problem.genome, bumpy(2), scale=0.3, offset=0.7))
    target, row = problem.cost.smallest
    found = evolve(breeder_of(problem), target, 10)
    assert found.rows.tolist() == [row.tolist()]
    assert found.cost.tolist() == [target]


def test_it_ends_where_hardly_any_arch_meets_the_target(problem: Problem, every_row: Any) -> None:
    target = float(np.sort(problem.cost(every_row(problem.genome)))[3])
    found = evolve(breeder_of(problem), target, 20)
    assert 1 <= len(found) <= 4
    assert (found.cost <= target).all()


def test_it_ends_in_a_space_of_one_arch(lonely: Space, problem_of: MakeProblem) -> None:
    problem = problem_of(lonely)
    found = evolve(breeder_of(problem), 1e12, 10)
    assert len(found) == 1
    assert problem.genome.arch(found.rows[0]) == lonely.largest()


def test_a_population_of_four_is_enough(problem: Problem) -> None:
    settings = Settings(population=4)
    found = evolve(breeder_of(problem, settings), between(problem, 0.5), 20)
    assert settings.parent_count == len(found) == 2


@pytest.mark.parametrize(
    "settings",
    [
        Settings(population=10, mutations=1.0),
        Settings(population=10, mutations=0.01),
        Settings(population=10, parents=1.0),
        Settings(population=10, mutate=1.0, mutate_resolution=1.0),
    ],
)
def test_it_ends_with_shares_at_their_ends(problem: Problem, settings: Settings) -> None:
    assert len(evolve(breeder_of(problem, settings), between(problem, 0.5), 5)) > 0


def test_random_archs_are_made_by_mutation_where_they_are_rare() -> None:
    space = replace(published_space("mobilenet_v3"), resolutions=(128, 224))
    cost = AdditiveCost(space.genome, lambda operator, _: operator.cost.macs)
    problem = Problem(space.genome, lambda rows: np.zeros(len(rows), np.float32), cost)
    target = 1.05 * cost.smallest[0]
    assert not (cost(space.genome.sample(2000, np.random.default_rng(0))) <= target).any()
    found = breeder_of(problem).random(target, 50)
    assert len(found) > 10
    assert (found.cost <= target).all()


def test_the_smallest_arch_is_among_the_random_ones(problem: Problem) -> None:
    found = breeder_of(problem).random(between(problem, 1.0), 10)
    assert problem.cost.smallest[1].tolist() in found.rows.tolist()
    assert len(found) <= 10


# --- variation ------------------------------------------------------------------------------------


def test_mutation_draws_every_choice_of_every_gene(tiny: Space, problem_of: MakeProblem) -> None:
    settings = Settings(mutate=1.0, mutate_resolution=1.0)
    genome = tiny.genome
    rows = np.zeros((3000, len(genome)), dtype=np.int16)
    found = breeder_of(problem_of(tiny), settings).mutate(rows)
    for column, count in enumerate(genome.counts.tolist()):
        shares = np.bincount(found[:, column], minlength=count) / len(found)
        assert shares.tolist() == pytest.approx([1 / count] * count, abs=0.05)


def test_mutation_draws_as_many_units_as_it_is_told(problem: Problem) -> None:
    genome = problem.genome
    rows = np.zeros((20_000, len(genome)), dtype=np.int16)
    settings = Settings(mutate=0.2, mutate_resolution=0.6)
    changed = (breeder_of(problem, settings).mutate(rows) > 0).mean(axis=0)
    assert changed[0] == pytest.approx(0.6 / 2, abs=0.02)
    assert changed[1:].tolist() == pytest.approx([0.2 / 2] * (len(genome) - 1), abs=0.01)


def test_mutation_draws_kernel_and_ratio_of_a_block_together(problem: Problem) -> None:
    genome = problem.genome
    rows = np.zeros((20_000, len(genome)), dtype=np.int16)
    changed = breeder_of(problem, Settings(mutate=0.1)).mutate(rows) > 0
    kernels, ratios = genome.columns("kernel"), genome.columns("expand")
    for block, kernel in enumerate(kernels):
        for other, ratio in enumerate(ratios):
            both = (changed[:, kernel] & changed[:, ratio]).mean()
            # Of two choices each, half the draws change something.
            expected = 0.1 / 4 if block == other else 0.05**2
            assert both == pytest.approx(expected, abs=0.004)


def test_mutation_leaves_its_parents_alone(problem: Problem) -> None:
    rows = problem.genome.sample(50, np.random.default_rng(0))
    before = rows.copy()
    breeder_of(problem, Settings(mutate=1.0)).mutate(rows)
    assert (rows == before).all()


def test_crossing_takes_every_gene_from_a_parent(tiny: Space, problem_of: MakeProblem) -> None:
    genome, draw = tiny.genome, np.random.default_rng(0)
    mothers, fathers = genome.sample(4000, draw), genome.sample(4000, draw)
    children = breeder_of(problem_of(tiny)).cross(mothers, fathers)
    assert ((children == mothers) | (children == fathers)).all()
    from_mother = ((children == mothers) & (mothers != fathers)).sum(axis=0)
    share = from_mother / np.maximum(1, (mothers != fathers).sum(axis=0))
    assert np.abs(share[genome.counts > 1] - 0.5).max() < 0.06


@pytest.mark.parametrize("count", [0, 1])
def test_few_are_varied_too(problem: Problem, count: int) -> None:
    rows, breeder = problem.genome.sample(count, np.random.default_rng(0)), breeder_of(problem)
    assert breeder.mutate(rows).shape == breeder.cross(rows, rows).shape == rows.shape


# --- pools and settings ---------------------------------------------------------------------------


def test_the_best_of_a_pool_are_the_most_accurate_and_of_equals_the_cheaper() -> None:
    rows = np.arange(5, dtype=np.int16)[:, None]
    accuracy = np.array([0.5, 0.7, 0.7, 0.6, 0.7], dtype=np.float32)
    pool = Pool(rows, accuracy, np.array([1.0, 3.0, 2.0, 0.5, 2.5]))
    assert pool.best(4).rows[:, 0].tolist() == [2, 4, 1, 3]
    assert len(pool.best(9)) == 5


def test_pools_join_in_order() -> None:
    one = Pool(np.zeros((1, 2), np.int16), np.array([0.1], np.float32), np.array([1.0]))
    both = one + replace(one, cost=np.array([2.0]))
    assert len(both) == 2
    assert both.cost.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"population": 3},
        {"parents": 0.0},
        {"mutations": 1.1},
        {"mutate": -0.1},
        {"mutate_resolution": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Settings(**changes)
