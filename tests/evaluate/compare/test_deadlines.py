"""Deadlines that are run, and those that are judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opa_trt.errors import ConfigError
from opa_trt.evaluate.compare.cells import Trials
from opa_trt.evaluate.compare.deadlines import (
    best_static,
    bounds_of,
    check_reachable,
    plan_deadlines,
)
from opa_trt.evaluate.compare.runner import middle_of

MS = {"pioneer": 1.0, "tiny": 2.0, "small": 3.0, "medium": 5.0, "large": 9.0, "whole": 4.0}


@pytest.fixture
def tree(bundle: Any) -> Any:
    return bundle.tree


@pytest.fixture
def trials() -> Trials:
    """Medians as ``MS`` says; every route's slowest of a hundred takes twice as long."""
    return Trials({node: np.array([ms] * 98 + [2 * ms] * 2) for node, ms in MS.items()})


def test_judged_deadlines_lie_between_pioneer_and_largest(tree: Any, trials: Trials) -> None:
    bounds = bounds_of(tree, trials)
    assert bounds.low == pytest.approx(1.2 * 2.0)
    assert bounds.high == pytest.approx(1.2 * 9.0)


def test_two_tighter_ones_are_reported_and_not_judged(tree: Any, trials: Trials) -> None:
    found = plan_deadlines(tree, trials, None)
    assert [each.ms for each in found] == pytest.approx([1.6, 2.0, 2.4, 6.6, 10.8])
    assert [each.judged for each in found] == [False, False, True, True, True]
    assert middle_of(found).ms == pytest.approx(6.6)


def test_given_deadlines_are_judged_within_the_bounds(tree: Any, trials: Trials) -> None:
    found = plan_deadlines(tree, trials, (2.0, 5.0, 11.0))
    assert [each.judged for each in found] == [False, True, False]
    assert [each.fits for each in found] == [2, 5, 6]


def test_a_route_that_never_leaves_room_narrows_to_one_deadline(tree: Any) -> None:
    same = Trials({node: np.full(5, 4.0) for node in MS})
    found = plan_deadlines(tree, same, None)
    assert [each.judged for each in found] == [False, False, True]


@pytest.mark.parametrize(
    ("deadline", "wanted"),
    [(1.5, "pioneer"), (4.2, "whole"), (30.0, "large"), (0.1, "pioneer")],
)
def test_the_best_static_route_is_right_in_time_most_often(
    tree: Any, trials: Trials, deadline: float, wanted: str
) -> None:
    assert best_static(tree, trials, deadline) == wanted


def test_a_route_that_is_often_late_is_not_the_best(tree: Any, trials: Trials) -> None:
    late = Trials({**trials.ms, "large": np.array([9.0, 9.0, 50.0, 50.0])})
    assert best_static(tree, late, 10.0) == "whole"  # 0.75 always, against 0.9 half of the time


def test_deadlines_that_no_route_meets_are_refused(tree: Any) -> None:
    with pytest.raises(ConfigError, match=r"0\.2, 0\.9 ms: no route meets") as told:
        check_reachable((0.2, 0.9), tree, MS.__getitem__)
    assert "at least 1 ms, which the route to pioneer takes" in told.value.expected
    check_reachable((0.2, 1.1), tree, MS.__getitem__)
    check_reachable(None, tree, MS.__getitem__)
