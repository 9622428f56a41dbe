"""A policy whose own time is told apart from that of the engines and the runtime."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from opa_trt.clock import Clock, VirtualClock
from opa_trt.evaluate.compare.arms import AnyPolicy
from opa_trt.evaluate.compare.cells import SPLIT, STOPPED, WHOLE
from opa_trt.policies import STOP, Arrival, Budget, Decision, EntryChoice, Outcome, View

Pause = Callable[[int], tuple[float, float]]


class Watched:
    """A policy that decides as ``inner`` does, and counts the ms that it takes.

    Args:
        inner: what decides; may be replaced between groups by another of its system.
        clock: what tells the time.

    Attributes:
        name: of the inner policy.
        system: of the inner policy.
        beside: of the inner policy.
        explores: of the inner policy.
        decision_ms: of all calls since ``reset``.
        decisions: steps since ``reset``.
    """

    def __init__(self, inner: AnyPolicy, clock: Clock) -> None:
        self.inner: Any = inner
        self.clock = clock
        self.name, self.system, self.beside = inner.name, inner.system, inner.beside
        self.explores = inner.explores
        self.decision_ms, self.decisions = 0.0, 0

    def reset(self) -> None:
        """Count from 0 again."""
        self.decision_ms, self.decisions = 0.0, 0

    def start(self) -> Any:
        """The inner policy's."""
        return self.inner.start()

    def enter(self, arrival: Arrival, budget: Budget, state: Any) -> tuple[EntryChoice | None, Any]:
        """The inner policy's answer, timed."""
        begun = self.clock.now_ms()
        try:
            answer: tuple[EntryChoice | None, Any] = self.inner.enter(arrival, budget, state)
            return answer
        finally:
            self.decision_ms += self.clock.now_ms() - begun

    def step(self, view: View, budget: Budget, state: Any) -> tuple[Decision, Any]:
        """The inner policy's answer, timed."""
        begun = self.clock.now_ms()
        try:
            answer: tuple[Decision, Any] = self.inner.step(view, budget, state)
            return answer
        finally:
            self.decisions += 1
            self.decision_ms += self.clock.now_ms() - begun

    def learn(self, outcome: Outcome, state: Any) -> Any:
        """The inner policy's answer, which comes after the group's."""
        return self.inner.learn(outcome, state)


class Recalled(Watched):
    """A policy on a virtual clock, which every decision moves on by what it once took.

    Args:
        inner: what decides.
        clock: moved on.
        begin: called before each group.
        pause: from the kind of answer (``cells.WHOLE`` …) to the ms of one decision, and of what
            the runtime did beside its engines. Asked once a group.
        alone: entries after which nothing is decided.
    """

    def __init__(
        self,
        inner: AnyPolicy,
        clock: VirtualClock,
        begin: Callable[[], None],
        pause: Pause,
        alone: Container[str] = (),
    ) -> None:
        super().__init__(inner, clock)
        self._virtual, self._begin, self._pause, self._alone = clock, begin, pause, alone
        self._taken: tuple[float, float] | None = None

    def reset(self) -> None:
        """A new group."""
        super().reset()
        self._taken = None
        self._begin()

    def enter(self, arrival: Arrival, budget: Budget, state: Any) -> tuple[EntryChoice | None, Any]:
        """The inner policy's answer, after the time that it took if it is the only one: once, as a
        policy that explores is asked twice."""
        answer = super().enter(arrival, budget, state)
        chosen = answer[0]
        if self._taken is None and chosen is not None and chosen.node in self._alone:
            self._pass(STOPPED)
        return answer

    def step(self, view: View, budget: Budget, state: Any) -> tuple[Decision, Any]:
        """The inner policy's answer, after the time that it took."""
        answer = super().step(view, budget, state)
        several = len(set(answer[0].choice.tolist())) > 1
        stopped = bool((answer[0].choice == STOP).all())
        self._pass(SPLIT if several else STOPPED if stopped else WHOLE)
        return answer

    def _pass(self, kind: int) -> None:
        self._taken = self._taken or self._pause(kind)
        decided, switched = self._taken
        self._virtual.advance(decided + switched)
        self.decision_ms += decided
