"""Decisions are told as they are made, and whoever hears them can do no harm."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import opa_trt
from opa_trt.errors import ConfigError
from opa_trt.policies import Decision


@pytest.fixture
def session(machine: Any, toy_bundle: Path) -> opa_trt.Session:
    return machine.load(toy_bundle)


def test_each_decision_is_told_with_its_node_and_group(
    machine: Any, toy: Any, toy_bundle: Path
) -> None:
    heard: list[tuple[Any, ...]] = []
    session = machine.load(toy_bundle, on_decision=lambda *told: heard.append(told))
    first = session.infer(toy.images(8), 5.0)
    session.infer(toy.images(16), 20.0)
    assert [(node, group) for _, node, group in heard] == [
        ("pioneer", 0), ("pioneer", 1), ("pioneer", 1),
    ]  # fmt: skip
    assert heard[0][0] is first.decision


def test_it_is_told_before_the_successor_runs(session: Any, machine: Any, toy: Any) -> None:
    at: list[float] = []
    session.on_decision = lambda *_: at.append(machine.clock.now_ms())
    before = machine.clock.now_ms()
    session.infer(toy.images(8), 5.0)
    assert at == [pytest.approx(before + 1.0)]


def test_what_it_takes_is_learned_as_overhead(session: Any, machine: Any, toy: Any) -> None:
    session.on_decision = lambda *_: machine.clock.advance(2.0)
    late = session.infer(toy.images(8), 5.0)
    again = session.infer(toy.images(8), 5.0)
    assert (late.deadline_met, again.deadline_met) == (False, True)
    assert set(again.nodes) == {"small"}


def test_unreadable_logits_are_told_too(session: Any, toy: Any) -> None:
    heard: list[Decision] = []
    engine = session._machinery.engines["pioneer"]
    engine._backend.outputs["pioneer"] = lambda inputs: {"logits": torch.full((8, 5), torch.nan)}
    session.on_decision = lambda decision, *_: heard.append(decision)
    session.infer(toy.images(8), 5.0)
    assert heard[0].notes == {"unreadable": True}


def test_its_errors_are_logged_once_and_lose_no_group(
    session: Any, toy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        message = "no such column"
        raise KeyError(message)

    session.on_decision = fail
    with caplog.at_level(logging.ERROR, logger="opa_trt"):
        results = [session.infer(toy.images(8), 5.0) for _ in range(3)]
    assert all(set(found.nodes) == {"medium"} for found in results)
    assert caplog.text.count("on_decision fails") == 1
    assert "no such column" in caplog.text
    session.on_decision = fail  # set anew, it is logged anew
    session.infer(toy.images(8), 5.0)
    assert caplog.text.count("on_decision fails") == 2


def test_it_may_be_taken_away(session: Any, toy: Any) -> None:
    heard: list[Any] = []
    session.on_decision = lambda *told: heard.append(told)
    session.on_decision = None
    session.infer(toy.images(8), 5.0)
    assert (heard, session.on_decision) == ([], None)


def test_a_fork_takes_it_over_and_counts_its_own_groups(session: Any, toy: Any) -> None:
    heard: list[int] = []
    session.on_decision = lambda _, node, group: heard.append(group)
    for _ in range(2):
        session.infer(toy.images(8), 5.0)
    session.fork().infer(toy.images(8), 5.0)
    assert heard == [0, 1, 0]


def test_what_cannot_be_called_is_refused(session: Any, machine: Any, toy_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="on_decision is a str"):
        machine.load(toy_bundle, on_decision="print")
    with pytest.raises(ConfigError, match="on_decision is a int"):
        session.on_decision = 5


def test_it_cannot_use_the_session_it_hears_of(
    session: Any, toy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session.on_decision = lambda *_: session.use("static:tiny")
    assert set(session.infer(toy.images(8), 5.0).nodes) == {"medium"}
    assert "is answering a group" in caplog.text
