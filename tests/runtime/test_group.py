"""A group on its way through trees of every kind the papers know."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opa_trt
from opa_trt.errors import ConfigError
from opa_trt.policies import STOP, Budget, Decision, PolicyBase, View
from opa_trt.runtime.overheads import Kind
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node

BOTH = (FEATURES, LOGITS)
Invent = Callable[..., Path]
Choose = Callable[[View, Budget], Any]


class Told(PolicyBase):
    """A policy that does what a function says, and remembers what it saw."""

    name = "told"

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.seen: list[tuple[View, float]] = []

    def start(self) -> int:
        """How often it was asked."""
        return 0

    def step(self, view: View, budget: Budget, state: int) -> tuple[Decision, int]:
        """What the function says; everything fits."""
        self.seen.append((view, budget.left_ms))
        choice = np.broadcast_to(np.asarray(self.choose(view, budget)), view.pending)
        decision = Decision(
            choice=choice.astype(np.int64),
            successors=view.successors,
            predicted_ms=tuple(view.latency_ms[:, -1].tolist()),
            predicted_accuracy=(0.5,) * len(view.successors),
            estimated_accuracy=0.25,
            left_ms=budget.left_ms,
            fits=True,
            reason="as told",
        )
        return decision, state + 1


def tell(session: opa_trt.Session, choose: Choose) -> Told:
    policy = Told(choose)
    session._machinery.follow(policy)
    return policy


def marked(count: int) -> Any:
    """Images that know their number: every value of image i is i."""
    return np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 16, 16)
    )


def mark(name: str, machine: Any, base: int, outputs: tuple[str, ...]) -> None:
    """Logits of a segment become ``base`` + the image's number; features keep the number."""

    def run(inputs: Any) -> dict[str, torch.Tensor]:
        number = next(iter(inputs.values())).float().flatten(1).mean(1)
        made = {
            LOGITS: (base + number)[:, None] * torch.ones(5),
            FEATURES: number[:, None, None, None] * torch.ones(4, 4, 4),
        }
        return {name: made[name] for name in outputs}

    machine.outputs[name] = run


@pytest.fixture
def grow(invent: Invent, machine: Any) -> Callable[..., opa_trt.Session]:
    """A session over invented nodes; the n-th node's logits are 100 n + the image's number."""

    def made(*nodes: Node, ms: Any = None, policy: str = "static", **changes: Any) -> Any:
        for base, node in enumerate(nodes):
            mark(node.segment, machine, 100 * base, node.outputs)
            machine.ms[node.segment] = (ms or {}).get(node.name, 1.0)
        return machine.load(invent(nodes, **changes), policy=policy)

    return made


# --- a split group ------------------------------------------------------------------------------


@pytest.fixture
def forked(grow: Any) -> opa_trt.Session:
    return grow(
        Node("pioneer", "pioneer", IMAGES, BOTH, ("left", "right")),
        Node("left", "left", FEATURES, (LOGITS,)),
        Node("right", "right", FEATURES, (LOGITS,)),
        ms={"pioneer": 1.0, "left": 2.0, "right": 4.0},
    )


def test_each_image_gets_the_logits_of_where_it_went(forked: Any) -> None:
    choice = [STOP, 0, 1, 0, STOP, 1, 1]
    tell(forked, lambda view, budget: choice)
    result = forked.infer(marked(7), math.inf)
    bases = {STOP: 0, 0: 100, 1: 200}
    assert result.logits[:, 0].tolist() == [bases[c] + i for i, c in enumerate(choice)]
    names = {STOP: "pioneer", 0: "left", 1: "right"}
    assert result.nodes.tolist() == [names[c] for c in choice]


