"""The Pareto front and its steps, against looking at every pair."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opa_trt.search.pareto import front, steps

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)
# Few different values, so that ties are common.
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=14)


def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """One costs no more and is no less accurate, and is better in one."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@PROPERTY
@given(points=POINTS)
def test_the_front_is_what_none_beats(points: list[tuple[int, int]]) -> None:
    places = front([p[0] for p in points], [p[1] for p in points])
    alone = {p for p in points if not any(beats(q, p) for q in points)}
    assert {points[place] for place in places} == alone
    assert len(places) == len(alone)


@PROPERTY
@given(points=POINTS)
def test_the_front_is_by_ascending_cost_and_the_first_of_equals(
    points: list[tuple[int, int]],
) -> None:
    places = front([p[0] for p in points], [p[1] for p in points])
    kept = [points[place] for place in places]
    assert kept == sorted(kept)
    assert [points.index(point) for point in kept] == places.tolist()


@PROPERTY
@given(
    values=st.lists(st.integers(0, 40), max_size=14, unique=True).map(sorted),
    step=st.integers(0, 10),
)
def test_steps_are_far_enough_apart_and_nothing_between_them_is(
    values: list[int], step: int
) -> None:
    kept = [values[place] for place in steps(values, step)]
    assert kept[-1:] == values[-1:]
    assert all(b - a >= step for a, b in pairwise(kept))
    for value in set(values) - set(kept):
        above = min(k for k in kept if k > value)
        assert above - value < step


def test_without_a_step_all_are_kept() -> None:
    assert steps([0.1, 0.2, 0.2, 0.3], 0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("found", [front([], []), steps([], 0.1)])
def test_of_none_none_are_kept(found: np.ndarray) -> None:  # type: ignore[type-arg]
    assert found.shape == (0,)
    assert found.dtype == np.intp
