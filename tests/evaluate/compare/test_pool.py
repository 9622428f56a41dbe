"""Rows that groups are drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opa_trt.evaluate.compare.pool import Condition, draw_groups, make_pool
from opa_trt.training.degrade import degrade, drift

FAMILIES = ("noise", "blur")


def test_every_condition_has_as_many_rows(data: Any) -> None:
    pool = make_pool(data.splits.test, FAMILIES, 70, seed=0)
    assert pool.conditions[0] == Condition("clean", 0)
    assert np.bincount(pool.condition).tolist() == [10] * 7
    assert {c.pair for c in pool.conditions[1:]} == {(f, s) for f in FAMILIES for s in (1, 2, 3)}


def test_rows_are_the_images_that_they_say(data: Any) -> None:
    test = data.splits.test
    pool = make_pool(test, FAMILIES, 70, seed=5)
    assert (pool.labels == test.labels[pool.source]).all()
    clean = pool.members["clean", 0]
    assert (pool.take(clean) == test.pixels[pool.source[clean]]).all()
    place = pool.conditions.index(Condition("blur", 2))
    rows = pool.members["blur", 2]
    assert (pool.take(rows) == degrade(test.pixels[pool.source[rows]], "blur", 2, 5 + place)).all()


def test_no_image_is_twice_in_a_condition(data: Any) -> None:
    pool = make_pool(data.splits.test, FAMILIES, 10_000, seed=0)
    assert len(pool) == 7 * len(data.splits.test)
    for rows in pool.members.values():
        assert len(set(pool.source[rows].tolist())) == len(rows)


def test_a_bundle_of_floats_gets_floats(data: Any) -> None:
    pool = make_pool(data.splits.test, (), 10, seed=0, scaled=True)
    taken = pool.take(np.arange(4))
    assert taken.dtype == np.float32
    assert (np.rint(taken * 255) == pool.pixels[:4]).all()


def test_groups_drift_and_stay_within_a_condition(data: Any) -> None:
    pool = make_pool(data.splits.test, FAMILIES, 140, seed=0)
    draws = draw_groups(pool, FAMILIES, 15, 8, seed=3)
    assert [(draw.family, draw.severity) for draw in draws] == drift(15, FAMILIES, 3)
    for draw in draws:
        assert set(draw.rows) <= set(pool.members[draw.family, draw.severity])
        assert len(set(draw.rows.tolist())) == 8


def test_without_families_all_groups_are_clean(data: Any) -> None:
    pool = make_pool(data.splits.test, FAMILIES, 140, seed=0)
    assert {draw.family for draw in draw_groups(pool, (), 5, 4, seed=0)} == {"clean"}


def test_a_group_larger_than_its_condition_repeats_rows(data: Any) -> None:
    pool = make_pool(data.splits.test, FAMILIES, 35, seed=0)
    (draw,) = draw_groups(pool, (), 1, 9, seed=0)
    assert len(draw.rows) == 9


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_draws_the_same_again(data: Any, seed: int) -> None:
    first, again = (make_pool(data.splits.test, FAMILIES, 35, seed=seed) for _ in range(2))
    assert (first.pixels == again.pixels).all()
    other = make_pool(data.splits.test, FAMILIES, 35, seed=seed + 10)
    assert (first.source != other.source).any()


def test_half_of_a_mostly_clean_pool_is_clean(data: Any) -> None:
    pool = make_pool(data.splits.test, FAMILIES, 84, seed=0, mostly_clean=True)
    assert pool.rows == [42, *[7] * (len(pool.conditions) - 1)]


def test_a_mostly_clean_pool_has_no_more_than_there_is(data: Any) -> None:
    test = data.splits.test
    pool = make_pool(test, FAMILIES, 10_000, seed=0, mostly_clean=True)
    assert pool.rows == [len(test)] * len(pool.conditions)
