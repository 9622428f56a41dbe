"""Dynamic-OFA: levels, the look-up table, and the manager that reacts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opa_trt.bundle import Bundle
from opa_trt.errors import ConfigError
from opa_trt.policies import STOP, Arrival, Budget, Outcome, View, dynamic_ofa, make_policy
from opa_trt.policies.dynamic_ofa import DynamicOfaPolicy, Reaction
from opa_trt.runtime import Session
from opa_trt.runtime.session import read_knowledge
from opa_trt.tree import FEATURES, IMAGES, LOGITS, OPA, WHOLE, Node, Tree

WHOLES = ("whole1", "whole2", "whole3")
MS = (2.0, 4.0, 9.0)  # of every level


@pytest.fixture
def knowledge(everything: Path) -> Any:
    return read_knowledge(Bundle(everything))


def of(nodes: Any, knowledge: Any, **options: Any) -> DynamicOfaPolicy:
    made = make_policy("dynamic_ofa", Tree(tuple(nodes)), knowledge, **options)
    assert isinstance(made, DynamicOfaPolicy)
    return made


@pytest.fixture
def table(every_node: Any, knowledge: Any) -> DynamicOfaPolicy:
    return of(every_node, knowledge, manager="table")


@pytest.fixture
def reactive(every_node: Any, knowledge: Any) -> DynamicOfaPolicy:
    return of(every_node, knowledge)


def arrival(slowdown: float = 1.0, images: int = 10) -> Arrival:
    each = {name: slowdown * ms for name, ms in zip(WHOLES, MS, strict=True)}
    return Arrival(images, WHOLES, np.array([*each.values()]), each, slowdown)


def entered(policy: DynamicOfaPolicy, deadline: float, state: Any = None, **more: Any) -> Any:
    choice, after = policy.enter(
        arrival(**more), Budget(deadline), policy.start() if state is None else state
    )
    return choice.node, after


def after(
    policy: DynamicOfaPolicy, state: Reaction, *measured: float, deadline: float, images: int = 10
) -> Reaction:
    """The state after groups that took so many ms."""
    for ms in measured:
        choice, state = policy.enter(arrival(images=images), Budget(deadline), state)
        state = policy.learn(Outcome(images, choice.node, ms, deadline), state)
    return state


# --- levels -------------------------------------------------------------------------------------


def test_levels_are_complete_networks_by_macs(reactive: DynamicOfaPolicy) -> None:
    assert [level.nodes for level in reactive.levels] == [("whole1",), ("whole2",), ("whole3",)]
    assert reactive.system == WHOLE


def test_without_complete_networks_they_are_opas_routes(every_node: Any, knowledge: Any) -> None:
    policy = of(every_node[:4], knowledge)
    ends = [level.last for level in policy.levels]
    assert ends == ["pioneer", "tail1", "tail2", "tail3"]
    assert policy.system == OPA


def test_a_level_that_a_cheaper_one_beats_is_left_out(every_node: Any, knowledge: Any) -> None:
    nodes = [replace(n, accuracy=0.2) if n.name == "whole2" else n for n in every_node]
    assert [level.last for level in of(nodes, knowledge).levels] == ["whole1", "whole3"]


def test_an_unknown_manager_is_refused(every_node: Any, knowledge: Any) -> None:
    with pytest.raises(ConfigError, match="manager = 'boss'") as caught:
        of(every_node, knowledge, manager="boss")
    assert "'table' or 'reactive'" in str(caught.value)


def test_an_unknown_option_is_refused(every_node: Any, knowledge: Any) -> None:
    with pytest.raises(ConfigError, match="windw"):
        of(every_node, knowledge, windw=3)


# --- by the table -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deadline", "level"), [(1.0, 0), (2.0, 0), (3.9, 0), (4.0, 1), (9.0, 2), (99.0, 2)]
)
@pytest.mark.parametrize("manager", ["table", "reactive"])
def test_the_first_group_takes_the_best_level_that_fits(
    every_node: Any, knowledge: Any, manager: str, deadline: float, level: int
) -> None:
    assert entered(of(every_node, knowledge, manager=manager), deadline)[0] == WHOLES[level]


def test_the_table_knows_nothing_of_load(table: DynamicOfaPolicy) -> None:
    assert entered(table, 4.0, slowdown=3.0)[0] == "whole2"
    state = after(table, table.start(), 50.0, 50.0, 50.0, deadline=4.0)
    assert entered(table, 4.0, state)[0] == "whole2"


def test_the_table_follows_every_deadline(table: DynamicOfaPolicy) -> None:
    state, names = table.start(), []
    for deadline in (9.0, 2.0, 4.0):
        choice, state = table.enter(arrival(), Budget(deadline), state)
        state = table.learn(Outcome(10, choice.node, 1.0, deadline), state)
        names.append(choice.node)
    assert names == ["whole3", "whole1", "whole2"]


# --- by what was measured -----------------------------------------------------------------------


def test_it_goes_one_level_down_where_the_deadline_is_exceeded(reactive: DynamicOfaPolicy) -> None:
    state = after(reactive, reactive.start(), 50.0, deadline=9.0)
    assert state.level == 1
    assert after(reactive, state, 50.0, 50.0, 50.0, deadline=9.0).level == 0


def test_the_deadline_itself_is_kept(reactive: DynamicOfaPolicy) -> None:
    assert after(reactive, reactive.start(), 9.0, 9.0, deadline=9.0).level == 2


def test_it_goes_one_level_up_where_the_next_fits_with_room(reactive: DynamicOfaPolicy) -> None:
    low = replace(reactive.start(), level=0)
    assert after(reactive, low, 2.0, deadline=4.5).level == 1  # 4 ms expected
    assert after(reactive, low, 2.0, deadline=4.4).level == 0  # a tenth is to be left free
    assert after(reactive, low, 2.0, 4.0, deadline=99.0).level == 2


def test_the_next_level_is_expected_to_slow_down_alike(reactive: DynamicOfaPolicy) -> None:
    low = replace(reactive.start(), level=0)
    assert after(reactive, low, 4.0, deadline=8.0).level == 0  # 8 ms expected
    assert after(reactive, low, 4.0, deadline=9.0).level == 1


def test_it_stays_within_its_levels(reactive: DynamicOfaPolicy) -> None:
    assert after(reactive, reactive.start(), *[0.1] * 5, deadline=99.0).level == 2
    low = replace(reactive.start(), level=0)
    assert after(reactive, low, *[99.0] * 5, deadline=1.0).level == 0


def test_the_window_is_ten_images(reactive: DynamicOfaPolicy) -> None:
    state = after(reactive, reactive.start(), *[50.0] * 9, deadline=9.0, images=1)
    assert state.level == 2
    assert after(reactive, state, 50.0, deadline=9.0, images=1).level == 1


def test_one_slow_image_among_ten_is_no_reason(reactive: DynamicOfaPolicy) -> None:
    state = after(reactive, reactive.start(), *[5.0] * 9, 20.0, deadline=9.0, images=1)
    assert state.level == 2


def test_the_window_slides(reactive: DynamicOfaPolicy) -> None:
    state = after(reactive, reactive.start(), *[8.0] * 30, deadline=9.0, images=1)
    assert len(state.window) == 10
    assert after(reactive, state, *[50.0], deadline=9.0, images=1).level == 1


def test_a_group_above_ten_images_is_a_window(reactive: DynamicOfaPolicy) -> None:
    state = after(reactive, reactive.start(), *[8.0] * 3, deadline=9.0, images=40)
    assert state.window == ((40, 8.0),)


def test_a_window_holds_one_level_alone(reactive: DynamicOfaPolicy) -> None:
    state = after(reactive, reactive.start(), 50.0, deadline=9.0)
    assert state.window == ()


def test_a_level_that_fails_at_once_is_left_alone_ever_longer(reactive: DynamicOfaPolicy) -> None:
    state, levels = replace(reactive.start(), level=0), []
    for _ in range(60):  # level 2 takes 8 ms in truth, and is expected to take 4
        ms = 2.0 if state.level == 0 else 8.0
        state = after(reactive, state, ms, deadline=5.0)
        levels.append(state.level)
    tries = np.flatnonzero(np.array(levels) == 1)
    pauses = np.diff(tries)
    assert (pauses[1:] >= 2 * pauses[:-1] - 2).all()
    assert len(tries) == 4


def test_better_conditions_end_the_wait(reactive: DynamicOfaPolicy) -> None:
    state = after(reactive, replace(reactive.start(), level=0), 2.0, 8.0, deadline=5.0)
    assert after(reactive, state, 2.0, deadline=5.0).level == 0
    assert after(reactive, state, 1.7, deadline=5.0).level == 1


def test_a_level_that_holds_is_not_held_against_itself(reactive: DynamicOfaPolicy) -> None:
    state = after(reactive, replace(reactive.start(), level=0), 2.0, 8.0, deadline=5.0)
    state = after(reactive, state, 1.7, 3.4, deadline=5.0)
    assert (state.level, state.failures) == (1, ())


def test_the_state_is_never_changed(reactive: DynamicOfaPolicy) -> None:
    first = replace(reactive.start(), level=0)
    said = repr(first)
    after(reactive, first, 2.0, 8.0, 2.0, 1.0, deadline=5.0)
    assert repr(first) == said


# --- through the pioneer ------------------------------------------------------------------------


def view(tree: Tree, ms: tuple[float, ...], slowdown: float = 1.0) -> View:
    """After the pioneer, which took 1 ms."""
    each = np.array([1.0, *ms])[:, None] * slowdown
    return View("pioneer", None, tree["pioneer"].successors, (10,), each[1:], slowdown,
                each_ms=each)  # fmt: skip


@pytest.mark.parametrize(("left", "wanted"), [(0.5, STOP), (1.0, 0), (3.5, 1), (20.0, 2)])
def test_the_pioneers_own_exit_is_the_lowest_level(
    every_node: Any, knowledge: Any, left: float, wanted: int
) -> None:
    policy = of(every_node[:4], knowledge, manager="table")
    seen = view(Tree(every_node[:4]), (1.0, 3.0, 8.0), slowdown=2.0)
    decision, _ = policy.step(seen, Budget(left), policy.start())
    assert decision.choice.tolist() == [wanted] * 10


def test_nodes_without_logits_are_counted_once(knowledge: Any) -> None:
    tree = Tree(
        (
            Node("e", "e", IMAGES, (FEATURES, LOGITS), ("a",), accuracy=0.5),
            Node("a", "a", FEATURES, (FEATURES,), ("b",)),
            Node("b", "b", FEATURES, (LOGITS,), accuracy=0.9),
        )
    )
    policy = DynamicOfaPolicy(tree, knowledge, manager="table")
    each = np.array([1.0, 2.0, 2.0])[:, None]
    seen = View("e", None, ("a",), (10,), np.array([[4.5]]), 1.0, each_ms=each)
    for left, wanted in ((3.9, STOP), (4.0, 0)):  # as expected, whatever is promised
        decision, _ = policy.step(seen, Budget(left), policy.start())
        assert set(decision.choice.tolist()) == {wanted}


def test_the_tail_stays_until_a_level_changes(every_node: Any, knowledge: Any) -> None:
    policy = of(every_node[:4], knowledge)
    seen = view(Tree(every_node[:4]), (1.0, 3.0, 8.0))
    _, state = policy.step(seen, Budget(4.0), policy.start())
    again, state = policy.step(seen, Budget(0.5), state)
    assert set(again.choice) == {1}
    state = policy.learn(Outcome(10, "pioneer", 6.0, 5.0), state)
    assert set(policy.step(seen, Budget(4.0), state)[0].choice) == {0}


# --- two on one device --------------------------------------------------------------------------

ROUNDS = 400
DEADLINES = (8.4, 4.4)


def answer_in_turns(path: Path, machine: Any, rounds: int) -> tuple[list[Any], list[Any]]:
    """Two sessions, each with its deadline and slowed down by the level that the other is on; for
    each round both levels, and whether both deadlines were met."""
    levels, levels_then, met = [0, 0], [], []
    sessions: list[Session] = [machine.load(path, policy="dynamic_ofa") for _ in DEADLINES]
    images = np.zeros((4, 3, 16, 16), np.uint8)
    for _ in range(rounds):
        kept = []
        for i, (session, deadline) in enumerate(zip(sessions, DEADLINES, strict=True)):
            own, other = levels[i], levels[1 - i]
            machine.slowdown = 1 + 0.15 * other + 0.3 * min(own, other)
            result = session.infer(images, deadline)
            levels[i] = WHOLES.index(str(result.nodes[0]))
            kept.append(result.deadline_met)
        levels_then.append(tuple(levels))
        met.append(kept)
    for session in sessions:
        session.close()
    return levels_then, met


def changes(levels: list[Any]) -> int:
    return sum(one != other for one, other in pairwise(levels))


def test_two_on_one_device_settle(everything: Path, every_machine: Any) -> None:
    levels, met = answer_in_turns(everything, every_machine, ROUNDS)
    last = ROUNDS // 2
    assert changes(levels) >= 2  # they did react
    assert changes(levels[last:]) <= 4
    assert np.mean(met[last:]) >= 0.98


def test_without_memory_of_failures_they_would_not(
    everything: Path, every_machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_ofa, "PATIENCE", 0)
    levels, met = answer_in_turns(everything, every_machine, ROUNDS)
    assert changes(levels[ROUNDS // 2 :]) >= 20
    assert np.mean(met[ROUNDS // 2 :]) < 0.95
