"""Plans: the phases of progressive shrinking, their choices, and their steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.errors import ConfigError
from opa_trt.supernet import MobileNetV3Space
from opa_trt.supernet.genome import Kind
from opa_trt.training.plan import Phase, Steps, TrainingPlan, phases

PLAN = TrainingPlan(
    learning_rate=0.2,
    elastic_learning_rate=0.1,
    steps=Steps(full=10, kernel=20, depth=(30, 40), width=(50, 60)),
)


@pytest.fixture(scope="module")
def published() -> dict[str, Phase]:
    return {phase.name: phase for phase in phases(PLAN, MobileNetV3Space())}


# --- phases -------------------------------------------------------------------------------------


def test_phases_come_in_ofas_order(published: dict[str, Phase]) -> None:
    assert list(published) == ["full", "kernel", "depth1", "depth2", "width1", "width2"]


def test_a_step_trains_1_1_2_2_4_4_subnets(published: dict[str, Phase]) -> None:
    assert [phase.subnets for phase in published.values()] == [1, 1, 2, 2, 4, 4]


def test_phases_have_the_plans_steps(published: dict[str, Phase]) -> None:
    assert [phase.steps for phase in published.values()] == [10, 20, 30, 40, 50, 60]


def test_only_the_full_phase_has_the_full_rate(published: dict[str, Phase]) -> None:
    assert [phase.rate for phase in published.values()] == [0.2, *[0.1] * 5]


def test_everything_but_the_full_phase_is_elastic(published: dict[str, Phase]) -> None:
    assert [phase.elastic for phase in published.values()] == [False, *[True] * 5]


def test_the_full_phase_draws_nothing_but_the_largest(published: dict[str, Phase]) -> None:
    assert published["full"].largest == {"kernel": 1, "depth": 1, "expand": 1, "width": 1}


def test_kernels_are_elastic_from_the_kernel_phase_on(published: dict[str, Phase]) -> None:
    assert ["kernel" in phase.largest for phase in published.values()] == [True, *[False] * 5]


def test_depths_grow_phase_by_phase(published: dict[str, Phase]) -> None:
    counts = [phase.largest.get("depth") for phase in published.values()]
    assert counts == [1, 1, 2, 3, None, None]


@pytest.mark.parametrize("kind", ["expand", "width"])
def test_widths_grow_phase_by_phase(published: dict[str, Phase], kind: Kind) -> None:
    counts = [phase.largest.get(kind) for phase in published.values()]
    assert counts == [1, 1, 1, 1, 2, 3]


def test_each_width_phase_sorts_at_its_own_level(published: dict[str, Phase]) -> None:
    levels = [phase.sort_level for phase in published.values()]
    assert levels == [None, None, None, None, 0, 1]


def test_a_last_phase_trains_the_ends_over_all_choices() -> None:
    plan = replace(PLAN, steps=replace(PLAN.steps, finish=70))
    *before, last = phases(plan, MobileNetV3Space())
    assert not any(phase.sandwich for phase in before)
    assert last == Phase("finish", 70, 3, 0.1, sandwich=True)


def test_a_phase_of_no_steps_is_left_out() -> None:
    plan = replace(PLAN, steps=Steps(0, 0, (0, 4), (0, 0), finish=5))
    assert [phase.name for phase in phases(plan, MobileNetV3Space())] == ["depth2", "finish"]


def test_scaling_keeps_a_last_phase_and_its_absence() -> None:
    steps = replace(PLAN.steps, finish=90)
    assert steps.total == 300
    assert steps.scaled(30).finish == 9
    assert PLAN.steps.scaled(21).finish == 0


def test_a_space_without_elastic_depth_has_no_depth_phase() -> None:
    plan = replace(PLAN, steps=Steps(1, 1, (), (1, 1)))
    names = [phase.name for phase in phases(plan, MobileNetV3Space(depth_choices=(2,)))]
    assert names == ["full", "kernel", "width1", "width2"]


@pytest.mark.parametrize("key", ["depth", "width"])
@pytest.mark.parametrize("steps", [(), (5,), (5, 5, 5)])
def test_another_number_of_phases_than_the_space_has_is_refused(
    key: str, steps: tuple[int, ...]
) -> None:
    plan = replace(PLAN, steps=replace(PLAN.steps, **{key: steps}))
    with pytest.raises(ConfigError, match=f"training.steps.{key} has {len(steps)} entries"):
        list(phases(plan, MobileNetV3Space()))


# --- steps --------------------------------------------------------------------------------------


def test_the_total_counts_every_phase() -> None:
    assert PLAN.steps.total == 210


def test_scaling_keeps_the_proportions() -> None:
    assert PLAN.steps.scaled(21) == Steps(1, 2, (3, 4), (5, 6))


def test_scaling_to_the_total_changes_nothing() -> None:
    assert PLAN.steps.scaled(210) == PLAN.steps


def test_phases_of_no_steps_are_scaled_to_none() -> None:
    steps = Steps(0, 0, (0, 0), (0, 40), finish=60)
    assert steps.scaled(10) == Steps(0, 0, (0, 0), (0, 4), finish=6)


counts = st.integers(1, 5000)
lists = st.lists(counts, max_size=3).map(tuple)


@given(steps=st.builds(Steps, counts, counts, lists, lists), total=st.integers(1, 10_000))
def test_scaled_steps_are_at_least_one_and_about_the_total(steps: Steps, total: int) -> None:
    scaled = steps.scaled(total)
    every = [scaled.full, scaled.kernel, *scaled.depth, *scaled.width]
    assert min(every) >= 1
    assert (len(scaled.depth), len(scaled.width)) == (len(steps.depth), len(steps.width))
    assert total - len(every) <= scaled.total <= total + len(every)


# --- plans --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["batch_size", "learning_rate", "elastic_learning_rate", "checkpoint_every"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_sizes_and_rates_are_positive(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"training.{key} = {value}"):
        TrainingPlan(**{key: value})


@pytest.mark.parametrize(
    "key",
    [
        "momentum",
        "label_smoothing",
        "weight_decay",
        "distill_weight",
        "shift",
        "cutout",
        "colour",
        "cutmix",
    ],
)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_the_other_numbers_are_not_negative(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"training.{key} = {value}"):
        TrainingPlan(**{key: value})


@pytest.mark.parametrize("key", ["momentum", "label_smoothing", "colour"])
def test_some_stay_below_1(key: str) -> None:
    with pytest.raises(ConfigError, match="0 or more, below 1"):
        TrainingPlan(**{key: 1.0})


def test_all_images_may_be_mixed_but_no_more() -> None:
    assert TrainingPlan(cutmix=1.0).cutmix == 1
    with pytest.raises(
        ConfigError, match=r"training\.cutmix = 1\.01\.\s+Expected  a share, 0 to 1"
    ):
        TrainingPlan(cutmix=1.01)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_blend_has_some_of_what_was_trained(share: float) -> None:
    with pytest.raises(ConfigError, match=r"training\.blend = .*\s+Expected  a share above 0"):
        TrainingPlan(blend=share)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.precision = 'half'"):
        TrainingPlan(precision="half")


@pytest.mark.parametrize(
    "steps", [{"full": -1}, {"kernel": -1}, {"depth": (5, -1)}, {"width": (-1,)}]
)
def test_no_phase_has_less_than_no_steps(steps: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"training\.steps = "):
        Steps(**steps)
