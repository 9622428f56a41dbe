"""What goes wrong at run time costs a group at most, and never the session."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opa_trt
from opa_trt.backends import backend
from opa_trt.bundle import Bundle
from opa_trt.errors import EngineError
from opa_trt.policies import Budget, Decision, PolicyBase, View
from opa_trt.runtime.engines import open_loader
from opa_trt.runtime.margin import WINDOW
from opa_trt.runtime.overheads import Kind
from opa_trt.store import EngineStore

JUMPS = [-1e9, -3.0, 1e3, 1e12, math.inf, math.nan]


@pytest.fixture
def session(machine: Any, toy_bundle: Path) -> opa_trt.Session:
    return machine.load(toy_bundle)


def once(session: Any, node: str, work: Any) -> None:
    """Let the next run of a node's engine do ``work``, too."""
    outputs = session._machinery.engines[node]._backend.outputs
    sizes = {"logits": (5,)} if node != "pioneer" else {"logits": (5,), "features": (4, 4, 4)}

    def run(inputs: Any) -> Any:
        del outputs[node]
        work()
        count = len(next(iter(inputs.values())))
        return {name: torch.zeros(count, *size) for name, size in sizes.items()}

    outputs[node] = run


def answered_by(session: Any, toy: Any, deadline: float = 5.0) -> set[str]:
    result = session.infer(toy.images(8), deadline)
    assert np.isfinite(result.logits).all()
    return {str(name) for name in result.nodes}


# --- clocks that jump ---------------------------------------------------------------------------


class Jumping:
    """The machine's clock, which may be set."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.offset = clock, 0.0

    def now_ms(self) -> float:
        """The present, in ms."""
        return float(self.clock.now_ms() + self.offset)


@pytest.fixture
def clock(session: Any, machine: Any) -> Jumping:
    session._machinery.clock = Jumping(machine.clock)
    return session._machinery.clock


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("node", ["pioneer", "medium"])
@pytest.mark.parametrize("before", [0, 30])
def test_a_clock_that_is_set_during_a_run_is_forgotten(
    session: Any, clock: Jumping, toy: Any, node: str, before: int, jump: float
) -> None:
    for _ in range(before):
        assert answered_by(session, toy) == {"medium"}
    once(session, node, lambda: setattr(clock, "offset", jump))
    answered_by(session, toy)
    clock.offset = 0.0 if not math.isfinite(jump) else jump
    assert 0.5 < session.slowdown < 2
    for _ in range(40):
        answered_by(session, toy)
    assert session.slowdown == pytest.approx(1.0, rel=0.01)
    assert answered_by(session, toy, 5.5) == {"medium"}
    assert math.isfinite(session.metrics().p99_ms)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_is_set_during_a_decision_is_forgotten(
    session: Any, clock: Jumping, toy: Any, jump: float
) -> None:
    session.on_decision = lambda *_: setattr(clock, "offset", jump)
    answered_by(session, toy)
    session.on_decision = None
    clock.offset = 0.0 if not math.isfinite(jump) else jump
    assert answered_by(session, toy) == {"medium"}


def test_what_the_runtime_itself_takes_is_learned_however_long(
    session: Any, machine: Any, toy: Any
) -> None:
    session.on_decision = lambda *_: machine.clock.advance(500.0)  # the tail takes 4 ms
    for _ in range(2):
        assert answered_by(session, toy) == {"medium"}
    assert session._machinery.latency.overheads.ms(Kind.WHOLE) == pytest.approx(500.0)
    assert answered_by(session, toy) == {"pioneer"}


def test_the_runtimes_own_time_is_learned_anew_where_nothing_fits_for_long(
    session: Any, machine: Any, toy: Any
) -> None:
    session.on_decision = lambda *_: machine.clock.advance(20.0)  # a pause that may happen
    assert answered_by(session, toy, 6.0) == {"medium"}
    session.on_decision = None
    assert answered_by(session, toy, 6.0) == {"pioneer"}
    for _ in range(WINDOW):
        answered_by(session, toy, 6.0)
    assert answered_by(session, toy, 6.0) == {"medium"}


# --- deadlines, policies, engines ---------------------------------------------------------------


def test_a_deadline_shorter_than_the_decision_is_answered_by_the_entry(
    session: Any, machine: Any, toy: Any
) -> None:
    session.on_decision = lambda *_: machine.clock.advance(3.0)
    result = session.infer(toy.images(8), 1.5)
    assert set(result.nodes) == {"pioneer"}
    assert result.fallback
    assert not result.deadline_met
    assert result.measured_ms == pytest.approx(4.0)


class Failing(PolicyBase):
    """Raises whenever it is asked."""

    name = "failing"

    def step(self, view: View, budget: Budget, state: Any) -> tuple[Decision, Any]:
        raise ZeroDivisionError


def test_a_policys_error_passes_on_and_the_session_stays_usable(session: Any, toy: Any) -> None:
    session._machinery.follow(Failing())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            session.infer(toy.images(8), 5.0)
    session.use("opa")
    assert answered_by(session, toy) == {"medium"}
    assert session.metrics().groups == 1


def test_an_engines_error_passes_on_and_the_session_stays_usable(session: Any, toy: Any) -> None:
    def fail() -> None:
        message = "the vendor gave up"
        raise RuntimeError(message)

    once(session, "medium", fail)
    with pytest.raises(EngineError, match="the vendor gave up"):
        session.infer(toy.images(8), 5.0)
    assert answered_by(session, toy) == {"medium"}


# --- profiles -----------------------------------------------------------------------------------


def test_a_profile_measured_for_another_engine_is_refused(toy_bundle: Path, ticking: Any) -> None:
    loader = open_loader(Bundle(toy_bundle), backend="torchscript", clock=ticking)
    engines = loader.engines()
    loader.profiles(engines)
    tiny, large = engines["tiny"], engines["large"]
    assert tiny.key != large.key
    assert loader.known_profile(large) is not None
    store = EngineStore()
    found = store.profile(tiny.key)
    assert found is not None
    store.put_profile(large.key, found)  # as if its file had been renamed
    assert loader.known_profile(large) is None
    assert loader.known_profile(tiny) is not None


@pytest.mark.parametrize("ms", [math.nan, math.inf, -1.0])
def test_a_profile_that_no_clock_measured_is_refused(
    toy_bundle: Path, ticking: Any, ms: float
) -> None:
    loader = open_loader(Bundle(toy_bundle), backend="torchscript", clock=ticking)
    engines = loader.engines()
    loader.profiles(engines)
    engine, store = engines["large"], EngineStore()
    values = json.loads(json.dumps(store.profile(engine.key)))
    values["ms"][1][0] = ms
    store.put_profile(engine.key, values)
    assert loader.known_profile(engine) is None


def test_threads_of_another_number_have_another_profile(toy_bundle: Path, ticking: Any) -> None:
    keys = []
    for threads in (1, 2):
        loader = open_loader(
            Bundle(toy_bundle), backend=backend("torchscript"), threads=threads, clock=ticking
        )
        engine = loader.engines()["large"]
        keys.append(engine.key)
        assert loader.known_profile(engine) is None
        loader.profiles({"large": engine})
    assert len(set(keys)) == 2
