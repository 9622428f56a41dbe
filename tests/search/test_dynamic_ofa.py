"""Dynamic-OFA's family: when the ceiling relaxes, how levels are spaced, which one serves whom."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from opa_trt.errors import ConfigError
from opa_trt.search import pareto
from opa_trt.search.answers import Answer, Budget
from opa_trt.search.breeder import Breeder, Settings
from opa_trt.search.dynamic_ofa import RandomSearch, dynamic_ofa, random_search
from opa_trt.search.problem import Problem
from opa_trt.supernet.space import Space

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
FEW = Settings(population=16)


def targets_of(problem: Problem, *shares: float) -> list[float]:
    """Targets so far on the way from the smallest to the largest cost."""
    low, high = problem.cost.smallest[0], problem.cost.largest[0]
    return [low + share * (high - low) for share in shares]


def family(problem: Problem, targets: list[float], step: float, seed: int = 0) -> list[Answer]:
    constants = RandomSearch(patience=40, relaxations=3, step=step)
    draw = np.random.default_rng(seed)
    return dynamic_ofa(problem, targets, Budget(6, 4), FEW, draw, constants)


# --- Algorithm 1 ----------------------------------------------------------------------------------


@pytest.fixture
def draws(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many archs were drawn at each ceiling."""
    found: list[int] = []
    real = problem.genome.sample

    def counted(count: int, rng: np.random.Generator) -> Any:
        found.append(count)
        return real(count, rng)

    monkeypatch.setattr(problem.genome, "sample", counted)
    return found


def scout(problem: Problem, shares: tuple[float, float], floor: float, **constants: Any) -> Any:
    first, last = targets_of(problem, *shares)
    breeder = Breeder(problem, FEW, np.random.default_rng(0))
    return random_search(breeder, floor, first, last, RandomSearch(**constants))


def test_the_ceiling_does_not_relax_before_its_draws_are_done(
    problem: Problem, draws: list[int]
) -> None:
    found = scout(problem, (1.0, 2.0), -np.inf, patience=30)
    assert draws == [30]
    assert len(found) > 20


def test_the_ceiling_relaxes_to_the_last_and_no_further(problem: Problem, draws: list[int]) -> None:
    found = scout(problem, (0.1, 0.9), floor=2.0, patience=7, relaxations=4)
    assert draws == [7] * 5
    assert len(found) == 0


def test_the_ceiling_stops_where_something_was_found(problem: Problem, draws: list[int]) -> None:
    # At the first ceiling, the smallest cost, nothing is cheaper.
    found = scout(problem, (0.0, 2.0), -np.inf, patience=50, relaxations=1)
    assert draws == [50, 50]
    assert len(found) > 0


def test_what_is_found_lies_between_floor_and_highest(problem: Problem) -> None:
    every = scout(problem, (1.1, 1.1), -np.inf, patience=300)
    floor, highest = (float(v) for v in np.quantile(every.accuracy, [0.3, 0.7]))
    found = scout(problem, (0.8, 0.8), floor, patience=300, highest=highest)
    assert 0 < len(found) < len(every)
    assert floor < found.accuracy.min() < found.accuracy.max() <= highest
    assert (found.cost < targets_of(problem, 0.8)[0]).all()


@pytest.mark.parametrize("changes", [{"patience": 0}, {"relaxations": 0}, {"step": 1.0}])
def test_constants_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="random search"):
        RandomSearch(**changes)


# --- levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.0, 0.001, 0.01, 0.05])
@pytest.mark.parametrize("seed", range(3))
def test_levels_are_a_step_apart_and_on_the_pareto_front(
    tiny: Space, problem_of: Callable[..., Problem], step: float, seed: int
) -> None:
    problem = problem_of(tiny, seed)
    answers = family(problem, targets_of(problem, *SHARES), step, seed)
    levels = sorted({(answer.latency, answer.accuracy) for answer in answers})
    places = pareto.front([cost for cost, _ in levels], [gain for _, gain in levels])
    assert len(places) == len(levels)
    assert all(b[1] - a[1] >= step for a, b in pairwise(levels))


@pytest.mark.parametrize("seed", range(3))
def test_each_target_is_served_by_the_best_level_that_meets_it(
    tiny: Space, problem_of: Callable[..., Problem], seed: int
) -> None:
    problem = problem_of(tiny, seed)
    answers = family(problem, targets_of(problem, *SHARES), 0.01, seed)
    levels = {(answer.latency, answer.accuracy) for answer in answers}
    for answer in answers:
        best = max(gain for cost, gain in levels if cost <= answer.target)
        assert answer.latency <= answer.target
        assert answer.accuracy == best


def test_targets_that_gain_no_step_share_the_level_below(problem: Problem) -> None:
    answers = family(problem, targets_of(problem, 0.0, 0.3, 1.0), step=0.9)
    assert {answer.arch for answer in answers} == {problem.genome.arch(problem.cost.smallest[1])}


def test_the_most_accurate_level_is_kept_where_it_gains_a_step(problem: Problem) -> None:
    fine, coarse = (family(problem, targets_of(problem, *SHARES), s)[-1] for s in (0.0, 0.001))
    gained = fine.accuracy - family(problem, targets_of(problem, 0.0), 0.0)[0].accuracy
    assert gained > 0.001
    assert coarse.accuracy >= fine.accuracy - 0.001


def test_the_paper_constants_are_the_default(problem: Problem) -> None:
    targets = targets_of(problem, 0.1, 0.9)
    answers = dynamic_ofa(problem, targets, Budget(3, 2), FEW, np.random.default_rng(0))
    assert RandomSearch() == RandomSearch(patience=500, step=0.01)
    assert [answer.target for answer in answers] == targets
    assert answers[0].evaluated == answers[1].evaluated > 0
