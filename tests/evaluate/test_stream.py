"""Streams that drift, policies that take turns on them, and deadlines between the routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opa_trt.errors import SessionClosed
from opa_trt.evaluate.stream import (
    Answer,
    Arm,
    StreamGroup,
    choose_deadlines,
    make_stream,
    run_arms,
)
from opa_trt.progress import Progress
from opa_trt.runtime import Result, Session
from opa_trt.training.data import Images
from opa_trt.training.degrade import drift

FAMILIES = ("noise", "contrast")
ARMS = (("static:smallest", "small"), ("static:largest", "large"), ("opa", "opa"))
GROUPS, SIZE = 6, 5


@pytest.fixture(scope="module")
def images() -> Images:
    """Forty random images of the little network's five classes."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    return Images(pixels, draw.integers(0, 5, 40), ("ant", "bee", "cat", "dog", "elk"))


@pytest.fixture
def session(machine: Any, toy_bundle: Path) -> Session:
    """The little network on a virtual clock: 2 ms to 9 ms for a full batch of 8."""
    opened: Session = machine.load(toy_bundle)
    return opened


@pytest.fixture
def stream(images: Images) -> list[StreamGroup]:
    return make_stream(images, FAMILIES, GROUPS, SIZE, seed=3)


class Advances(Progress):
    def __init__(self) -> None:
        self.done: list[int] = []

    def advance(self, done: int, note: str = "") -> None:
        self.done.append(done)


def row_of(images: Images, pixels: np.ndarray[Any, Any]) -> int:
    """Which of ``images`` these pixels are."""
    return int(np.flatnonzero((images.pixels == pixels).all(axis=(1, 2, 3)))[0])


# --- streams ------------------------------------------------------------------------------------


def test_a_stream_has_as_many_groups_of_as_many_images(stream: list[StreamGroup]) -> None:
    assert [group.pixels.shape for group in stream] == [(SIZE, 3, 16, 16)] * GROUPS
    assert [group.labels.shape for group in stream] == [(SIZE,)] * GROUPS


def test_a_stream_drifts_as_degradations_do(images: Images) -> None:
    found = make_stream(images, FAMILIES, 20, SIZE, seed=3)
    assert [(group.family, group.severity) for group in found] == drift(20, FAMILIES, 3)


def test_a_stream_begins_and_ends_clean(stream: list[StreamGroup]) -> None:
    assert (stream[0].family, stream[-1].family) == ("clean", "clean")


def test_without_families_a_stream_stays_clean(images: Images) -> None:
    found = make_stream(images, (), GROUPS, SIZE, seed=3)
    assert {(group.family, group.severity) for group in found} == {("clean", 0)}


def test_clean_groups_are_images_beside_their_labels(images: Images) -> None:
    for group in make_stream(images, (), GROUPS, SIZE, seed=3):
        rows = [row_of(images, pixels) for pixels in group.pixels]
        assert group.labels.tolist() == images.labels[rows].tolist()


def test_a_group_repeats_no_image_where_there_are_enough(images: Images) -> None:
    (group,) = make_stream(images, (), 1, len(images), seed=3)
    assert sorted(row_of(images, pixels) for pixels in group.pixels) == list(range(len(images)))


def test_a_group_larger_than_the_pool_repeats_images(images: Images) -> None:
    (group,) = make_stream(images, (), 1, 50, seed=3)
    assert len(group.pixels) == 50


def test_hard_groups_are_degraded(images: Images) -> None:
    hard = next(g for g in make_stream(images, FAMILIES, 20, SIZE, seed=3) if g.severity == 3)
    assert not any((images.pixels == pixels).all(axis=(1, 2, 3)).any() for pixels in hard.pixels)


def test_a_seed_makes_the_same_stream(images: Images) -> None:
    one, two, other = (make_stream(images, FAMILIES, GROUPS, SIZE, seed=s) for s in (3, 3, 4))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one, two, strict=True))
    assert not all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))


# --- policies in turns --------------------------------------------------------------------------


def test_there_is_an_arm_for_every_deadline_and_policy(
    session: Session, stream: list[StreamGroup]
) -> None:
    found = run_arms(session, stream, ARMS, (5.0, 50.0))
    assert [(arm.deadline_ms, arm.policy, arm.label) for arm in found] == [
        (deadline, *arm) for deadline in (5.0, 50.0) for arm in ARMS
    ]


def test_every_arm_answers_every_group(session: Session, stream: list[StreamGroup]) -> None:
    assert {len(arm.answers) for arm in run_arms(session, stream, ARMS, (5.0, 50.0))} == {GROUPS}


def test_equal_deadlines_are_runs_of_their_own(session: Session, stream: list[StreamGroup]) -> None:
    assert {len(arm.answers) for arm in run_arms(session, stream, ARMS, (5.0, 5.0))} == {GROUPS}


def test_static_arms_keep_to_their_route(session: Session, stream: list[StreamGroup]) -> None:
    small, large, _ = run_arms(session, stream, ARMS, (5.0,))
    assert {answer.node for answer in small.answers} == {"tiny"}
    assert {answer.node for answer in large.answers} == {"large"}


def test_answers_have_the_latency_of_their_route(
    machine: Any, session: Session, stream: list[StreamGroup]
) -> None:
    small, large, _ = run_arms(session, stream, ARMS, (5.0,))
    for arm, tail in ((small, "tiny"), (large, "large")):
        expected = machine.cost("pioneer", SIZE) + machine.cost(tail, SIZE)
        assert [answer.ms for answer in arm.answers] == pytest.approx([expected] * GROUPS)


