"""A session belongs to one thread; forks give others theirs, on the same engines."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opa_trt
from opa_trt.clock import VirtualClock
from opa_trt.errors import (
    DeviceMemoryError,
    EngineError,
    OpaError,
    RuntimeStateError,
    SessionBusy,
    SessionClosed,
)


@pytest.fixture
def session(machine: Any, toy_bundle: Path) -> opa_trt.Session:
    return machine.load(toy_bundle)


@pytest.fixture
def real(toy_bundle: Path, ticking: VirtualClock) -> opa_trt.Session:
    """The real little network on TorchScript."""
    return opa_trt.load(toy_bundle, backend="torchscript", clock=ticking)


def in_thread(work: Callable[[], Any]) -> Any:
    """What ``work`` gives or raises in another thread."""
    given: list[Any] = []

    def run() -> None:
        try:
            given.append(work())
        except OpaError as exc:
            given.append(exc)

    worker = threading.Thread(target=run)
    worker.start()
    worker.join(60)
    return given[0]


def whenever_medium_runs(session: Any, work: Callable[[], Any]) -> None:
    """Let the engine of that tail do ``work``."""

    def tail(inputs: Any) -> Any:
        work()
        return {"logits": torch.zeros(len(inputs["features"]), 5)}

    session._machinery.engines["medium"]._backend.outputs["medium"] = tail


def during(session: Any, toy: Any, work: Callable[[], Any]) -> Any:
    """What ``work`` gives or raises in another thread, while ``session`` answers a group."""
    given: list[Any] = []
    once = iter([work])  # a fork warms its engines up

    def run() -> None:
        for first in once:
            given.append(in_thread(first))

    whenever_medium_runs(session, run)
    assert set(session.infer(toy.images(8), 5.0).nodes) == {"medium"}
    return given[0]


# --- one thread at a time -----------------------------------------------------------------------


def test_a_second_thread_is_told_to_fork(session: Any, toy: Any) -> None:
    found = during(session, toy, lambda: session.infer(toy.images(1), 5.0))
    assert isinstance(found, SessionBusy)
    assert isinstance(found, RuntimeStateError)
    assert "toy.opa is answering a group" in str(found)
    assert "session.fork()" in found.remedy


def test_the_group_in_flight_is_answered_all_the_same(session: Any, toy: Any) -> None:
    during(session, toy, lambda: session.infer(toy.images(1), 5.0))
    assert session.metrics().images == 8
    assert session.infer(toy.images(8), 5.0).deadline_met


def test_another_policy_in_the_middle_of_a_group_is_refused(session: Any, toy: Any) -> None:
    found = during(session, toy, lambda: session.use("static:tiny"))
    assert isinstance(found, SessionBusy)
    assert set(session.infer(toy.images(8), math.inf).nodes) == {"large"}


def test_a_refused_group_does_not_count(session: Any, toy: Any) -> None:
    during(session, toy, lambda: session.infer(toy.images(1), 5.0))
    assert session.metrics().groups == 1


def test_threads_may_take_turns(session: Any, toy: Any) -> None:
    for _ in range(2):
        result = in_thread(lambda: session.infer(toy.images(8), 5.0))
        assert set(result.nodes) == {"medium"}
    assert session.metrics().groups == 2


def test_metrics_may_be_asked_at_any_time(session: Any, toy: Any) -> None:
    session.infer(toy.images(8), 2.0)
    found = during(session, toy, lambda: session.metrics())
    assert found.groups == 1


def test_closing_waits_for_the_group_in_flight(session: Any, toy: Any) -> None:
    closer = threading.Thread(target=session.close)
    whenever_medium_runs(session, closer.start)
    assert set(session.infer(toy.images(8), 5.0).nodes) == {"medium"}
    closer.join(60)
    with pytest.raises(SessionClosed):
        session.infer(toy.images(8), 5.0)


def test_closing_in_the_middle_of_the_threads_own_group_is_refused(session: Any, toy: Any) -> None:
    def close() -> None:
        with pytest.raises(SessionBusy):
            session.close()

    whenever_medium_runs(session, close)
    assert set(session.infer(toy.images(8), 5.0).nodes) == {"medium"}


# --- forks --------------------------------------------------------------------------------------


def test_a_fork_gives_the_same_logits(real: Any, toy: Any) -> None:
    images = toy.images(5)
    with real.fork() as fork:
        wanted = real.infer(images, math.inf).logits
        np.testing.assert_array_equal(fork.infer(images, math.inf).logits, wanted)


def test_forks_answer_in_their_threads_at_once(real: Any, toy: Any) -> None:
    count = 4
    sessions = [real, *(real.fork() for _ in range(count - 1))]
    ready, worst = threading.Barrier(count), [math.inf] * count

    def work(place: int) -> None:
        images = toy.images(4 + place, seed=place)
        wanted = toy.monolith("large", images)
        ready.wait(30)
        found = [sessions[place].infer(images, math.inf).logits for _ in range(20)]
        worst[place] = max(float(np.abs(logits - wanted).max()) for logits in found)

    workers = [threading.Thread(target=work, args=(place,)) for place in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert max(worst) <= 1e-4


def test_a_fork_is_made_while_its_parent_answers(session: Any, toy: Any) -> None:
    fork = during(session, toy, session.fork)
    assert set(fork.infer(toy.images(8), 3.0).nodes) == {"small"}


def test_each_learns_of_the_load_by_itself(session: Any, machine: Any, toy: Any) -> None:
    fork = session.fork()
    machine.slowdown = 4.0
    for _ in range(20):
        fork.infer(toy.images(8), 9.5)
    assert fork.slowdown > 2
    assert session.slowdown == 1.0
    assert session.fork().slowdown == 1.0


def test_each_counts_its_own_groups(session: Any, toy: Any) -> None:
    session.infer(toy.images(8), 5.0)
    fork = session.fork()
    fork.infer(toy.images(3), 5.0)
    assert (session.metrics().images, fork.metrics().images) == (8, 3)


def test_a_fork_decides_by_the_policy_that_its_parent_follows(session: Any, toy: Any) -> None:
    session.use("static", node="tiny")
    fork = session.fork()
    session.use("opa")
    assert set(fork.infer(toy.images(8), 100.0).nodes) == {"tiny"}
    assert set(session.infer(toy.images(8), 100.0).nodes) == {"large"}


def test_a_fork_has_buffers_of_its_own(session: Any) -> None:
    mine, its = (s._machinery.buffers["pioneer"]["features"] for s in (session, session.fork()))
    assert mine.lease(8).tensor().data_ptr() != its.lease(8).tensor().data_ptr()


def test_weights_are_not_copied(real: Any) -> None:
    fork = real.fork()
    for name, engine in real._machinery.engines.items():
        assert fork._machinery.engines[name] is not engine
        assert fork._machinery.engines[name]._module is engine._module


def test_a_fork_describes_the_same_bundle(session: Any) -> None:
    fork = session.fork()
    assert repr(fork) == repr(session)
    assert fork.profiles == session.profiles
    assert fork.route_ms("medium", 8) == session.route_ms("medium", 8)


def test_closing_a_fork_leaves_the_others(real: Any, toy: Any) -> None:
    fork, sibling = real.fork(), real.fork()
    fork.close()
    for left in (real, sibling):
        assert len(left.infer(toy.images(2), math.inf).labels) == 2
    with pytest.raises(SessionClosed):
        fork.infer(toy.images(2), math.inf)


def test_forks_outlive_their_parent(real: Any, toy: Any) -> None:
    fork = real.fork()
    real.close()
    gc.collect()
    images = toy.images(4)
    wanted = toy.monolith("large", images)
    np.testing.assert_allclose(fork.fork().infer(images, math.inf).logits, wanted, atol=1e-4)


def test_the_program_goes_with_the_last(real: Any) -> None:
    fork = real.fork()
    engines = [s._machinery.engines["large"] for s in (real, fork)]
    real.close()
    assert [engine._module is None for engine in engines] == [True, False]
    fork.close()
    assert [engine._module is None for engine in engines] == [True, True]


def test_a_closed_session_is_not_forked(session: Any) -> None:
    session.close()
    with pytest.raises(SessionClosed):
        session.fork()


def test_where_there_is_no_room_for_a_fork_none_is_left_half_made(
    session: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = session._machinery.engines
    kind, made, closed = type(engines["large"]), [], []
    fork, close = kind._fork, kind._close

    def forked(engine: Any) -> Any:
        if engine is engines["large"]:
            message = "CUDA out of memory"
            raise RuntimeError(message)
        made.append(fork(engine))
        return made[-1]

    monkeypatch.setattr(kind, "_fork", forked)
    monkeypatch.setattr(kind, "_close", lambda engine: (closed.append(engine), close(engine)))
    with pytest.raises(DeviceMemoryError, match="cannot fork large"):
        session.fork()
    assert closed == made
    assert len(made) == 4
    assert session.infer(toy.images(8), 5.0).deadline_met


def test_a_backend_that_cannot_fork_says_so(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(session._machinery.engines["large"])
    monkeypatch.delattr(kind, "_fork")
    with pytest.raises(EngineError, match="engines of null cannot be forked"):
        session.fork()
