"""Plans of shallow phases' training: rates that fall in steps, and numbers that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from opa_trt.errors import ConfigError
from opa_trt.training.leaf_plan import LeafPlan, Schedule


def test_a_rate_falls_in_steps() -> None:
    schedule = Schedule(50, 0.1, decay=0.5, decay_every=20)
    rates = [schedule.rate(step) for step in (0, 19, 20, 39, 40)]
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025]


def test_a_rate_may_stay() -> None:
    assert Schedule(50, 0.1).rate(49) == 0.1


@pytest.mark.parametrize(
    "values",
    [
        {"steps": -1},
        {"decay_every": -1},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"decay": 0},
    ],
)
def test_a_schedules_numbers_are_checked(values: dict[str, Any]) -> None:
    (key,) = values
    with pytest.raises(ConfigError, match=key):
        Schedule(**{"steps": 1, "learning_rate": 0.1, **values})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("configurations", 0),
        ("window", 0),
        ("checkpoint_every", 0),
        ("momentum", 1.0),
        ("label_smoothing", -0.1),
        ("weight_decay", float("inf")),
        ("shift", -1),
        ("cutout", -1),
        ("colour", 1.0),
        ("cutmix", 1.5),
    ],
)
def test_a_plans_numbers_are_checked(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        LeafPlan(**{key: value})