def test_a_deadline_is_met_by_the_fast_and_missed_by_the_slow(
    session: Session, stream: list[StreamGroup]
) -> None:
    small, large, opa = run_arms(session, stream, ARMS, (4.0,))
    assert all(answer.in_time for answer in (*small.answers, *opa.answers))
    assert not any(answer.in_time for answer in large.answers)


def test_opa_takes_the_best_tail_that_fits(session: Session, stream: list[StreamGroup]) -> None:
    tight, loose = (run_arms(session, stream, ARMS[2:], (ms,))[0] for ms in (4.0, 1000.0))
    assert {answer.node for answer in loose.answers} == {"large"}
    assert {answer.node for answer in tight.answers}.isdisjoint({"large", "medium"})


def test_accuracy_is_that_of_the_answers(session: Session, stream: list[StreamGroup]) -> None:
    arm = run_arms(session, stream, ARMS[:1], (5.0,))[0]
    session.use("static:smallest")
    expected = [session.infer(g.pixels, 5.0).accuracy(g.labels) for g in stream]
    assert [answer.accuracy for answer in arm.answers] == expected


def test_the_policies_take_turns_on_forks_of_the_session(
    session: Session, stream: list[StreamGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[Session] = []
    asked: list[int] = []
    infer = Session.infer

    def noted(self: Session, images: Any, deadline_ms: float) -> Result:
        if self not in forks:
            forks.append(self)
        asked.append(forks.index(self))
        return infer(self, images, deadline_ms)

    monkeypatch.setattr(Session, "infer", noted)
    run_arms(session, stream, ARMS, (5.0,))
    assert session not in forks
    assert asked[:6] == [0, 1, 2, 1, 2, 0]
    with pytest.raises(SessionClosed):
        forks[0].infer(stream[0].pixels, 5.0)


def test_progress_hears_of_every_group(session: Session, stream: list[StreamGroup]) -> None:
    heard = Advances()
    run_arms(session, stream, ARMS, (5.0, 50.0), heard)
    assert heard.done == list(range(1, 2 * GROUPS + 1))


# --- summaries ----------------------------------------------------------------------------------


def arm_of(answers: Sequence[Answer]) -> Arm:
    return Arm("opa", "opa", 7.0, tuple(answers))


ANSWERS = [
    Answer(accuracy=1.0, in_time=True, ms=1.0, node="small", predicted_ms=1.0),
    Answer(accuracy=0.5, in_time=False, ms=9.0, node="large", predicted_ms=5.0),
    Answer(accuracy=0.8, in_time=True, ms=3.0, node="small", predicted_ms=3.0),
    Answer(accuracy=0.1, in_time=True, ms=2.0, node="tiny", predicted_ms=3.0),
]


def test_a_summary_says_deadline_and_policy() -> None:
    summary = arm_of(ANSWERS).summary()
    assert (summary["deadline_ms"], summary["policy"]) == (7.0, "opa")


def test_a_summary_has_the_means_over_groups() -> None:
    summary = arm_of(ANSWERS).summary()
    assert summary["accuracy"] == pytest.approx(0.6)
    assert summary["deadlines_met"] == pytest.approx(0.75)


def test_a_late_answer_counts_as_wrong_in_time() -> None:
    assert arm_of(ANSWERS).summary()["in_time_accuracy"] == pytest.approx(1.9 / 4)


def test_a_summary_has_the_quantiles_of_latency() -> None:
    summary = arm_of(ANSWERS).summary()
    assert summary["p50_ms"] == pytest.approx(2.5)
    assert summary["p99_ms"] == pytest.approx(3.0 + 6.0 * 0.97)


def test_a_summary_counts_who_answered() -> None:
    assert arm_of(ANSWERS).summary()["nodes"] == {"small": 2, "large": 1, "tiny": 1}


def test_a_summary_of_one_group_is_that_group() -> None:
    summary = arm_of([replace(ANSWERS[0], ms=4.0)]).summary()
    assert summary["p50_ms"] == summary["p99_ms"] == 4.0


# --- deadlines ----------------------------------------------------------------------------------


def test_deadlines_lie_between_the_fastest_and_the_slowest_route(
    machine: Any, session: Session
) -> None:
    fastest = machine.cost("pioneer", 8) + machine.cost("tiny", 8)
    slowest = machine.cost("pioneer", 8) + machine.cost("large", 8)
    ends = choose_deadlines(session, 8, (0.0, 1.0))
    assert ends == pytest.approx([1.1 * fastest, 1.2 * slowest], rel=0.05)


def test_deadlines_have_two_digits(session: Session) -> None:
    for deadline in choose_deadlines(session, 8, (0.0, 0.45, 0.77, 1.0)):
        assert deadline == float(f"{deadline:.2g}")


def test_deadlines_grow_with_their_fraction(session: Session) -> None:
    found = choose_deadlines(session, 8, (0.0, 0.3, 0.6, 1.0))
    assert found == sorted(found)


def test_larger_groups_have_later_deadlines(session: Session) -> None:
    (small,), (large,) = (choose_deadlines(session, size, (0.5,)) for size in (8, 80))
    assert large > 5 * small


def test_a_route_that_stops_at_the_pioneer_sets_no_deadline(machine: Any, session: Session) -> None:
    (lowest,) = choose_deadlines(session, 8, (0.0,))
    assert lowest > 1.5 * machine.cost("pioneer", 8)