@pytest.mark.parametrize("seed", range(10))
def test_any_split_of_any_group_keeps_the_order(forked: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tell(forked, lambda view, budget: rng.integers(-1, 2, view.pending))
    result = forked.infer(marked(21), math.inf)
    number = np.array([{"pioneer": 0, "left": 100, "right": 200}[n] for n in result.nodes])
    assert (result.logits[:, 0] - number).tolist() == list(range(21))


def test_a_split_runs_each_engine_on_its_share(forked: Any) -> None:
    tell(forked, lambda view, budget: [STOP, 0, 1, 0, STOP, 1, 1])
    steps = forked.infer(marked(7), math.inf).steps
    assert [(s.node, s.images, s.answered) for s in steps] == [
        ("pioneer", 7, 2), ("left", 2, 2), ("right", 3, 3),
    ]  # fmt: skip


def test_the_accuracy_of_a_split_group_is_the_mean_of_its_images(forked: Any) -> None:
    tell(forked, lambda view, budget: [STOP, 0, 0, STOP])
    result = forked.infer(marked(4), math.inf)
    assert result.predicted_accuracy == pytest.approx((2 * 0.25 + 2 * 0.5) / 4)


def test_what_a_policy_expects_of_single_images_is_what_it_expects_of_the_group(
    forked: Any,
) -> None:
    told = tell(forked, lambda view, budget: [STOP, 0, 0, STOP])
    step = told.step

    def thinking(view: View, budget: Budget, state: int) -> tuple[Decision, int]:
        decision, state = step(view, budget, state)
        return replace(decision, notes={"expected_accuracy": 0.9}), state

    told.step = thinking  # type: ignore[method-assign]
    assert forked.infer(marked(4), math.inf).predicted_accuracy == pytest.approx(0.9)


def test_where_all_stop_no_tail_runs(forked: Any) -> None:
    tell(forked, lambda view, budget: STOP)
    result = forked.infer(marked(5), math.inf)
    assert [step.node for step in result.steps] == ["pioneer"]
    assert not result.fallback


def test_a_split_of_chunks_keeps_the_order(forked: Any) -> None:
    tell(forked, lambda view, budget: np.arange(view.pending) % 3 - 1)
    result = forked.infer(marked(20), math.inf)
    within = [i % 8 % 3 - 1 for i in range(20)]
    assert result.logits[:, 0].tolist() == [100 * (c + 1) + i for i, c in enumerate(within)]


@pytest.mark.parametrize("source", [IMAGES, FEATURES])
@pytest.mark.parametrize(("later", "wanted"), [(0, 4), ([0, 0, STOP], 4), ([0, STOP, STOP], 1)])
def test_every_level_runs_on_a_batch_size_that_is_profiled(
    grow: Any, machine: Any, source: str, later: Any, wanted: int
) -> None:
    """Three of eight images go on, which are four rows; then all of them, two, or one."""
    session = grow(
        Node("a", "a", IMAGES, BOTH, ("b",)),
        Node("b", "b", source, BOTH, ("c",)),
        Node("c", "c", source, (LOGITS,)),
    )
    rows: list[tuple[str, int]] = []
    cost = machine.cost
    machine.cost = lambda name, count: rows.append((name, count)) or cost(name, count)
    first = [0, STOP, 0, STOP, STOP, 0, STOP, STOP]
    told = tell(session, lambda view, budget: first if view.node == "a" else later)
    result = session.infer(marked(8), math.inf)
    assert rows == [("a", 8), ("b", 4), ("c", wanted)]
    number = np.array([{"a": 0, "b": 100, "c": 200}[name] for name in result.nodes])
    assert (result.logits[:, 0] - number).tolist() == list(range(8))
    assert [view.pending for view, _ in told.seen] == [8, 3]


# --- what a policy sees -------------------------------------------------------------------------


def test_a_policy_sees_every_batch_up_to_the_group(forked: Any) -> None:
    told = tell(forked, lambda view, budget: STOP)
    for count in (1, 4, 6, 8):
        forked.infer(marked(count), math.inf)
    assert [view.batches for view, _ in told.seen] == [(1,), (1, 4), (1, 4, 6), (1, 4, 8)]
    assert all(view.latency_ms.shape == (2, len(view.batches)) for view, _ in told.seen)


def test_a_policy_sees_the_logits_and_the_promises(forked: Any) -> None:
    told = tell(forked, lambda view, budget: STOP)
    forked.infer(marked(8), 20.0)
    ((view, left),) = told.seen
    assert (view.node, view.successors, view.slowdown) == ("pioneer", ("left", "right"), 1.0)
    assert view.logits is not None
    assert view.logits[:, 0].tolist() == list(range(8))
    np.testing.assert_allclose(view.latency_ms[:, -1], [2.0, 4.0])
    assert left == pytest.approx(19.0)


def test_what_is_remembered_comes_back(forked: Any) -> None:
    tell(forked, lambda view, budget: STOP)
    for _ in range(3):
        forked.infer(marked(4), math.inf)
    assert forked._machinery.state == 3
    forked.infer(marked(24), math.inf)
    assert forked._machinery.state == 6


def test_another_policy_starts_with_an_empty_memory(forked: Any, monkeypatch: Any) -> None:
    tell(forked, lambda view, budget: STOP)
    forked.infer(marked(4), math.inf)
    again = Told(lambda view, budget: STOP)
    monkeypatch.setattr("opa_trt.runtime.session.make_policy", lambda *_, **__: again)
    forked.use("told")
    assert forked._machinery.state == 0
    forked.infer(marked(4), math.inf)
    assert len(again.seen) == forked._machinery.state == 1


def test_a_policy_that_takes_time_has_less_of_it(grow: Any, machine: Any) -> None:
    session = grow(
        Node("a", "a", IMAGES, BOTH, ("b",)),
        Node("b", "b", FEATURES, BOTH, ("c",)),
        Node("c", "c", FEATURES, (LOGITS,)),
        ms={"a": 1.0, "b": 2.0, "c": 3.0},
    )

    def slow(view: View, budget: Budget) -> int:
        machine.clock.advance(5.0)
        return 0

    told = tell(session, slow)
    session.infer(marked(8), 100.0)
    assert [left for _, left in told.seen] == pytest.approx([99.0, 92.0])


def test_the_runtimes_own_time_is_part_of_the_promise(forked: Any, machine: Any) -> None:
    def slow(view: View, budget: Budget) -> int:
        machine.clock.advance(0.5)
        return 0

    told = tell(forked, slow)
    for _ in range(10):
        forked.infer(marked(8), 20.0)
    assert [left for _, left in told.seen] == pytest.approx([19.0] * 10)
    assert told.seen[0][0].latency_ms[:, -1] == pytest.approx([2.0, 4.0])
    assert told.seen[-1][0].latency_ms[:, -1] == pytest.approx([2.5, 4.5])


# --- chains -------------------------------------------------------------------------------------


def chain(*names: str) -> list[Node]:
    """Exits one after another."""
    nodes = []
    for i, name in enumerate(names):
        source = FEATURES if i else IMAGES
        last = i == len(names) - 1
        nodes.append(Node(name, name, source, (LOGITS,) if last else BOTH, names[i + 1 : i + 2]))
    return nodes


def test_images_leave_a_chain_where_they_are_told(grow: Any) -> None:
    session = grow(*chain("a", "b", "c"))

    def odd_ones_go_on(view: View, budget: Budget) -> Any:
        assert view.logits is not None
        return np.where(view.logits[:, 0].astype(int) % 2 == 1, 0, STOP)

    tell(session, odd_ones_go_on)
    result = session.infer(marked(6), math.inf)
    assert result.nodes.tolist() == ["a", "c", "a", "c", "a", "c"]
    assert result.logits[:, 0].tolist() == [0, 201, 2, 203, 4, 205]


def test_the_cheapest_way_on_is_promised(grow: Any) -> None:
    session = grow(*chain("a", "b", "c"), ms={"a": 1.0, "b": 2.0, "c": 4.0})
    told = tell(session, lambda view, budget: 0)
    session.infer(marked(8), 20.0)
    assert [view.latency_ms[0, -1] for view, _ in told.seen] == pytest.approx([2.0, 4.0])
    assert [left for _, left in told.seen] == pytest.approx([19.0, 17.0])


def test_the_time_of_deeper_engines_is_not_the_runtimes_own(grow: Any) -> None:
    session = grow(*chain("a", "b", "c"), ms={"a": 1.0, "b": 2.0, "c": 4.0})
    for _ in range(5):
        session.infer(marked(8), math.inf)
    assert session._machinery.latency.overheads.ms(Kind.WHOLE) == 0.0


@pytest.mark.parametrize("late", ["b", "c"])
def test_whatever_is_late_on_the_way_to_an_answer_widens_the_margin(
    grow: Any, machine: Any, late: str
) -> None:
    session = grow(
        Node("a", "a", IMAGES, BOTH, ("b",)),
        Node("b", "b", FEATURES, (FEATURES,), ("c",)),
        Node("c", "c", FEATURES, (LOGITS,)),
        ms={"a": 1.0, "b": 2.0, "c": 4.0},
    )
    tell(session, lambda view, budget: 0)
    usual = machine.ms[late]
    for group in range(100):
        machine.ms[late] = usual + (3.0 if group % 10 == 9 else 0.0)
        session.infer(marked(8), math.inf)
    score = session._machinery.latency.promise(1.0).score
    assert score == pytest.approx(3 / math.sqrt(7), rel=0.25)


def test_a_node_without_logits_must_be_left(grow: Any) -> None:
    session = grow(
        Node("stem", "stem", IMAGES, (FEATURES,), ("end",)),
        Node("end", "end", FEATURES, (LOGITS,)),
    )
    assert session.infer(marked(3), math.inf).logits[:, 0].tolist() == [100, 101, 102]
    tell(session, lambda view, budget: [0, STOP, 0])
    with pytest.raises(ConfigError, match="policy told stopped images at stem"):
        session.infer(marked(3), math.inf)


# --- a cascade ----------------------------------------------------------------------------------


def cascade() -> list[Node]:
    return [
        Node("small", "small", IMAGES, (LOGITS,), ("medium",)),
        Node("medium", "medium", IMAGES, (LOGITS,), ("large",)),
        Node("large", "large", IMAGES, (LOGITS,)),
    ]


def test_a_cascade_hands_the_images_on(grow: Any) -> None:
    session = grow(*cascade())

    def from_3_on(view: View, budget: Budget) -> Any:
        assert view.logits is not None
        limit = 3 if view.node == "small" else 106
        return np.where(view.logits[:, 0] >= limit, 0, STOP)

    tell(session, from_3_on)
    result = session.infer(marked(8), math.inf)
    assert result.logits[:, 0].tolist() == [0, 1, 2, 103, 104, 105, 206, 207]
    assert result.nodes.tolist() == ["small"] * 3 + ["medium"] * 3 + ["large"] * 2


def test_a_cascade_in_chunks_hands_the_right_images_on(grow: Any) -> None:
    session = grow(*cascade())
    tell(session, lambda view, budget: np.where(np.arange(view.pending) % 2 == 0, 0, STOP))
    result = session.infer(marked(19), math.inf)
    assert (result.logits[:, 0] % 100).tolist() == list(range(19))
    assert set(result.nodes) == {"small", "medium", "large"}


def test_a_cascade_keeps_no_features(grow: Any) -> None:
    buffers = grow(*cascade())._machinery.buffers
    assert {name for rooms in buffers.values() for name in rooms} == {LOGITS}


# --- several entries ----------------------------------------------------------------------------


def entries() -> list[Node]:
    """Two resolutions, a pioneer and a tail each, and codes for the opa policy."""
    made = []
    for side, low, high in ((16, 0.3, 0.6), (32, 0.5, 0.9)):
        pioneer, tail = f"p{side}", f"t{side}"
        made += [
            Node(pioneer, pioneer, IMAGES, BOTH, (tail,), side, (), 10 * side, low),
            Node(tail, tail, FEATURES, (LOGITS,), (), side, (high, 0.0), 20 * side, high),
        ]
    return made


TWO = {"p16": 1.0, "t16": 2.0, "p32": 4.0, "t32": 8.0}


@pytest.mark.parametrize(
    ("deadline", "route"),
    [
        (0.5, ["p16"]),
        (3.5, ["p16", "t16"]),
        (12.5, ["p32", "t32"]),
        (math.inf, ["p32", "t32"]),
    ],
)
def test_the_entry_that_fits_is_picked(grow: Any, deadline: float, route: list[str]) -> None:
    session = grow(*entries(), ms=TWO, policy="opa")
    assert [step.node for step in session.infer(marked(8), deadline).steps] == route


def test_under_load_the_smaller_entry_is_picked(grow: Any, machine: Any) -> None:
    session = grow(*entries(), ms=TWO, policy="opa")
    assert session.infer(marked(8), 13.0).steps[0].node == "p32"
    machine.slowdown = 4.0
    for _ in range(50):
        result = session.infer(marked(8), 13.0)
    assert result.steps[0].node == "p16"


def test_a_small_group_fits_a_larger_entry(grow: Any) -> None:
    session = grow(*entries(), ms=TWO, policy="opa")
    assert session.infer(marked(8), 9.0).steps[0].node == "p16"
    assert session.infer(marked(1), 9.0).steps[0].node == "p32"


def test_many_chunks_need_a_smaller_entry(grow: Any) -> None:
    session = grow(*entries(), ms=TWO, policy="opa")
    assert session.infer(marked(8), 13.0).steps[0].node == "p32"
    result = session.infer(marked(32), 13.0)
    assert {step.node for step in result.steps} <= {"p16", "t16"}
    assert result.deadline_met


def test_where_no_entry_fits_the_cheapest_answers(grow: Any) -> None:
    session = grow(*entries(), ms=TWO, policy="opa")
    result = session.infer(marked(8), 0.1)
    assert [step.node for step in result.steps] == ["p16"]
    assert result.fallback
    assert not result.deadline_met


@pytest.mark.parametrize("node", ["p16", "t16", "p32", "t32"])
@pytest.mark.parametrize("deadline", [0.1, 100.0])
def test_static_answers_by_its_node_whatever_entry_would_fit(
    grow: Any, node: str, deadline: float
) -> None:
    session = grow(*entries(), ms=TWO, policy=f"static:{node}")
    assert set(session.infer(marked(8), deadline).nodes) == {node}


def test_entries_without_successors_are_a_table_of_networks(grow: Any) -> None:
    nodes = [replace(node, outputs=(LOGITS,), successors=(), source=IMAGES) for node in entries()]
    session = grow(*nodes, ms=TWO)
    tell(session, lambda view, budget: pytest.fail("nothing to decide"))
    picked = [session.infer(marked(8), ms).steps[0].node for ms in (0.5, 3.0, 5.0, 9.0)]
    assert picked == ["p16", "t16", "p32", "t32"]


def test_to_stop_on_purpose_is_no_fallback(grow: Any) -> None:
    session = grow(*chain("a", "b"), ms={"a": 1.0, "b": 6.0}, policy="static:a")
    result = session.infer(marked(8), 2.0)
    assert set(result.nodes) == {"a"}
    assert not result.fallback


def test_a_table_of_networks_learns_how_restless_each_is(grow: Any, machine: Any) -> None:
    nodes = [replace(node, outputs=(LOGITS,), successors=(), source=IMAGES) for node in entries()]
    session = grow(*nodes, ms=TWO)
    tell(session, lambda view, budget: pytest.fail("nothing to decide"))
    latency = session._machinery.latency
    before = latency.promises(["t32"])[0].score
    for group in range(60):
        machine.slowdown = 1.5 if group % 10 == 9 else 1.0
        session.infer(marked(8), 20.0)
    assert latency.promises(["t32"])[0].score > before
    assert latency.known("t32")


def test_what_is_learned_from_a_group_does_not_count_as_its_time(
    grow: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = grow(*chain("a", "b"))
    tell(session, lambda view, budget: 0)
    latency = session._machinery.latency
    observe = latency.observe_rest

    def slowly(*given: Any, **named: Any) -> None:
        machine.clock.advance(50.0)
        observe(*given, **named)

    monkeypatch.setattr(latency, "observe_rest", slowly)
    result = session.infer(marked(8), 20.0)
    assert result.deadline_met
    assert result.measured_ms == pytest.approx(sum(step.measured_ms for step in result.steps))


# --- memory -------------------------------------------------------------------------------------


def test_features_stay_where_the_pioneer_wrote_them(forked: Any) -> None:
    memory = forked._machinery.buffers["pioneer"][FEATURES]
    address = memory.lease(1).tensor().data_ptr()
    forked.infer(marked(8), math.inf)
    lease = memory.lease(8)
    assert lease.tensor().data_ptr() == address
    assert lease.tensor()[:, 0, 0, 0].tolist() == list(range(8))


def test_each_node_has_memory_of_its_own(grow: Any) -> None:
    buffers = grow(*chain("a", "b", "c"))._machinery.buffers
    rooms = [room for given in buffers.values() for room in given.values()]
    places = {room.lease(1).tensor().data_ptr() for room in rooms}
    assert buffers.keys() == {"a", "b", "c"}
    assert len(places) == len(rooms) == 5


def test_nodes_may_share_an_engine(grow: Any) -> None:
    session = grow(
        Node("first", "shared", IMAGES, BOTH, ("second",)),
        Node("second", "other", FEATURES, BOTH, ("third",)),
        Node("third", "other", FEATURES, BOTH),
    )
    result = session.infer(marked(5), math.inf)
    assert [step.node for step in result.steps] == ["first", "second", "third"]
    assert result.logits[:, 0].tolist() == [200, 201, 202, 203, 204]
