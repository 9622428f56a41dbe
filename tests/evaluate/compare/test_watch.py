"""Policies whose own time is told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opa_trt.clock import VirtualClock
from opa_trt.evaluate.compare.cells import SPLIT, STOPPED, WHOLE
from opa_trt.evaluate.compare.watch import Recalled, Watched
from opa_trt.evaluate.oracles import OraclePolicy
from opa_trt.policies import STOP, Budget, EntryChoice, Outcome, PolicyBase, View

VIEW = View("pioneer", np.zeros((4, 5), np.float32), ("a", "b"), (4,), np.array([[1.0], [2.0]]))
ENDED = Outcome(4, "pioneer", 3.0, 9.0)


class Slow(PolicyBase):
    """Takes 2 ms to enter, 3 to decide and 5 to learn; enters and sends images where it is told."""

    name = "slow"

    def __init__(self, clock: VirtualClock, *choice: int) -> None:
        self.clock, self.choice = clock, choice

    def enter(self, arrival: Any, budget: Budget, state: Any) -> Any:
        self.clock.advance(2)
        return None if arrival is None else EntryChoice(arrival, "as told"), state

    def step(self, view: View, budget: Budget, state: Any) -> Any:
        self.clock.advance(3)
        chosen = OraclePolicy({"a": np.ones(4, bool), "b": np.ones(4, bool)}).step(
            view, budget, None
        )[0]
        object.__setattr__(chosen, "choice", np.array(self.choice or (0, 0, 0, 0)))
        return chosen, state

    def learn(self, outcome: Outcome, state: Any) -> Any:
        self.clock.advance(5)
        return state


def test_all_of_a_policys_time_is_counted_until_it_is_reset() -> None:
    clock = VirtualClock()
    watched = Watched(Slow(clock), clock)
    watched.enter(None, Budget(9.0), None)  # type: ignore[arg-type]
    watched.step(VIEW, Budget(9.0), None)
    watched.learn(ENDED, None)
    assert watched.decision_ms == 5  # a group is answered before its policy learns
    watched.reset()
    assert watched.decision_ms == 0
    assert (watched.name, watched.system) == ("slow", "opa")


@pytest.mark.parametrize(
    ("choice", "kind"),
    [((0, 0, 0, 0), WHOLE), ((STOP,) * 4, STOPPED), ((0, STOP, 0, 0), SPLIT)],
)
def test_a_recalled_policy_takes_what_it_took_for_such_an_answer(
    choice: tuple[int, ...], kind: int
) -> None:
    clock, asked = VirtualClock(), []

    def pause(kind: int) -> tuple[float, float]:
        asked.append(kind)
        return 0.25, 0.5

    recalled = Recalled(Slow(VirtualClock(), *choice), clock, lambda: None, pause)
    recalled.reset()
    recalled.step(VIEW, Budget(9.0), None)
    recalled.step(VIEW, Budget(9.0), None)  # another chunk of the same group
    recalled.learn(ENDED, None)
    assert asked == [kind]
    assert clock.now_ms() == 2 * 0.75
    assert recalled.decision_ms == 2 * 0.25
    assert recalled.decisions == 2


def test_time_passes_at_an_entry_where_there_is_nothing_to_decide() -> None:
    clock = VirtualClock()
    begun: list[int] = []
    recalled = Recalled(
        Slow(VirtualClock()), clock, lambda: begun.append(1), lambda kind: (1.0, kind), {"whole"}
    )
    for entry, passed in (("whole", 1.0 + STOPPED), ("pioneer", 0.0), ("whole", 1.0 + STOPPED)):
        before = clock.now_ms()
        recalled.reset()
        for _ in range(2):  # a policy that explores
            recalled.enter(entry, Budget(9.0), None)  # type: ignore[arg-type]
        assert clock.now_ms() - before == passed
        recalled.learn(ENDED, None)
        assert clock.now_ms() - before == passed
    assert len(begun) == 3
