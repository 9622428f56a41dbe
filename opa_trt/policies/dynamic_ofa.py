"""Dynamic-OFA: levels of one super-network, by look-up table or by what was measured lately."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opa_trt.errors import ConfigError
from opa_trt.policies.base import (
    STOP,
    Arrival,
    Budget,
    Decision,
    EntryChoice,
    Outcome,
    PolicyBase,
    View,
    all_to,
)
from opa_trt.policies.knowledge import Knowledge
from opa_trt.tree import OPA, WHOLE, Route, Tree

TABLE, REACTIVE = "table", "reactive"
WINDOW = 10  # images that the latency is averaged over
HYSTERESIS = 0.1  # of the deadline: what the next level must leave free to be tried
BETTER = 0.9  # times the latency expected when a level failed: below that it is tried again
PATIENCE = 4  # groups after a full window that a failed level is left alone; then twice as many


@dataclass(frozen=True)
class Failure:
    """A level that missed the deadline as soon as it was tried.

    Args:
        expected_ms: what it was expected to take then.
        patience: groups to wait before it is tried under the same conditions.
        left: how many of them are still to come.
    """

    expected_ms: float
    patience: int
    left: int


@dataclass(frozen=True)
class Reaction:
    """What the manager remembers.

    Args:
        level: the present one; None before the first group.
        ms: what every level is expected to take for the present group.
        window: images and measured ms of the last groups at this level, oldest first.
        tried_ms: what the present level was expected to take when it was gone up to, until a
            window has shown that it holds.
        failures: by level.
    """

    level: int | None = None
    ms: tuple[float, ...] = ()
    window: tuple[tuple[int, float], ...] = ()
    tried_ms: float = math.nan
    failures: tuple[tuple[int, Failure], ...] = ()

    @property
    def mean_ms(self) -> float:
        """Of the groups in the window, each counted as its images."""
        images = sum(count for count, _ in self.window)
        return sum(count * ms for count, ms in self.window) / images

    @property
    def full(self) -> bool:
        """Whether the window holds enough images to be believed."""
        return sum(count for count, _ in self.window) >= WINDOW


class DynamicOfaPolicy(PolicyBase):
    """Levels are complete sub-networks where the bundle has them, else ``opa``'s routes.

    The first group takes the best level that fits by the look-up table: its latency as profiled.

    Args:
        tree: the bundle's nodes.
        knowledge: not used.
        manager: ``table`` does so for every group, as if alone on the device. ``reactive`` goes one
            level down when the window's mean latency exceeds the deadline, and one up when that
            mean, scaled to the next level, fits with some room. A level that fails at once when it
            is tried is left alone until conditions are better, or for ever longer.
    """

    name = "dynamic_ofa"

    def __init__(
        self, tree: Tree, knowledge: Knowledge, manager: str = REACTIVE, **options: object
    ) -> None:
        if options or manager not in (TABLE, REACTIVE):
            given = sorted(options) or f"manager = {manager!r}"
            message = f"policy dynamic_ofa takes the option 'manager', got {given}."
            raise ConfigError(message, expected=f"manager = {TABLE!r} or {REACTIVE!r}.")
        self.manager = manager
        self.system = WHOLE if any(node.system == WHOLE for node in tree.entries) else OPA
        self.levels = _levels(tree, self.system)
        self._rows = {name: row for row, name in enumerate(tree.nodes)}

    def start(self) -> Reaction:
        """No group has entered."""
        return Reaction()

    def enter(
        self, arrival: Arrival, budget: Budget, state: Reaction
    ) -> tuple[EntryChoice, Reaction]:
        """The level's entry."""
        ms = tuple(sum(arrival.each_ms[name] for name in level.nodes) for level in self.levels)
        state = self._settled(replace(state, ms=ms), ms, arrival.slowdown, budget.left_ms)
        assert state.level is not None
        return EntryChoice(self.levels[state.level].entry, self._reason(state.level)), state

    def step(self, view: View, budget: Budget, state: Reaction) -> tuple[Decision, Reaction]:
        """The whole group along the level's route."""
        if view.each_ms is None:
            message = "policy dynamic_ofa needs every node's latency."
            raise ConfigError(message, remedy="use another policy.")
        each = view.each_ms[:, -1]
        ms = tuple(float(sum(each[self._rows[n]] for n in level.nodes)) for level in self.levels)
        rest = [self._rest_ms(level, view) for level in self.levels]
        state = self._settled(replace(state, ms=ms), rest, view.slowdown, budget.left_ms)
        assert state.level is not None
        path = dict(itertools.pairwise(self.levels[state.level].nodes))
        follower = path.get(view.node)
        best = STOP if follower is None else view.successors.index(follower)
        fits = best == STOP or bool((view.latency_ms[:, -1] <= budget.left_ms).any())
        reason = self._reason(state.level)
        return all_to(best, view, budget.left_ms, fits=fits, reason=reason), state

    def _reason(self, level: int) -> str:
        return f"level {level + 1} of {len(self.levels)}, by {self.manager}"

    def learn(self, outcome: Outcome, state: Reaction) -> Reaction:
        """Remember how long the group took, and change the level for the next."""
        if self.manager == TABLE:
            return Reaction()
        if state.level is None:  # one level alone: nobody was asked
            return state
        state = replace(state, window=_slid((*state.window, (outcome.images, outcome.measured_ms))))
        if not state.full:
            return state
        if state.mean_ms > outcome.deadline_ms:
            return _down(state)
        return self._up(replace(state, tried_ms=math.nan), outcome.deadline_ms)

    def _settled(
        self, state: Reaction, ms: Sequence[float], slowdown: float, left_ms: float
    ) -> Reaction:
        """The state with a level: what it was, or the best that fits as profiled."""
        if state.level is not None:
            return state
        fitting = [place for place, each in enumerate(ms) if each / slowdown <= left_ms]
        return replace(state, level=max(fitting, default=0))

    def _rest_ms(self, level: Route, view: View) -> float:
        """Expected ms of what is left of a level's route after the view's node."""
        if view.node not in level.nodes:
            return math.inf
        after = level.nodes[level.nodes.index(view.node) + 1 :]
        assert view.each_ms is not None
        return sum(float(view.each_ms[self._rows[name], -1]) for name in after)

    def _up(self, state: Reaction, deadline_ms: float) -> Reaction:
        """The next level, if it is expected to fit and has not failed under such conditions."""
        assert state.level is not None
        level, above = state.level, state.level + 1
        failures = dict(state.failures)
        failures.pop(level, None)  # it holds
        state = replace(state, failures=tuple(failures.items()))
        if above == len(self.levels) or not state.ms[level] > 0:
            return state
        expected = state.mean_ms * state.ms[above] / state.ms[level]
        if expected > (1 - HYSTERESIS) * deadline_ms:
            return state
        failure = failures.get(above)
        if failure and failure.left > 0 and expected > BETTER * failure.expected_ms:
            failures[above] = replace(failure, left=failure.left - 1)
            return replace(state, failures=tuple(failures.items()))
        return replace(state, level=above, window=(), tried_ms=expected)


def _down(state: Reaction) -> Reaction:
    """One level down, if there is one; a level that was only being tried has failed."""
    assert state.level is not None
    failures = dict(state.failures)
    if not math.isnan(state.tried_ms):
        before = failures.get(state.level)
        patience = 2 * before.patience if before else PATIENCE
        failures[state.level] = Failure(state.tried_ms, patience, patience)
    return replace(
        state,
        level=max(0, state.level - 1),
        window=(),
        tried_ms=math.nan,
        failures=tuple(failures.items()),
    )


def _slid(window: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """The newest groups that hold enough images together; one at least."""
    while len(window) > 1 and sum(count for count, _ in window[1:]) >= WINDOW:
        window = window[1:]
    return window


def _levels(tree: Tree, system: str) -> tuple[Route, ...]:
    """A system's routes by ascending MACs, without those that a cheaper one is more right than."""
    routes = [route for route in tree.routes() if tree[route.entry].system == system]
    routes.sort(key=lambda route: sum(tree[name].macs for name in route.nodes))
    kept: list[Route] = []
    for route in routes:
        if not kept or tree[route.last].accuracy >= tree[kept[-1].last].accuracy:
            kept.append(route)
    return tuple(kept)
