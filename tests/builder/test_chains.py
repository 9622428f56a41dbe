"""Thresholds of a chain: every way that is kept is what it says, and none beats another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opa_trt.builder.chains import KEPT, fit_chain
from opa_trt.policies.thresholds import Chain

MACS = {2: (10, 40), 3: (10, 20, 70), 4: (10, 20, 30, 40)}


def records(exits: int, count: int, seed: int = 0) -> tuple[Any, Any]:
    """Doubts that say something of who is right; later exits are right more often."""
    draw = np.random.default_rng(seed)
    hard = draw.random(count)
    doubts = [0.7 * hard + 0.3 * draw.random(count) for _ in range(exits - 1)]
    right = [draw.random(count) > hard * (1 - place / (exits + 1)) for place in range(exits)]
    return np.array(doubts, np.float32), np.array(right)


@pytest.fixture(params=[2, 3, 4])
def exits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def fitted(exits: int) -> tuple[Chain, Any, Any]:
    doubts, right = records(exits, 300)
    return fit_chain(doubts, right, MACS[exits]), doubts, right


def test_reach_and_accuracy_are_those_of_the_images(fitted: Any, exits: int) -> None:
    chain, doubts, right = fitted
    for way, thresholds in enumerate(chain.thresholds):
        left_at = np.array([
            next((e for e in range(exits - 1) if doubts[e, i] < thresholds[e]), exits - 1)
            for i in range(right.shape[1])
        ])  # fmt: skip
        reach = [(left_at >= e).mean() for e in range(exits)]
        np.testing.assert_allclose(chain.reach[way], reach, atol=1e-6)
        hits = right[left_at, np.arange(right.shape[1])].mean()
        assert chain.accuracy[way] == pytest.approx(hits, abs=1e-6)


def test_no_way_is_better_than_another_in_all(fitted: Any) -> None:
    values = np.column_stack([fitted[0].reach, -fitted[0].accuracy])
    for row in values:
        better = (values <= row).all(axis=1) & (values < row).any(axis=1)
        assert not better.any()


def test_there_are_a_few_hundred_at_most(fitted: Any) -> None:
    assert 10 < len(fitted[0].accuracy) <= KEPT


def test_everybody_may_leave_at_the_first_exit(fitted: Any, exits: int) -> None:
    chain, _, right = fitted
    assert chain.reach[0].tolist() == [1.0] + [0.0] * (exits - 1)
    assert chain.accuracy[0] == pytest.approx(right[0].mean())


def test_one_way_is_as_good_as_any_that_lets_nobody_leave(fitted: Any) -> None:
    chain, _, right = fitted
    assert chain.accuracy.max() >= right[-1].mean() - 1e-6


def test_ways_come_by_ascending_macs(fitted: Any, exits: int) -> None:
    cost = fitted[0].reach.astype(np.float64) @ np.array(MACS[exits])
    assert (np.diff(cost) >= -1e-4).all()


def test_doubts_that_are_all_equal_leave_two_ways() -> None:
    doubts = np.full((1, 20), 0.5, np.float32)
    right = np.array([[True] * 5 + [False] * 15, [True] * 20])
    chain = fit_chain(doubts, right, (1, 9))
    assert chain.reach.tolist() == [[1, 0], [1, 1]]
    assert chain.accuracy.tolist() == [0.25, 1.0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_images_are_enough(count: int) -> None:
    doubts, right = records(3, count)
    assert len(fit_chain(doubts, right, MACS[3]).accuracy) >= 1
