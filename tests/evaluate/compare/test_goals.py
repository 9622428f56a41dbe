"""Goals: met, not met, or not resolved by the intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from opa_trt.evaluate.compare.answers import Answers
from opa_trt.evaluate.compare.cells import STREAM, Cell, Findings, Taken
from opa_trt.evaluate.compare.goals import goals, together
from opa_trt.evaluate.compare.pool import Draw
from opa_trt.evaluate.compare.sections import Reader
from opa_trt.evaluate.compare.settings import Settings

Levels = dict[str, float]
GROUPS = 400
EQUAL = dict.fromkeys(
    ("opa_split", "opa", "dynamic_ofa", "branchynet", "cascade", "static_best"), 0.8
)


def cell_of(load: int, levels: Levels, met: Levels, noise: float, seed: int) -> Cell:
    """Groups whose arms are right so often, with noise of their own, and in time so often."""
    draw = np.random.default_rng(seed)
    draws = [Draw(np.arange(2), "clean", 0)] * GROUPS
    cell = Cell(STREAM, load, 5.0, True, "tiny", draws)
    for arm, level in levels.items():
        right = level + noise * draw.standard_normal(GROUPS)
        late = np.arange(GROUPS) >= round(met.get(arm, 1.0) * GROUPS)
        cell.taken[arm] = [
            Taken(
                np.zeros(2, np.int16),
                np.ones(2, bool),
                value,
                6.0 if missed else 4.0,
                0,
                0,
                not missed,
            )
            for value, missed in zip(right.tolist(), late.tolist(), strict=True)
        ]
    return cell


@pytest.fixture
def judge(bundle: Any) -> Callable[..., dict[str, Any]]:
    """Goals by name, of cells with these levels of accuracy under these loads."""

    def found(
        levels: Levels,
        *,
        met: Levels | None = None,
        noise: float = 0.0,
        loads: tuple[int, ...] = (0, 2),
        partial: bool = False,
        frontier: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        findings = Findings(tuple(bundle.tree.nodes), frozenset({0}), tuple(levels))
        findings.partial = partial
        findings.cells = [cell_of(load, levels, met or {}, noise, load) for load in loads]
        answers = Answers(np.zeros(2, np.int64), {}, {})
        reader = Reader(findings, Settings(draws=500), bundle.tree, answers)
        return {goal["name"]: goal for goal in goals(reader, frontier)}

    return found


def point(ratio: float, low: float, high: float, arm: str = "opa_split") -> dict[str, Any]:
    against = {"mean": (low + high) / 2, "low": low, "high": high}
    return {"arm": arm, "deadline_ms": 9 * ratio, "latency_ratio": ratio,
            "against_largest": against}  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ([], None),
        ([True, True], True),
        ([True, None], None),
        ([True, None, False], False),
        ([None], None),
    ],
)
def test_parts_together(parts: list[bool | None], wanted: bool | None) -> None:
    assert together(parts) is wanted


def test_equal_to_all_baselines_is_enough_for_one_goal_and_not_for_the_other(judge: Any) -> None:
    found = judge(EQUAL)
    assert found["at_least_every_baseline"]["met"] is True
    assert found["ahead_in_the_mean"]["met"] is False


@pytest.mark.parametrize(
    ("gain", "noise", "least", "ahead"),
    [(0.02, 0.01, True, True), (-0.02, 0.01, False, False), (0.0, 0.1, None, None)],
)
def test_the_interval_decides(
    judge: Any, gain: float, noise: float, least: bool | None, ahead: bool | None
) -> None:
    found = judge({**EQUAL, "opa_split": 0.8 + gain}, noise=noise)
    assert found["at_least_every_baseline"]["met"] is least
    assert found["ahead_in_the_mean"]["met"] is ahead


def test_one_baseline_that_is_better_is_enough_to_miss(judge: Any) -> None:
    found = judge({**EQUAL, "opa_split": 0.82, "cascade": 0.85}, noise=0.01)
    goal = found["at_least_every_baseline"]
    assert goal["met"] is False
    assert goal["value"] == pytest.approx(-0.03, abs=0.005)
    assert {part["label"].split()[-1] for part in goal["parts"]} == {"cascade"}
    assert [p["label"] for p in found["ahead_in_the_mean"]["parts"] if not p["met"]] == ["cascade"]


def test_what_was_cut_short_meets_no_goal(judge: Any) -> None:
    ahead = {**EQUAL, "opa_split": 0.9}
    whole, part = judge(ahead), judge(ahead, partial=True)
    assert whole["ahead_in_the_mean"]["met"] is True
    assert part["ahead_in_the_mean"]["met"] is None
    assert "not all that it asks for was run" in part["ahead_in_the_mean"]["note"]
    assert judge({**EQUAL, "cascade": 0.9}, partial=True)["ahead_in_the_mean"]["met"] is False


def test_opa_and_references_are_no_baselines(judge: Any) -> None:
    found = judge({**EQUAL, "opa": 0.95, "oracle": 0.99, "random": 0.95})
    assert found["at_least_every_baseline"]["met"] is True


def test_without_a_baseline_the_goal_is_open(judge: Any) -> None:
    levels = {arm: level for arm, level in EQUAL.items() if arm != "cascade"}
    goal = judge({**levels, "opa_split": 0.9})["ahead_in_the_mean"]
    assert goal["met"] is None
    assert "not run: cascade" in goal["note"]
    assert judge({**levels, "opa_split": 0.7})["ahead_in_the_mean"]["met"] is False


def test_in_time_accuracy_counts(judge: Any) -> None:
    found = judge({**EQUAL, "dynamic_ofa": 0.9}, met={"dynamic_ofa": 0.5})
    assert found["at_least_every_baseline"]["met"] is True
    (part,) = [p for p in found["ahead_in_the_mean"]["parts"] if p["label"] == "dynamic_ofa"]
    assert part["value"] == pytest.approx(0.8 - 0.45)


@pytest.mark.parametrize(
    ("met", "wanted"), [(1.0, True), (0.9925, None), (0.95, False), (0.0, False)]
)
def test_deadlines_met_under_every_load(judge: Any, met: float, wanted: bool | None) -> None:
    goal = judge(EQUAL, met={"opa": met})["deadlines_met"]
    assert goal["met"] is wanted
    assert goal["value"] == pytest.approx(met)
    assert [part["label"] for part in goal["parts"]] == [
        "opa_split, load 0", "opa, load 0", "opa_split, load 2", "opa, load 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gain", "wanted"), [(0.08, True), (0.066, None), (0.05, False), (-0.1, False)]
)
def test_the_gain_under_two_applications(judge: Any, gain: float, wanted: bool | None) -> None:
    goal = judge({**EQUAL, "opa_split": 0.8 + gain}, noise=0.02)["gain_under_two_applications"]
    assert goal["met"] is wanted
    assert goal["value"] == pytest.approx(gain, abs=0.005)


def test_the_gain_is_open_where_two_applications_were_not_run(judge: Any) -> None:
    goal = judge({**EQUAL, "opa_split": 0.95}, loads=(0, 1))["gain_under_two_applications"]
    assert (goal["met"], goal["value"]) == (None, None)
    assert "not run: dynamic_ofa under load 2" in goal["note"]


@pytest.mark.parametrize(
    ("points", "met", "value"),
    [
        ([point(0.5, 0.0, 0.01), point(0.9, 0.01, 0.02)], True, 0.5),
        ([point(0.5, -0.04, -0.01), point(0.7, 0.01, 0.02)], False, 0.7),
        ([point(0.5, -0.04, 0.01), point(0.7, 0.01, 0.02)], None, 0.7),
        ([point(0.7, -0.04, -0.02)], None, None),
        ([point(0.5, 0.01, 0.02, arm="opa")], None, None),
        ([], None, None),
    ],
)
def test_the_largest_accuracy_at_less_latency(
    judge: Any, points: list[Any], met: bool | None, value: float | None
) -> None:
    goal = judge(EQUAL, frontier={"points": points})["largest_at_less_latency"]
    assert (goal["met"], goal["value"]) == (met, value)
    assert len(goal["parts"]) == sum(p["arm"] == "opa_split" for p in points)
    assert judge(EQUAL)["largest_at_less_latency"]["met"] is None
