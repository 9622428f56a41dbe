"""What may be asked for."""

from __future__ import annotations

from typing import Any

import pytest

from opa_trt.errors import ConfigError, UnknownNameError
from opa_trt.evaluate.compare import Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"groups": 1},
        {"group_size": 1},
        {"group_sizes": (0, 5)},
        {"loads": (-1,)},
        {"loads": ()},
        {"deadlines": ()},
        {"deadlines": (5.0, 0.0)},
        {"deadlines": (float("nan"),)},
        {"deadlines": (float("inf"),)},
        {"trials": 1},
        {"images": 0},
        {"warm_up": -1},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        Settings(**wrong)
    assert error.value.expected


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown degradation family 'blurr'") as error:
        Settings(families=("blurr",))
    assert "'blur'" in error.value.remedy


def test_lists_are_sorted_and_have_no_twins() -> None:
    made = Settings(loads=(2, 0, 2), group_sizes=(5, 1, 5), deadlines=(9.0, 3.0, 9.0))
    assert (made.loads, made.group_sizes, made.deadlines) == ((0, 2), (1, 5), (3.0, 9.0))
    assert made.least_load == 0


def test_small_groups_are_more_and_large_ones_fewer() -> None:
    made = Settings(groups=200, group_size=100)
    counts = [made.groups_of(size) for size in (1, 2, 50, 100, 500)]
    assert counts == [1000, 1000, 100, 50, 40]
    assert Settings(groups=10).groups_of(500) == 10
    assert made.trials_of(500) < made.trials_of(1) <= made.trials


def test_they_come_back_from_plain_values() -> None:
    made = Settings(deadlines=(1.5,), families=("noise",), loads=(0, 2))
    assert Settings.from_dict(made.to_dict()) == made
