"""What a search is asked: targets that can be met, and resolutions that all know."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opa_trt.errors import ConfigError, InfeasibleBudget
from opa_trt.search.accuracy_predictor import AccuracyPredictor
from opa_trt.search.additive import AdditiveCost
from opa_trt.search.answers import Budget
from opa_trt.search.breeder import Settings
from opa_trt.search.latency_table import LatencyTable
from opa_trt.search.problem import Problem, pose
from opa_trt.search.strategies import STRATEGIES
from opa_trt.supernet.operators import Operator
from opa_trt.supernet.space import Space

Make = Callable[..., AccuracyPredictor]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def search(problem: Problem, targets: list[float], strategy: str) -> Any:
    draw = np.random.default_rng(0)
    return STRATEGIES[strategy](problem, targets, Budget(5, 2), Settings(population=8), draw)


def table_of(
    space: Space, operators_at: Callable[[Space, int], list[Operator]], *sides: int
) -> LatencyTable:
    """Invented latencies at some resolutions."""
    found = {r: {o.key: 0.1 + 1e-6 * o.cost.macs for o in operators_at(space, r)} for r in sides}
    return LatencyTable("invented", found)


# --- targets --------------------------------------------------------------------------------------


@every_strategy
def test_a_target_that_nothing_meets_is_refused_before_any_search(
    problem: Problem, spy: Any, strategy: str
) -> None:
    noted = spy(problem)
    smallest = problem.cost.smallest[0]
    with pytest.raises(InfeasibleBudget, match="no arch of mobilenet_v3 meets") as caught:
        search(noted.problem, [2 * smallest, 0.5 * smallest], strategy)
    assert caught.value.smallest >= smallest
    assert caught.value.smallest == pytest.approx(smallest, rel=1e-5)
    assert noted.rows == []


@every_strategy
@pytest.mark.parametrize(
    "targets", [[], [0.0], [-1.0], [1e9, -1e9], [math.nan], [math.inf], [1e9, math.inf]]
)
def test_targets_that_make_no_sense_are_refused(
    problem: Problem, strategy: str, targets: list[float]
) -> None:
    with pytest.raises(ConfigError, match="targets") as caught:
        search(problem, targets, strategy)
    assert "in MACs" in caught.value.expected


@pytest.mark.parametrize("smallest", [9.8895123, 265_526_256.0, 121_278_672.0, 1e-7, 3.0, 1 / 3])
def test_the_smallest_value_can_be_asked_for_as_it_is_shown(
    problem: Problem, smallest: float
) -> None:
    class Fixed(AdditiveCost):
        @property
        def smallest(self) -> Any:  # type: ignore[override]
            return smallest, None

    fixed = replace(problem, cost=Fixed(problem.genome, lambda *_: 0.0))
    with pytest.raises(InfeasibleBudget) as caught:
        fixed.check([0.1 * smallest])
    shown = caught.value.expected.removeprefix("at least ").removesuffix(".")
    assert float(shown) == caught.value.smallest >= smallest
    assert caught.value.smallest == pytest.approx(smallest, rel=1e-5)
    assert shown in caught.value.remedy
    fixed.check([caught.value.smallest])


def test_the_smallest_cost_itself_is_a_target(problem: Problem) -> None:
    problem.check([problem.cost.smallest[0]])
    with pytest.raises(InfeasibleBudget):
        problem.check([np.nextafter(problem.cost.smallest[0], 0)])


# --- predictors -----------------------------------------------------------------------------------


def test_only_resolutions_that_all_know_are_searched(
    mobile: Space, predictor: Make, operators_at: Any
) -> None:
    wide = replace(mobile, resolutions=(16, 20, 24, 32))
    made = predictor(replace(wide, resolutions=(20, 24, 28, 32)))
    found = pose(wide, made, table_of(wide, operators_at, 16, 24, 32, 40))
    assert found.genome.space.resolutions == (24, 32)
    assert found.unit == "ms"


def test_without_resolutions_in_common_nothing_is_searched(
    mobile: Space, predictor: Make, operators_at: Any
) -> None:
    with pytest.raises(ConfigError, match=r"known to all: .*; random \[16, 32\]; invented \[20\]"):
        pose(mobile, predictor(mobile), table_of(mobile, operators_at, 20))


def test_without_a_table_macs_are_the_cost(mobile: Space, predictor: Make) -> None:
    found = pose(mobile, predictor(mobile), None)
    row = mobile.genome.sample(1, np.random.default_rng(0))
    assert found.unit == "MACs"
    assert found.cost(row)[0] == mobile.macs(mobile.genome.arch(row[0]))


def test_predictors_of_another_space_are_refused(
    mobile: Space, predictor: Make, operators_at: Any
) -> None:
    other = replace(mobile, expand_choices=(2, 4))
    with pytest.raises(ConfigError, match="another space"):
        pose(other, predictor(mobile), None)
    with pytest.raises(ConfigError, match="lacks expanded_conv"):
        pose(other, predictor(other), table_of(mobile, operators_at, 16))
