"""Means and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from opa_trt.evaluate.compare.intervals import Interval, bootstrap, wilson


def test_the_bootstrap_is_as_wide_as_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    found = bootstrap(values, 4000, seed=0)
    assert found.mean == pytest.approx(values.mean())
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.2 / 20, rel=0.1)
    assert found.low < found.mean < found.high


def test_about_as_many_intervals_hold_the_truth_as_they_say() -> None:
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        found = bootstrap(draw.random(60), 500, seed=2)
        hits += found.low <= 0.5 <= found.high  # type: ignore[operator]
    assert 0.9 < hits / 300 < 0.99


def test_a_constant_has_no_width() -> None:
    assert bootstrap(np.full(9, 0.25), 100, seed=0).to_dict() == pytest.approx(
        {"mean": 0.25, "low": 0.25, "high": 0.25}
    )


def test_one_value_has_no_interval() -> None:
    found = bootstrap(np.array([0.3]), 100, seed=0)
    assert (found.low, found.high) == (None, None)
    assert found.reaches(0) is None
    assert found.above(0) is None


def test_pairs_are_drawn_together() -> None:
    noise = np.random.default_rng(3).normal(0, 1, 50)
    both = bootstrap(noise + 0.1, 300, seed=0), bootstrap(noise, 300, seed=0)
    assert both[0].low - both[1].low == pytest.approx(0.1)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("low", "high", "reaches", "above"),
    [
        (0.1, 0.2, True, True),
        (0.0, 0.2, True, None),
        (0.0, 0.0, True, False),
        (-0.1, 0.1, None, None),
        (-0.1, 0.0, None, False),
        (-0.2, -0.1, False, False),
    ],
)
def test_a_goal_is_met_missed_or_unresolved(
    low: float, high: float, reaches: bool | None, above: bool | None
) -> None:
    found = Interval((low + high) / 2, low, high)
    assert found.reaches(0.0) is reaches
    assert found.above(0.0) is above


def test_wilson_is_known() -> None:
    found = wilson(99, 100)
    assert (found.low, found.high) == pytest.approx((0.9455, 0.9982), abs=1e-4)
    assert wilson(50, 50).high == 1.0
    assert wilson(0, 50).low == 0.0
