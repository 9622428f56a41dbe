"""Strategies for many targets: their order, budgets and warm starts, and one population for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opa_trt.search import multi_target
from opa_trt.search.additive import AdditiveCost
from opa_trt.search.answers import Answer, Budget
from opa_trt.search.breeder import Breeder, Settings
from opa_trt.search.joint import joint
from opa_trt.search.multi_target import (
    bottom_up,
    cold,
    cold_equal_budget,
    prune,
    top_down,
)
from opa_trt.search.problem import Problem
from opa_trt.search.strategies import STRATEGIES
from opa_trt.supernet import ResNet50DSpace
from opa_trt.supernet.space import Space

MakeProblem = Callable[..., Problem]
SMALL = Settings(population=16)
SHORT = Budget(first=8, further=3)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
warm_or_cold = pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "dynamic-ofa"])


def targets_of(problem: Problem, *shares: float) -> list[float]:
    """Targets so far on the way from the smallest to the largest cost."""
    low, high = problem.cost.smallest[0], problem.cost.largest[0]
    return [low + share * (high - low) for share in shares]


def search(
    problem: Problem,
    targets: Sequence[float],
    strategy: str,
    budget: Budget = SHORT,
    settings: Settings = SMALL,
    seed: int = 0,
) -> list[Answer]:
    return STRATEGIES[strategy](problem, targets, budget, settings, np.random.default_rng(seed))


def untimed(answers: Sequence[Answer]) -> list[Answer]:
    return [replace(answer, seconds=0.0) for answer in answers]


# --- answers of every strategy --------------------------------------------------------------------


@every_strategy
def test_answers_are_in_the_order_of_the_targets_and_meet_them(
    tiny: Space, problem_of: MakeProblem, strategy: str
) -> None:
    problem = problem_of(tiny)
    targets = targets_of(problem, 0.5, 0.0, 1.0, 0.2, 0.5)
    answers = search(problem, targets, strategy)
    assert [answer.target for answer in answers] == targets
    assert all(answer.latency <= answer.target for answer in answers)
    if strategy not in ("cold", "cold-equal"):
        assert untimed(answers)[0] == untimed(answers)[4]


@every_strategy
def test_latency_and_accuracy_are_those_of_the_arch(
    tiny: Space, problem_of: MakeProblem, bumpy: Any, strategy: str
) -> None:
    problem = problem_of(tiny)
    problem = replace(problem, cost=AdditiveCost(problem.genome, bumpy(1), scale=1.3, offset=0.2))
    for answer in search(problem, targets_of(problem, 0.1, 0.6), strategy):
        tiny.validate(answer.arch)
        row = problem.genome.row(answer.arch)[None]
        assert answer.latency == problem.cost(row)[0] <= answer.target
        assert answer.accuracy == pytest.approx(float(problem.accuracy(row)[0]), abs=1e-6)
        assert answer.evaluated > 0


@every_strategy
def test_a_seed_gives_the_same_answers(problem: Problem, strategy: str) -> None:
    targets = targets_of(problem, 0.2, 0.7)
    one, same = (untimed(search(problem, targets, strategy, seed=5)) for _ in range(2))
    assert one == same


@every_strategy
def test_targets_equal_to_the_smallest_cost_are_met(
    problem: Problem, bumpy: Any, strategy: str
) -> None:
    problem = replace(problem, cost=AdditiveCost(problem.genome, bumpy(3), scale=0.1, offset=0.3))
    smallest, row = problem.cost.smallest
    (answer,) = search(problem, [smallest], strategy)
    assert answer.latency == smallest
    assert answer.arch == problem.genome.arch(row)


@every_strategy
def test_a_space_of_one_arch_has_one_answer(
    lonely: Space, problem_of: MakeProblem, strategy: str
) -> None:
    answers = search(problem_of(lonely), [1e9, 2e9, 1e9], strategy)
    assert {answer.arch for answer in answers} == {lonely.largest()}


@every_strategy
def test_a_population_of_four_is_enough(problem: Problem, strategy: str) -> None:
    targets = targets_of(problem, *np.linspace(0, 1, 11))
    answers = search(problem, targets, strategy, settings=Settings(population=4))
    assert len(answers) == 11


@warm_or_cold
def test_the_best_archs_of_a_little_space_are_found(
    tiny: Space, problem_of: MakeProblem, optimum: Any, strategy: str
) -> None:
    problem = problem_of(tiny, seed=1)
    targets = targets_of(problem, 0.1, 0.4, 0.9)
    answers = search(problem, targets, strategy, Budget(50, 40), Settings(population=50))
    expected = [optimum(problem, target) for target in targets]
    assert [answer.accuracy for answer in answers] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("strategy", ["joint", "top-down"])
def test_a_space_without_kernels_and_with_one_resolution_is_searched(
    problem_of: MakeProblem, strategy: str
) -> None:
    space = ResNet50DSpace(
        classes=3, resolutions=(64,), stage_widths=(16,), base_depths=(1,), stage_strides=(1,)
    )
    problem = problem_of(space)
    answers = search(problem, targets_of(problem, 0.1, 0.5), strategy)
    assert all(answer.arch.resolution == 64 for answer in answers)


# --- budgets --------------------------------------------------------------------------------------


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Target and generations of every search for one target."""
    found: list[tuple[float, int]] = []
    real = multi_target.evolve

    def noted(breeder: Breeder, target: float, generations: int, *rest: Any) -> Any:
        found.append((target, generations))
        return real(breeder, target, generations, *rest)

    monkeypatch.setattr(multi_target, "evolve", noted)
    return found


def test_cold_searches_each_target_with_the_whole_budget(problem: Problem, spent: Any) -> None:
    targets = targets_of(problem, 0.5, 0.1)
    search(problem, targets, "cold")
    assert spent == [(targets[0], 8), (targets[1], 8)]


