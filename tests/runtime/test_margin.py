"""Margins by regime and entry: whose scores count for whom."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.runtime.margin import KNOWN, MOST, PROMISE, REST, TELLING, WINDOW, Margins, quantile

MISSED = REST * (1 - PROMISE)
CALM, RESTLESS, NEW = 0, 1, 2  # entries
ENTRIES = 5
IDLE, BUSY = 1.0, 2.5  # slowdowns, of two regimes


def watched(
    slowdown: float, margins: Margins | None = None, *, calm: int, restless: int
) -> Margins:
    """After so many groups at each of two entries, of which one is ten times as restless."""
    margins, draw = margins or Margins(ENTRIES), np.random.default_rng(3)
    spreads = [0.1] * calm + [1.0] * restless
    draw.shuffle(spreads)
    for group, spread in enumerate(spreads, 1):
        entry = CALM if spread < 1 else RESTLESS
        margins.observe(slowdown, entry, group, spread * abs(draw.standard_normal()))
    return margins


def test_before_anything_is_known_nothing_is_added() -> None:
    assert [Margins(ENTRIES).score(IDLE, entry) for entry in (CALM, RESTLESS)] == [0.0, 0.0]


def test_the_restless_entry_has_the_larger_margin() -> None:
    margins = watched(IDLE, calm=150, restless=150)
    calm, restless, new = (margins.score(IDLE, entry) for entry in (CALM, RESTLESS, NEW))
    assert calm < restless / 3
    assert calm < new <= restless


def test_an_interruption_of_a_restless_entry_is_not_charged_to_others() -> None:
    margins = watched(IDLE, calm=300, restless=20)
    before = margins.score(IDLE, CALM)
    margins.observe(IDLE, RESTLESS, 321, 3.0)
    margins.observe(IDLE, RESTLESS, 322, 3.0)
    assert margins.score(IDLE, CALM) < 3 * before < 3.0


def test_in_a_new_regime_the_one_that_is_known_to_be_restless_speaks_for_itself() -> None:
    alone = watched(BUSY, calm=0, restless=50)
    assert alone.score(BUSY, CALM) == alone.score(BUSY, RESTLESS)
    known = watched(IDLE, calm=150, restless=150)
    known = watched(BUSY, known, calm=0, restless=50)
    assert known.score(BUSY, CALM) < known.score(BUSY, RESTLESS) / 3


def test_a_busy_machine_says_nothing_of_a_calm_one() -> None:
    margins = watched(BUSY, calm=50, restless=50)
    assert margins.score(IDLE, CALM) == 0.0
    assert len(margins) == 100


def test_a_busy_machine_is_thought_as_restless_as_a_calm_one_until_more_is_known() -> None:
    margins = watched(IDLE, calm=50, restless=50)
    calm = margins.score(IDLE, CALM)
    assert margins.score(BUSY, CALM) == calm
    for group in range(TELLING):
        margins.observe(BUSY, CALM, 100 + group, 1e-3)
    assert margins.score(BUSY, CALM) < calm / 10


def test_none_is_thought_more_restless_than_that() -> None:
    margins = Margins(ENTRIES)
    for group in range(1, WINDOW):
        entry = RESTLESS if group % 20 == 0 else CALM
        margins.observe(IDLE, entry, group, 100.0 if entry == RESTLESS else 0.1)
    restless, new = (margins.score(IDLE, entry) for entry in (RESTLESS, NEW))
    assert restless <= MOST * new


def test_what_is_old_is_forgotten() -> None:
    margins = watched(IDLE, calm=KNOWN, restless=KNOWN)
    assert margins.at(IDLE).known(CALM)
    margins.age(WINDOW + 2 * KNOWN)
    assert len(margins) == 0
    assert not margins.at(IDLE).known(CALM)
    assert margins.score(IDLE, RESTLESS) == 0.0


@given(
    late=st.lists(st.floats(-5, 50), min_size=1, max_size=80),
    entries=st.lists(st.integers(0, 3), min_size=80, max_size=80),
)
def test_margins_are_sane_whatever_was_seen(late: list[float], entries: list[int]) -> None:
    margins = Margins(ENTRIES)
    for group, score in enumerate(late, 1):
        margins.observe(IDLE, entries[group - 1], group, score)
    for entry in range(5):
        found = margins.score(IDLE, entry)
        assert 0 <= found < math.inf


@given(late=st.lists(st.floats(0, 50), min_size=1, max_size=500), factor=st.floats(0.1, 10))
def test_the_quantile_is_one_of_scores_alone(late: list[float], factor: float) -> None:
    ascending = np.sort(late)
    found = quantile(ascending, MISSED)
    assert 0 <= found <= ascending[-1]
    assert quantile(factor * ascending, MISSED) == pytest.approx(factor * found)
