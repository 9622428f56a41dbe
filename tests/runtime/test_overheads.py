"""What the runtime itself takes, by what becomes of a group."""

from __future__ import annotations

import math

import pytest

from opa_trt.runtime.overheads import ENOUGH, REMEMBERED, STAND_INS, Kind, Overheads


@pytest.mark.parametrize("kind", Kind)
def test_at_first_nothing_is_known(kind: Kind) -> None:
    assert Overheads().ms(kind) == 0.0


@pytest.mark.parametrize("kind", Kind)
def test_it_is_the_median_of_recent_ones(kind: Kind) -> None:
    overheads = Overheads()
    for ms in [9.0] * REMEMBERED + [*[1.0] * (REMEMBERED // 2), *[3.0] * (REMEMBERED // 2)]:
        overheads.observe(kind, ms)
    assert overheads.ms(kind) == 3.0  # the upper one of two


@pytest.mark.parametrize(("kind", "other"), [(k, o) for k in Kind for o in Kind if o is not k])
def test_others_stand_in_until_enough_is_known(kind: Kind, other: Kind) -> None:
    overheads = Overheads()
    for _ in range(2 * ENOUGH):
        overheads.observe(other, 1.0)
    overheads.observe(kind, 5.0)
    assert overheads.ms(kind) == (1.0 if other in STAND_INS[kind] else 5.0)
    for _ in range(ENOUGH):
        overheads.observe(kind, 5.0)
    assert overheads.ms(kind) == 5.0


@pytest.mark.parametrize(("ms", "counts"), [(-2.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_clocks_may_jump(ms: float, counts: float) -> None:
    overheads = Overheads()
    overheads.observe(Kind.STOP, 1.0)
    for _ in range(3):
        overheads.observe(Kind.STOP, ms)
    assert overheads.ms(Kind.STOP) == counts


def test_a_split_is_charged_what_it_takes_beyond_sending_on_all() -> None:
    overheads = Overheads()
    for _ in range(ENOUGH):
        overheads.observe(Kind.WHOLE, 1.0)
        overheads.observe(Kind.SPLIT, 1.5)
    assert overheads.beyond_ms() == 0.5
    for _ in range(REMEMBERED):
        overheads.observe(Kind.WHOLE, 2.0)
    assert overheads.beyond_ms() == 0.0


def test_what_sending_on_takes_can_be_forgotten() -> None:
    overheads = Overheads()
    for kind in Kind:
        overheads.observe(kind, 1.0)
    overheads.forget()
    overheads.observe(Kind.WHOLE, 4.0)
    assert overheads.ms(Kind.SPLIT) == 4.0
    assert overheads.ms(Kind.ALONE) == overheads.ms(Kind.ENTRY) == 1.0
