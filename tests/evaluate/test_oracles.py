"""Policies of the evaluation: the oracle, its cross-validation, and chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.errors import ConfigError, UnknownNameError
from opa_trt.evaluate.oracles import OraclePolicy, RandomPolicy, cross_validated_oracle
from opa_trt.policies import STOP, Budget, Policy, View, make_policy
from opa_trt.tree import Tree

TAILS = ("tiny", "small", "medium", "large")
MS = (1.0, 2.0, 4.0, 8.0)


def view_of(count: int) -> View:
    table = np.array(MS)[:, None]
    return View("pioneer", np.zeros((count, 5), np.float32), TAILS, (count,), table)


def chosen(policy: Policy, count: int, left_ms: float, state: Any = None) -> str:
    decision, _ = policy.step(view_of(count), Budget(left_ms), state)
    (place,) = set(decision.choice.tolist())
    return "stop" if place == STOP else TAILS[place]


def truth(*hits: int, count: int = 10) -> dict[str, Any]:
    """Tails that are right on the first so many images."""
    return {name: np.arange(count) < n for name, n in zip(TAILS, hits, strict=True)}


def noise(count: int, seed: int) -> dict[str, Any]:
    """Tails that are all right on half of the images, by chance alone."""
    draw = np.random.default_rng(seed)
    return {name: draw.random(count) < 0.5 for name in TAILS}


# --- the oracle ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "wanted"), [(9.0, "small"), (2.0, "small"), (1.9, "tiny")])
def test_the_oracle_takes_what_is_right_most_often_and_fits(left: float, wanted: str) -> None:
    oracle = OraclePolicy().knowing(truth(3, 9, 5, 8))
    assert chosen(oracle, 10, left) == wanted


def test_of_equals_the_oracle_takes_the_fastest() -> None:
    assert chosen(OraclePolicy(truth(4, 7, 7, 7)), 10, 99.0) == "small"


def test_where_nothing_fits_the_oracle_stops() -> None:
    decision, _ = OraclePolicy(truth(1, 2, 3, 4)).step(view_of(10), Budget(0.5), None)
    assert (decision.choice == STOP).all()
    assert not decision.fits


def test_the_oracle_predicts_the_truth() -> None:
    decision, _ = OraclePolicy(truth(1, 2, 3, 4)).step(view_of(10), Budget(9.0), None)
    assert decision.predicted_accuracy == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_an_oracle_knows_one_group_alone() -> None:
    first = OraclePolicy(truth(9, 1, 1, 1))
    second = first.knowing(truth(1, 1, 1, 9))
    assert [chosen(policy, 10, 9.0) for policy in (first, second)] == ["tiny", "large"]


def test_an_oracle_that_was_told_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="was not told whether tiny"):
        chosen(OraclePolicy(), 10, 9.0)


@given(seed=st.integers(0, 1000), left=st.floats(1, 10))
def test_no_fitting_tail_is_right_more_often(seed: int, left: float) -> None:
    right = noise(20, seed)
    name = chosen(OraclePolicy(right), 20, left)
    fitting = [tail for tail, ms in zip(TAILS, MS, strict=True) if ms <= left]
    assert right[name].sum() == max(right[tail].sum() for tail in fitting)


# --- cross-validated ----------------------------------------------------------------------------


@given(count=st.integers(2, 101), seed=st.integers(0, 100))
def test_the_halves_are_disjoint_and_whole(count: int, seed: int) -> None:
    one, other = cross_validated_oracle(noise(count, seed), seed)
    assert sorted([*one.scored, *other.scored]) == [*range(count)]
    assert abs(len(one.scored) - len(other.scored)) <= 1


@given(seed=st.integers(0, 300))
def test_a_choice_does_not_know_the_half_that_it_is_scored_on(seed: int) -> None:
    right = noise(30, seed)
    for fold in cross_validated_oracle(right, seed):
        other = {name: values.copy() for name, values in right.items()}
        for values in other.values():
            values[fold.scored] = ~values[fold.scored]
        again = {tuple(each.scored): each.policy for each in cross_validated_oracle(other, seed)}[
            tuple(fold.scored)
        ]
        assert chosen(again, 30, 9.0) == chosen(fold.policy, 30, 9.0)


def test_it_chooses_by_its_own_half() -> None:
    right = noise(30, 0)
    for fold in cross_validated_oracle(right):
        mine = np.setdiff1d(np.arange(30), fold.scored)
        best = max(right[name][mine].sum() for name in TAILS)
        assert right[chosen(fold.policy, 30, 9.0)][mine].sum() == best


def test_chance_alone_brings_the_oracle_points_and_the_cross_validated_none() -> None:
    oracle, validated = [], []
    for seed in range(300):
        right = noise(100, seed)
        oracle.append(right[chosen(OraclePolicy(right), 100, 9.0)].mean())
        for fold in cross_validated_oracle(right, seed):
            validated.append(right[chosen(fold.policy, 100, 9.0)][fold.scored].mean())
    assert np.mean(oracle) > 0.54
    assert np.mean(validated) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("right", [{}, truth(1, 1, 1, 1, count=1), {"a": [True], "b": [True] * 2}])
def test_what_cannot_be_halved_is_refused(right: Any) -> None:
    with pytest.raises(ConfigError, match="halved"):
        cross_validated_oracle(right)


# --- chance -------------------------------------------------------------------------------------


def drawn(policy: RandomPolicy, left: float, groups: int) -> list[int]:
    state, found = policy.start(), []
    for _ in range(groups):
        decision, state = policy.step(view_of(3), Budget(left), state)
        found.append(int(decision.choice[0]))
        assert len(set(decision.choice)) == 1
    return found


def test_what_fits_is_drawn_alike_often() -> None:
    counts = np.bincount(drawn(RandomPolicy(), 4.0, 900))
    assert len(counts) == 3
    assert counts.min() > 250


def test_a_seed_draws_the_same_again() -> None:
    assert drawn(RandomPolicy(3), 9.0, 40) == drawn(RandomPolicy(3), 9.0, 40)
    assert drawn(RandomPolicy(3), 9.0, 40) != drawn(RandomPolicy(4), 9.0, 40)


def test_where_nothing_fits_nothing_is_drawn() -> None:
    assert drawn(RandomPolicy(), 0.5, 3) == [STOP] * 3


@pytest.mark.parametrize("name", ["oracle", "cross_validated_oracle", "random"])
def test_users_cannot_name_them(toy: Any, name: str) -> None:
    with pytest.raises(UnknownNameError):
        make_policy(name, Tree(toy.nodes), None)  # type: ignore[arg-type]


def test_they_say_what_they_are() -> None:
    names = [RandomPolicy().name, OraclePolicy().name]
    folds = cross_validated_oracle(noise(4, 0))
    assert [*names, folds[0].policy.name] == ["random", "oracle", "cross_validated_oracle"]
    assert math.isnan(RandomPolicy().step(view_of(2), Budget(9.0), 0)[0].predicted_accuracy[0])
