"""A session counts what it does."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import opa_trt
from opa_trt.policies import STOP, Budget, Decision, PolicyBase, View
from opa_trt.runtime import Metrics
from opa_trt.runtime.metrics import WINDOW, Recorder
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node

TAILS = ("tiny", "small", "medium", "large")


@pytest.fixture
def session(machine: Any, toy_bundle: Path) -> opa_trt.Session:
    return machine.load(toy_bundle)


class Told(PolicyBase):
    """Sends each image where ``choices`` says, node by node."""

    name = "told"

    def __init__(self, choices: dict[str, Any]) -> None:
        self.choices = choices

    def step(self, view: View, budget: Budget, state: None) -> tuple[Decision, None]:
        choice = np.array(self.choices[view.node], dtype=np.int64)
        nothing = (math.nan,) * len(view.successors)
        latency = tuple(view.latency_ms[:, -1].tolist())
        left = budget.left_ms
        return Decision(choice, view.successors, latency, nothing, math.nan, left, True, ""), None


def follow(session: Any, **choices: Any) -> None:
    session._machinery.follow(Told(choices))


# --- counts -------------------------------------------------------------------------------------


def test_before_the_first_group_there_is_nothing(session: Any) -> None:
    found = session.metrics()
    assert (found.groups, found.images, found.window) == (0, 0, 0)
    assert set(found.nodes) == {"pioneer", *TAILS}
    assert set(found.nodes.values()) == set(found.decisions.values()) == {0}
    assert math.isnan(found.p99_ms)
    assert math.isnan(found.deadlines_met_share)
    assert str(found) == "no groups yet"


def test_groups_images_and_deadlines_are_counted(session: Any, toy: Any) -> None:
    for count, deadline in ((8, 5.0), (3, 9.0), (8, 0.5)):
        session.infer(toy.images(count), deadline)
    found = session.metrics()
    assert (found.groups, found.images) == (3, 19)
    assert (found.deadlines_met, found.deadlines_missed) == (2, 1)
    assert found.deadlines_met_share == pytest.approx(2 / 3)
    assert found.fallbacks == 1


def test_images_are_counted_by_the_node_that_answered(session: Any, toy: Any) -> None:
    for deadline in (5.0, 5.0, 9.0, 1.5):
        session.infer(toy.images(8), deadline)
    found = session.metrics()
    assert found.nodes == {"pioneer": 8, "tiny": 0, "small": 0, "medium": 16, "large": 8}
    assert found.decisions == {"tiny": 0, "small": 0, "medium": 2, "large": 1, "stop": 1}


def test_a_split_group_counts_wherever_it_went(session: Any, toy: Any) -> None:
    follow(session, pioneer=[STOP, 0, 2, 2, STOP, STOP, 0, 2])
    session.infer(toy.images(8), math.inf)
    found = session.metrics()
    assert found.nodes == {"pioneer": 3, "tiny": 2, "small": 0, "medium": 3, "large": 0}
    assert found.decisions == {"tiny": 1, "small": 0, "medium": 1, "large": 0, "stop": 1}
    assert sum(found.nodes.values()) == found.images == 8


def test_chunks_count_as_decisions_of_one_group(session: Any, toy: Any) -> None:
    follow(session, pioneer=[STOP] * 4 + [0] * 4)
    session.infer(toy.images(24), math.inf)
    found = session.metrics()
    assert found.groups == 1
    assert (found.decisions["stop"], found.decisions["tiny"]) == (3, 3)
    assert (found.nodes["pioneer"], found.nodes["tiny"]) == (12, 12)


def test_a_chain_counts_every_exit(machine: Any, invent: Any, toy: Any) -> None:
    both = (FEATURES, LOGITS)
    nodes = (
        Node("one", "one", IMAGES, both, ("two",)),
        Node("two", "two", FEATURES, both, ("three",)),
        Node("three", "three", FEATURES, (LOGITS,)),
    )
    machine.ms |= {"one": 1.0, "two": 1.0, "three": 1.0}
    session = machine.load(invent(nodes), policy="static")
    follow(session, one=[STOP, 0, 0, 0, 0], two=[0, STOP, STOP, 0])
    session.infer(toy.images(5), math.inf)
    found = session.metrics()
    assert found.nodes == {"one": 1, "two": 2, "three": 2}
    assert found.decisions == {"two": 1, "three": 1, "stop": 2}


def test_groups_whose_logits_are_not_finite_are_counted(
    machine: Any, toy: Any, toy_bundle: Path
) -> None:
    machine.outputs["pioneer"] = lambda inputs: {
        "logits": torch.full((len(inputs["images"]), 5), torch.nan)
    }
    session = machine.load(toy_bundle)
    session.infer(toy.images(8), 5.0)
    assert session.metrics().unreadable == 1
    assert "not finite in 1 group" in str(session.metrics())


# --- latencies ----------------------------------------------------------------------------------


def result(measured: float, predicted: float, deadline: float = 10.0) -> Any:
    """Of one image, as far as the recorder looks at it."""
    return SimpleNamespace(
        measured_ms=measured, predicted_ms=predicted, deadline_ms=deadline, labels=[0],
        fallback=False, steps=(), logits=np.zeros((1, 5), np.float32),
    )  # fmt: skip


@pytest.fixture
def recorder(session: Any) -> Recorder:
    return Recorder(session.tree)


def test_percentiles_are_those_of_the_groups(recorder: Recorder) -> None:
    for ms in range(1, 101):
        recorder.add(result(float(ms), 1.0))
    found = recorder.metrics(1.0)
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == pytest.approx((50.5, 95.05, 99.01))
    assert found.window == 100


def test_percentiles_are_taken_over_the_latest_groups(recorder: Recorder) -> None:
    for ms in (*[100.0] * 50, *[1.0] * WINDOW):
        recorder.add(result(ms, 1.0, 10.0))
    found = recorder.metrics(1.0)
    assert found.window == WINDOW
    assert found.p99_ms == 1.0
    assert (found.groups, found.deadlines_missed) == (WINDOW + 50, 50)


def test_the_error_of_predictions_is_absolute_and_relative(recorder: Recorder) -> None:
    recorder.add(result(10.0, 8.0))
    recorder.add(result(10.0, 14.0))
    assert recorder.metrics(1.0).prediction_error == pytest.approx(0.3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_answer_that_is_not_finite_is_counted(recorder: Recorder, value: float) -> None:
    recorder.add(result(1.0, 1.0))
    wrong = result(1.0, 1.0)
    wrong.logits = np.full((1, 5), value, np.float32)
    recorder.add(wrong)
    assert recorder.metrics(1.0).unreadable == 1


@pytest.mark.parametrize("measured", [-5.0, 0.0, math.inf, math.nan])
def test_what_no_clock_measures_leaves_the_rest(recorder: Recorder, measured: float) -> None:
    for ms in (10.0, measured, 10.0):
        recorder.add(result(ms, 10.0))
    found = recorder.metrics(1.0)
    assert found.groups == 3
    assert found.prediction_error == 0.0
    assert math.isfinite(found.p99_ms)


def test_the_slowdown_is_the_present_one(session: Any, machine: Any, toy: Any) -> None:
    machine.slowdown = 3.0
    for _ in range(30):
        session.infer(toy.images(8), 20.0)
    assert session.metrics().slowdown == session.slowdown > 2.5


# --- as a value ---------------------------------------------------------------------------------


def test_metrics_do_not_change(session: Any, toy: Any) -> None:
    before = session.metrics()
    session.infer(toy.images(8), 5.0)
    assert before.groups == 0
    assert before.nodes["medium"] == 0
    with pytest.raises(FrozenInstanceError):
        before.groups = 7
    assert session.metrics() == session.metrics()


def test_a_dictionary_goes_into_json(session: Any, toy: Any) -> None:
    assert json.loads(json.dumps(session.metrics().to_dict(), allow_nan=False))["p50_ms"] is None
    session.infer(toy.images(8), 5.0)
    found = json.loads(json.dumps(session.metrics().to_dict(), allow_nan=False))
    assert found["deadlines_met_share"] == 1.0
    assert found["p50_ms"] == pytest.approx(5.0)
    assert found["nodes"]["medium"] == 8


def test_people_read_what_happened(session: Any, toy: Any) -> None:
    for deadline in (5.0, 5.0, 0.5):
        session.infer(toy.images(8), deadline)
    first, second, *others = str(session.metrics()).splitlines()
    assert first == "24 images in 3 groups; 66.7% of deadlines met, 1 missed; 1 fallback"
    assert second.startswith("p50 5.00 ms, p95 5.00 ms, p99 5.00 ms over the last 3 groups; ")
    assert others == [
        "images answered: medium 16, pioneer 8", "decisions: medium 2, stop 1",
    ]  # fmt: skip


def test_metrics_outlive_the_session(session: Any, toy: Any) -> None:
    session.infer(toy.images(8), 5.0)
    session.close()
    assert session.metrics().groups == 1


def test_metrics_are_a_plain_value(session: Any) -> None:
    found = session.metrics()
    assert replace(found, groups=4).deadlines_met_share == 0.0
    assert isinstance(found, Metrics)