def test_the_equal_budget_is_that_of_a_warm_search_in_all(problem: Problem, spent: Any) -> None:
    search(problem, targets_of(problem, 0.5, 0.1, 0.3), "cold-equal", Budget(9, 3))
    assert [generations for _, generations in spent] == [5, 5, 5]
    assert Budget(9, 3).total(3) == 15


@pytest.mark.parametrize(("strategy", "order"), [("top-down", [1, 0, 2]), ("bottom-up", [2, 0, 1])])
def test_warm_searches_spend_less_on_further_targets(
    problem: Problem, spent: Any, strategy: str, order: list[int]
) -> None:
    targets = targets_of(problem, 0.5, 0.9, 0.1)
    search(problem, targets, strategy)
    assert spent == [(targets[i], 8 if i == order[0] else 3) for i in order]


@pytest.mark.parametrize("strategy", ["top-down", "bottom-up"])
def test_a_repeated_target_is_searched_once(problem: Problem, spent: Any, strategy: str) -> None:
    (target,) = targets_of(problem, 0.5)
    search(problem, [target, target, target], strategy)
    assert spent == [(target, 8)]


def test_joint_has_as_many_generations_as_a_warm_search(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = 0
    real = Breeder.judge

    def counted(self: Breeder, *arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        return real(self, *arguments)

    monkeypatch.setattr(Breeder, "judge", counted)
    search(problem, targets_of(problem, 0.5, 0.1, 0.9), "joint")
    assert batches == 3 + SHORT.total(3)  # three times random archs, then children


# --- warm starts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "first"), [(top_down, 1), (bottom_up, 0)])
def test_further_targets_do_not_change_the_first_answer(
    problem: Problem, strategy: multi_target.Strategy, first: int
) -> None:
    targets = targets_of(problem, 0.2, 0.8)
    chain = strategy(problem, targets, SHORT, SMALL, np.random.default_rng(7))
    alone = cold(problem, [targets[first]], SHORT, SMALL, np.random.default_rng(7))
    assert untimed([chain[first]]) == untimed(alone)


def test_bottom_up_is_never_worse_at_a_larger_target(problem: Problem) -> None:
    targets = targets_of(problem, 0.05, 0.2, 0.4, 0.6, 1.0)
    found = search(problem, targets, "bottom-up", Budget(2, 0), Settings(population=4))
    accuracies = [answer.accuracy for answer in found]
    assert accuracies == sorted(accuracies)


def test_pruning_copies_and_meets_the_target(tiny: Space, problem_of: MakeProblem) -> None:
    problem = problem_of(tiny)
    row = tiny.genome.row(tiny.largest())
    for place, target in enumerate(targets_of(problem, 0.0, 0.1, 0.5, 1.0)):
        pruned = prune(problem, row, target, np.random.default_rng(place))
        assert problem.cost(pruned[None])[0] <= target
        assert (pruned <= row).all()
        assert row.tolist() == (tiny.genome.counts - 1).tolist()


def test_pruning_ends_where_smaller_choices_do_not_help(
    tiny: Space, problem_of: MakeProblem, bumpy: Any
) -> None:
    problem = problem_of(tiny)
    problem = replace(problem, cost=AdditiveCost(problem.genome, bumpy(4)))
    target, smallest = problem.cost.smallest
    for seed in range(10):
        row = problem.genome.sample(1, np.random.default_rng(seed))[0]
        pruned = prune(problem, row, target, np.random.default_rng(seed))
        assert pruned.tolist() == smallest.tolist()
        pruned += 1  # a copy: the cost's own row stays as it is
    assert problem.cost(smallest[None])[0] == target


def test_an_arch_that_meets_the_target_is_not_pruned(problem: Problem) -> None:
    row = problem.genome.sample(1, np.random.default_rng(0))[0]
    target = float(problem.cost(row[None])[0])
    assert prune(problem, row, target, np.random.default_rng(0)).tolist() == row.tolist()


# --- one population for all -----------------------------------------------------------------------


@pytest.mark.parametrize("shares", [(0.3,), (0.0, 0.1, 0.35, 0.7, 1.0), (0.2, 0.2, 0.6)])
def test_joint_gives_each_target_the_best_of_all_that_was_judged(
    tiny: Space, problem_of: MakeProblem, spy: Any, shares: tuple[float, ...]
) -> None:
    noted = spy(problem_of(tiny))
    targets = targets_of(noted.problem, *shares)
    answers = search(noted.problem, targets, "joint")
    for answer in answers:
        assert answer.accuracy == pytest.approx(noted.best(answer.target), abs=1e-6)
    accuracies = [answer.accuracy for answer in answers]
    assert accuracies == sorted(accuracies)


def test_joint_judges_nothing_twice(problem: Problem, spy: Any) -> None:
    noted = spy(problem)
    targets = targets_of(problem, 0.1, 0.5, 0.8)
    answers = search(noted.problem, targets, "joint")
    judged = noted.judged()
    assert len(np.unique(judged, axis=0)) == len(judged)
    assert answers[0].evaluated == len(judged) // 3


def test_joint_serves_more_targets_than_its_population(problem: Problem) -> None:
    targets = targets_of(problem, *np.linspace(0, 1, 40))
    answers = joint(problem, targets, SHORT, Settings(population=8), np.random.default_rng(0))
    assert all(answer.latency <= answer.target for answer in answers)


def test_targets_of_an_equal_budget_are_checked_first(problem: Problem) -> None:
    with pytest.raises(ValueError, match="targets"):
        cold_equal_budget(problem, [], SHORT, SMALL, np.random.default_rng(0))
