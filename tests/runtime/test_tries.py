"""Entries of which little is known are tried, seldom, and less often where that is late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opa_trt.runtime.overheads import Kind
from opa_trt.runtime.tries import ASKED, FIRST, LATE, MISSED, SOON, Tries, TriesByDeadline
from opa_trt.tree import FEATURES, IMAGES, LOGITS, OPA, Node

PIXELS = np.zeros((8, 3, 16, 16), dtype=np.uint8)
MS = {"pioneer-16": 2.0, "tail-16": 1.0, "pioneer-24": 4.0, "tail-24": 3.0}
GROUPS = 1000
NOISE = 0.1


def node(name: str, accuracy: float, *successors: str) -> Node:
    first = name.startswith("pioneer")
    outputs = (FEATURES, LOGITS) if first else (LOGITS,)
    side = int(name[-2:])
    source = IMAGES if first else FEATURES
    return Node(name, name, source, outputs, successors, side, (accuracy, 0.0), 10, accuracy, OPA)


NODES = (
    node("pioneer-16", 0.4, "tail-16"),
    node("tail-16", 0.6),
    node("pioneer-24", 0.5, "tail-24"),
    node("tail-24", 0.9),
)


def until_due(tries: Tries) -> int:
    """How many groups pass before a try is due."""
    for groups in range(2 * LATE):
        if tries.due:
            return groups
        tries.ended(kept=True)
    raise AssertionError


def tried(tries: Tries, *, kept: bool) -> None:
    """A try that ended so."""
    tries.asked(trying=True)
    tries.ended(kept=kept)


def test_the_first_groups_try_nothing() -> None:
    assert until_due(Tries()) == FIRST


def test_tries_that_are_kept_come_sooner_and_sooner() -> None:
    tries, waits = Tries(), []
    for _ in range(4):
        until_due(tries)
        tried(tries, kept=True)
        waits.append(until_due(tries))
    assert waits == [FIRST // 2, FIRST // 4, SOON, SOON]


def test_one_that_was_not_kept_makes_the_next_wait() -> None:
    tries, waits = Tries(), []
    for kept in (False, False, True, True, True, False):
        until_due(tries)
        tried(tries, kept=kept)
        waits.append(until_due(tries))
    assert waits == [MISSED, LATE, LATE // 2, LATE // 4, LATE // 8, LATE]


def test_one_that_cost_nothing_makes_none_wait() -> None:
    tries = Tries()
    until_due(tries)
    tries.asked(trying=True, free=True)
    tries.ended(kept=False)
    assert until_due(tries) == FIRST


def test_longer_deadlines_have_tries_of_their_own() -> None:
    tries = TriesByDeadline()
    short = tries.under(10.0)
    assert tries.under(10.5) is short
    assert tries.under(20.0) is not short
    assert tries.under(np.inf) is tries.under(np.inf)
    assert tries.under(-1.0) is tries.under(0.0)


def test_where_nothing_is_worth_a_try_it_is_asked_again_soon() -> None:
    tries = Tries()
    until_due(tries)
    tries.asked(trying=False)
    assert until_due(tries) == ASKED


# --- in a session ---------------------------------------------------------------------------------


@pytest.fixture(params=["opa", "opa_split"])
def session(request: pytest.FixtureRequest, invent: Any, machine: Any) -> Any:
    machine.ms = dict(MS)
    with machine.load(Path(invent(NODES)), policy=request.param) as opened:
        yield opened


def entered(session: Any, machine: Any, deadline_ms: float, groups: int) -> list[Any]:
    """Results under a load that is never quite the same: promises stay above the medians."""
    draw, found = np.random.default_rng(0), []
    for _ in range(groups):
        machine.slowdown = float(np.exp(NOISE * draw.standard_normal()))
        found.append(session.infer(PIXELS, deadline_ms))
    return found


def late(results: list[Any]) -> int:
    """How many were not in time."""
    return sum(result.measured_ms > result.deadline_ms for result in results)


def first_nodes(results: list[Any]) -> list[str]:
    return [result.steps[0].node for result in results]


def test_an_entry_that_is_faster_than_its_profile_is_found_out(session: Any, machine: Any) -> None:
    """By its profile it takes 7 of 8 ms, which is not safe; in truth 5.2."""
    machine.ms |= {"pioneer-24": 3.0, "tail-24": 2.2}
    found = entered(session, machine, 8.0, GROUPS)
    assert first_nodes(found)[GROUPS // 20 :].count("pioneer-24") > GROUPS // 2
    assert late(found) <= 0.02 * GROUPS


def test_one_that_is_slower_is_tried_seldom(session: Any, machine: Any) -> None:
    """By its profile it would often be in time, and never is."""
    machine.ms |= {"pioneer-24": 6.0}
    found = entered(session, machine, 7.5, GROUPS)
    tries = [each.entered for each in found if "little is known" in each.entered.reason]
    assert 1 <= len(tries) <= 5
    assert {each.node for each in tries} == {"pioneer-24"}
    assert "pioneer-16" in tries[0].reason
    assert late(found) <= 0.01 * GROUPS


def test_where_everything_fits_nothing_is_tried(session: Any, machine: Any) -> None:
    found = entered(session, machine, 100.0, GROUPS // 4)
    assert set(first_nodes(found)) == {"pioneer-24"}


def test_a_policy_that_remembers_is_not_asked_twice(session: Any, machine: Any) -> None:
    asked = []
    policy = session._machinery.policy
    plain = policy.enter
    policy.explores = False
    policy.enter = lambda *given: asked.append(given) or plain(*given)
    entered(session, machine, 7.5, GROUPS // 4)
    assert len(asked) == GROUPS // 4


def test_none_is_thought_of_where_there_is_no_time_to(
    session: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = session._machinery.policy
    enter = policy.enter

    def slow(*given: Any) -> Any:
        machine.clock.advance(0.3)
        return enter(*given)

    monkeypatch.setattr(policy, "enter", slow)
    found = [session.infer(PIXELS, 3.5) for _ in range(200)]
    assert set(first_nodes(found)) == {"pioneer-16"}
    assert late(found) <= 1  # how long it takes is to be learned
    assert late([session.infer(PIXELS, 3.7) for _ in range(200)]) == 0
    assert session._machinery.latency.overheads.ms(Kind.TRY) == pytest.approx(0.3)
