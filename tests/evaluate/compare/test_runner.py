"""Every arm on the same groups, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opa_trt.errors import ConfigError
from opa_trt.evaluate.compare import Comparison, Settings
from opa_trt.evaluate.compare.arms import ARMS, largest_network, largest_of
from opa_trt.evaluate.compare.cells import CONTENT, FRONTIER, SIZE, STREAM, TRIAL
from opa_trt.evaluate.compare.deadlines import FRONTIER as FRACTIONS
from opa_trt.evaluate.compare.runner import Runner
from opa_trt.progress import Progress
from opa_trt.runtime import Session
from opa_trt.tree import FEATURES, IMAGES, LOGITS, WHOLE, Node, Tree

SMALL_ARMS = ["opa_split", "opa", "dynamic_ofa", "static_best", "static_largest",
              "oracle", "oracle_cv", "random"]  # fmt: skip


class Stops(Progress):
    """Ctrl-C at the n-th step of a stage called so."""

    def __init__(self, stage: str, after: int) -> None:
        self.stage, self.left, self.present = stage, after, ""

    def start(self, stage: str, total: int | None = None) -> None:
        self.present = stage

    def advance(self, done: int, note: str = "") -> None:
        if self.stage in f"{self.present} {note}":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def test_every_arm_runs_where_the_bundle_has_its_nodes(compared: Comparison) -> None:
    assert compared.findings.arms == tuple(arm.name for arm in ARMS)
    assert compared.findings.left_out == {}


def test_arms_without_nodes_are_left_out_and_it_is_said_why(
    stage: Any, data: Any, little: Settings
) -> None:
    found = stage.compare(data, little)
    assert list(found.findings.arms) == SMALL_ARMS
    assert found.report["left_out"] == {
        "branchynet": "this bundle has no nodes for branchynet.",
        "cascade": "this bundle has no nodes for cascade.",
    }


def test_pioneers_at_two_resolutions_are_compared_as_one_system(
    two_entries: Any, data: Any, little: Settings
) -> None:
    found = two_entries.compare(data, little)
    assert list(found.findings.arms) == SMALL_ARMS
    tightest, *_, widest = found.findings.of(STREAM)
    low = found.findings.nodes.index("low")
    assert all((taken.node == low).all() for taken in tightest.taken["opa"])
    assert all((taken.node > low + 1).all() for taken in widest.taken["opa"])
    assert found.report["loads"][0]["low_ms"] < 1.2  # the pioneer with the fewest MACs counts


def test_each_load_has_the_stream_under_every_deadline(
    compared: Comparison, settings: Settings
) -> None:
    for load in settings.loads:
        cells = compared.findings.of(STREAM, load)
        assert [cell.judged for cell in cells] == [False, False, True, True, True]
        assert all(cell.groups == settings.groups for cell in cells)
    assert [cell.size for cell in compared.findings.of(SIZE)] == [1, 4]
    assert len(compared.findings.of(FRONTIER)) == len(FRACTIONS)
    assert not compared.findings.of(CONTENT)


def test_loads_and_deadlines_have_the_same_groups(compared: Comparison) -> None:
    first, *others = compared.findings.of(STREAM)
    for cell in others:
        for one, other in zip(first.draws, cell.draws, strict=True):
            assert (one.rows == other.rows).all()


def test_clean_content_gets_a_stretch_of_its_own(stage: Any, data: Any, little: Settings) -> None:
    found = stage.compare(data, replace(little, families=(), groups=14)).findings
    (cell,) = found.of(CONTENT)
    assert {draw.family for draw in cell.draws} == {"clean", "low_light", "blur", "noise"}
    assert {draw.family for draw in found.of(STREAM)[0].draws} == {"clean"}


def test_arms_take_turns_that_rotate(stage: Any, data: Any, little: Settings) -> None:
    found = stage.compare(data, little).findings
    cell = found.of(STREAM)[0]
    for index in range(cell.groups):
        turns = {arm: cell.taken[arm][index].turn for arm in found.arms}
        order = sorted(turns, key=lambda arm: turns[arm])
        first = index % len(order)
        assert order == [*found.arms[first:], *found.arms[:first]]


def test_groups_before_the_first_are_run_and_not_counted(
    stage: Any, data: Any, little: Settings
) -> None:
    cell = stage.compare(data, little).findings.of(STREAM)[0]
    arms = len(cell.taken)
    assert min(taken[0].turn for taken in cell.taken.values()) == little.warm_up * arms


def test_loads_are_started_for_trials_and_for_every_deadline(
    stage: Any, data: Any, little: Settings
) -> None:
    stage.compare(data, replace(little, loads=(2, 0), groups=2, warm_up=0))
    extra = len(FRACTIONS) + 2 * len(little.group_sizes)
    assert stage.loads == [2] + [0] * (1 + 5 + extra) + [2] * (1 + 5)  # at first whether it can be


def test_trials_are_steps_beside_the_turns(stage: Any, data: Any, little: Settings) -> None:
    found = stage.compare(data, little).findings
    steps = np.array(found.steps)
    ends, runs = 5, 2 * 5 - 1  # every route but the pioneer's own has two engines
    assert {size for _, size in found.trials} == {8, 2}
    assert all(len(trials.ms) == ends for trials in found.trials.values())
    per_size = [little.trials, little.trials_of(2)]
    assert (steps[:, 1] == TRIAL).sum() == sum(runs * trials for trials in per_size)


def test_runs_are_noted_with_the_rows_that_engines_ran_on(
    compared: Comparison, settings: Settings
) -> None:
    steps = np.array(compared.findings.steps)
    sizes = {settings.group_size, *settings.group_sizes, 1, 4, 8}
    assert {int(images) for images in steps[:, 3]} <= sizes


def test_every_image_is_answered_by_some_node_rightly_or_not(compared: Comparison) -> None:
    found = compared.findings
    for cell in found.of(STREAM):
        for index, taken in enumerate(cell.taken["opa_split"]):
            assert taken.node.shape == taken.right.shape == cell.draws[index].rows.shape
            assert taken.accuracy == taken.right.mean()


def test_the_cross_validated_oracle_is_scored_on_half_of_a_group(compared: Comparison) -> None:
    cell = compared.findings.of(STREAM)[-1]
    scores = {taken.accuracy * 4 for taken in cell.taken["oracle_cv"]}
    assert scores <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert any(t.accuracy != t.right.mean() for t in cell.taken["oracle_cv"])


def test_the_largest_network_is_reached_the_shortest_way() -> None:
    """Behind a pioneer that it does not read, and by itself, it is the same network."""
    first = Node("first", "first", IMAGES, (FEATURES, LOGITS), ("on", "again"), macs=10)
    on = Node("on", "on", FEATURES, (LOGITS,), macs=30)
    again = Node("again", "alone", IMAGES, (LOGITS,), macs=35)
    alone = Node("alone", "alone", IMAGES, (LOGITS,), macs=35, system=WHOLE)
    assert largest_network(Tree((first, on, replace(again, macs=45), alone))) == "again"
    assert largest_network(Tree((first, on, again, replace(alone, macs=45)))) == "alone"
    assert largest_network(Tree((first, on, again, alone))) == "on"
    larger = replace(again, macs=60), replace(alone, macs=60)
    assert largest_network(Tree((first, on, *larger))) == "alone"
    assert largest_of(Tree((first, on, *larger))) == "again"


def test_the_largest_network_answers_as_recorded(compared: Comparison) -> None:
    cell = compared.findings.of(STREAM)[0]
    place = compared.findings.nodes.index("large")
    assert all((taken.node == place).all() for taken in cell.taken["static_largest"])


def test_interrupted_it_keeps_what_is_finished(stage: Any, data: Any, little: Settings) -> None:
    found = stage.compare(data, replace(little, groups=6), progress=Stops("stream", 5))
    assert found.report["partial"] is True
    (cell,) = found.findings.of(STREAM)
    assert cell.groups == 4
    assert {row["groups"] for row in found.report["results"]} == {4}
    assert found.report["frontier"] is None
    assert found.report["group_sizes"] == []
    assert all(goal["met"] is None for goal in found.report["goals"])


def test_where_it_is_cut_short_whole_deadlines_count(
    stage: Any, data: Any, little: Settings
) -> None:
    """A warm-up and six groups at each of three deadlines, one of them judged, then a few."""
    found = stage.compare(data, replace(little, groups=6), progress=Stops("stream", 3 * 7 + 3))
    *_, before, last = (cell for cell in found.findings.cells if cell.phase == STREAM)
    assert before.judged
    assert (before.complete, last.complete) == (True, False)
    assert 0 < last.groups < 6
    assert {row["groups"] for row in found.report["means"]} == {6}


def failing(self: Runner, *given: Any) -> None:
    """In place of a part of a comparison."""
    message = "the applications ended."
    raise ConfigError(message)


def test_a_failure_keeps_what_is_finished(
    stage: Any, data: Any, little: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "_frontier", failing)
    found = stage.compare(data, little)
    assert found.report["partial"] is True
    assert found.report["results"]


def test_a_failure_at_the_first_deadline_is_told(
    stage: Any, data: Any, little: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "_group", failing)
    with pytest.raises(ConfigError, match="the applications ended"):
        stage.compare(data, little)


def test_a_load_that_cannot_be_is_refused_before_anything_runs(
    stage: Any, data: Any, little: Settings
) -> None:
    refused: list[int] = []

    @contextmanager
    def background(load: int) -> Iterator[None]:
        refused.append(load)
        message = f"{load} background applications."
        raise ConfigError(message)
        yield

    with pytest.raises(ConfigError, match="100 background applications"):
        stage.compare(data, replace(little, loads=(0, 100)), background=background)
    assert refused == [100]


def test_interrupted_before_the_first_group_there_is_nothing(
    stage: Any, data: Any, little: Settings
) -> None:
    found = stage.compare(data, little, progress=Stops("routes", 1))
    assert found.report["partial"] is True
    assert found.report["results"] == []


def test_interrupted_while_answers_are_recorded_it_ends(
    stage: Any, data: Any, little: Settings
) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.compare(data, little, progress=Stops("answers", 1))


def test_forks_are_closed_in_the_end(
    stage: Any, data: Any, little: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Session] = []
    fork = Session.fork

    def counted(session: Session) -> Session:
        opened.append(fork(session))
        return opened[-1]

    monkeypatch.setattr(Session, "fork", counted)
    stage.compare(data, little, progress=Stops("frontier", 2))
    assert opened
    assert all(session._closed for session in opened)
