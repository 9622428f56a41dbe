"""Networks that go on in levels: ways to an answer, and policies that follow them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from opa_trt.errors import ConfigError
from opa_trt.evaluate.oracles import Layout, OraclePolicy, RandomPolicy
from opa_trt.policies import STOP, Budget, Knowledge, Predictor, Promise, View, make_policy
from opa_trt.policies.evidence import width
from opa_trt.policies.knowledge import Estimator, Rightness
from opa_trt.policies.ways import Ways, every_way
from opa_trt.tree import FEATURES, IMAGES, LOGITS, OPA, Node, Tree

CLASSES = 5
LEAVES = {"a-c": 0.6, "a-d": 0.7, "b-c": 0.8, "b-d": 0.9}  # accuracy
MS = {"first": 1.0, "a": 1.0, "b": 3.0, "a-c": 1.0, "a-d": 2.0, "b-c": 1.5, "b-d": 4.0}


def levels() -> Tree:
    """An entry with an exit, two alternatives without one, and two more after each of them."""
    both = (FEATURES, LOGITS)
    leaves = [
        Node(name, name[-1], FEATURES, (LOGITS,), code=(share,), macs=10, accuracy=share)
        for name, share in LEAVES.items()
    ]
    return Tree((
        Node("first", "first", IMAGES, both, ("a", "b"), accuracy=0.4),
        Node("a", "a", FEATURES, (FEATURES,), ("a-c", "a-d")),
        Node("b", "b", FEATURES, (FEATURES,), ("b-c", "b-d")),
        *leaves,
    ))  # fmt: skip


TREE = levels()


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    """Whatever the image, a node is as right as its accuracy says."""
    ends = ("first", *LEAVES)
    odds = [np.log(TREE[name].accuracy / (1 - TREE[name].accuracy)) for name in ends]
    rightness = Rightness(
        ends, np.zeros((width(CLASSES), len(ends)), "f4"), np.array(odds, np.float32)
    )
    estimator = Estimator(np.zeros(2, "f4"), np.zeros((2, CLASSES), "f4"))
    predictor = Predictor((np.array([[0.0], [1.0]], "f4"),), (np.zeros(1, "f4"),))
    codes = {node.name: np.array(node.code or (0.0,), "f4") for node in TREE.nodes.values()}
    return Knowledge({"first": estimator}, predictor, codes, {"first": rightness})


def view_of(node: str, count: int = 4, overhead: float = 0.1) -> View:
    """After ``node`` ran, at two batch sizes, of which the smaller takes half as long."""
    batches = (count // 2, count)
    each = np.array([[MS[name] / 2, MS[name]] for name in TREE.nodes])
    rows = {name: row for row, name in enumerate(TREE.nodes)}
    successors = TREE[node].successors
    cheapest = [
        min(
            (sum(each[rows[name]] + overhead for name in route.nodes) for route in ways),
            key=lambda ms: float(ms[-1]),
        )
        for ways in ([*TREE.routes(name)] for name in successors)
    ]
    logits = np.zeros((count, CLASSES), "f4") if LOGITS in TREE[node].outputs else None
    return View(
        node, logits, successors, batches, np.array(cheapest), overhead_ms=overhead, each_ms=each
    )


def taken(policy: Any, left: float, then: float | None = None) -> list[str]:
    """The nodes that a group passes; ``then`` replaces what is left after the first."""
    state, node, passed = policy.start(), "first", ["first"]
    while TREE[node].successors:
        decision, state = policy.step(view_of(node), Budget(left), state)
        (place,) = set(decision.choice.tolist())
        if place == STOP:
            break
        node = TREE[node].successors[place]
        passed.append(node)
        left = left - MS[node] - 0.1 if then is None else then
    return passed


# --- ways ---------------------------------------------------------------------------------------


def test_ways_lead_to_every_answer_below() -> None:
    ways = Ways.below(TREE, "first")
    assert ways.ends == tuple(LEAVES)
    assert ways.through.tolist() == [0, 0, 1, 1]
    assert not ways.direct
    assert Ways.below(TREE, "a").direct
    assert set(every_way(TREE, OPA)) == {"first", "a", "b"}


def test_a_ways_latency_is_that_of_its_nodes_and_the_overhead_of_each() -> None:
    found = Ways.below(TREE, "first").latency_ms(view_of("first"))
    np.testing.assert_allclose(found[:, -1], [2.2, 3.2, 4.7, 7.2])
    np.testing.assert_allclose(found[:, 0], [1.2, 1.7, 2.45, 3.7])


def test_a_promise_is_made_of_the_whole_way() -> None:
    """And of what ran before it: interruptions of its parts do not all come together."""
    view = view_of("first")
    ways = Ways.below(TREE, "first")
    promise = Promise(score=0.7, before_ms=1.5)
    engines = ways.latency_ms(replace(view, overhead_ms=0.0))
    more = ways.latency_ms(replace(view, promise=promise)) - ways.latency_ms(view)
    np.testing.assert_allclose(more, 0.7 * np.sqrt(engines + 1.5))


def test_a_promise_is_never_below_the_least() -> None:
    expected = np.array([1.0, 4.0, 100.0])
    np.testing.assert_allclose(Promise(spread=1.2).ms(expected), 1.2 * expected)
    found = Promise(score=1.0, spread=1.2).ms(expected)
    np.testing.assert_allclose(found, [2.0, 6.0, 120.0])


def test_the_cheapest_way_through_a_successor_is_what_the_view_says() -> None:
    view = view_of("first")
    found = Ways.below(TREE, "first").latency_ms(view)
    np.testing.assert_allclose([found[:2].min(axis=0), found[2:].min(axis=0)], view.latency_ms)


def test_ways_of_several_nodes_need_every_latency() -> None:
    with pytest.raises(ConfigError, match="every node's latency"):
        Ways.below(TREE, "first").latency_ms(replace(view_of("first"), each_ms=None))


def test_choices_of_ways_are_choices_of_successors() -> None:
    ways = Ways.below(TREE, "first")
    assert ways.begin(np.array([STOP, 0, 1, 2, 3])).tolist() == [STOP, 0, 0, 1, 1]
    assert [ways.begins(way) for way in (None, 1, 2)] == [STOP, 0, 1]
    assert ways.by_successor([0.1, 0.4, 0.3, 0.2]) == (0.4, 0.3)


# --- policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["opa", "opa_split"])
@pytest.mark.parametrize(
    ("left", "passed"),
    [
        (9.0, ["first", "b", "b-d"]),
        (7.2, ["first", "b", "b-d"]),
        (7.1, ["first", "b", "b-c"]),
        (4.6, ["first", "a", "a-d"]),
        (2.5, ["first", "a", "a-c"]),
        (1.0, ["first"]),
    ],
)
def test_the_group_goes_the_most_accurate_way_that_fits(
    knowledge: Knowledge, name: str, left: float, passed: list[str]
) -> None:
    policy = make_policy(name, TREE, knowledge)
    found = taken(policy, left)
    if name == "opa_split" and left in (7.1, 4.6, 2.5, 1.0):
        assert found[0] == "first"  # a part of the group may go further: looked at below
        return
    assert found == passed


def test_images_are_split_over_whole_ways(knowledge: Knowledge) -> None:
    """In 3.9 ms half of the group has time for the best way (3.7), and all for another (3.2)."""
    policy = make_policy("opa_split", TREE, knowledge)
    view = view_of("first")
    decision, thought = policy.step(view, Budget(3.9), policy.start())
    assert decision.reason == "all images to a-d, +1.2 right expected"
    assert decision.choice.tolist() == [0] * 4
    assert thought["a-d"] == pytest.approx(4 * 0.7, rel=1e-5)
    decision, thought = policy.step(replace(view, split_ms=0.1), Budget(2.1), policy.start())
    assert decision.reason == "2 of 4 images to a-d, +0.6 right expected"
    assert sorted(decision.choice.tolist()) == [STOP, STOP, 0, 0]
    assert thought["a-d"] == pytest.approx(2 * 0.7, rel=1e-5)
    assert decision.predicted_accuracy == pytest.approx((0.7, 0.9), rel=1e-5)


@pytest.mark.parametrize("name", ["opa", "opa_split"])
def test_time_that_is_lost_on_the_way_costs_accuracy_alone(knowledge: Knowledge, name: str) -> None:
    policy = make_policy(name, TREE, knowledge)
    assert taken(policy, 9.0, then=2.0) == ["first", "b", "b-c"]


@pytest.mark.parametrize("name", ["opa", "opa_split"])
def test_where_nothing_fits_on_the_way_the_fastest_answers(knowledge: Knowledge, name: str) -> None:
    policy = make_policy(name, TREE, knowledge)
    assert taken(policy, 9.0, then=-1.0) == ["first", "b", "b-c"]
    state = policy.step(view_of("first"), Budget(9.0), policy.start())[1]
    decision, _ = policy.step(view_of("b"), Budget(-1.0), state)
    assert decision.reason == "nothing fits, so b-c, the fastest, answers"
    assert not decision.fits
    assert np.isnan(decision.estimated_accuracy)


@pytest.mark.parametrize("name", ["opa", "opa_split"])
def test_nothing_is_known_at_a_node_without_logits_that_is_first(
    knowledge: Knowledge, name: str
) -> None:
    policy = make_policy(name, TREE, knowledge)
    with pytest.raises(ConfigError, match="needs logits, which a does not give"):
        policy.step(view_of("a"), Budget(9.0), policy.start())


@pytest.mark.parametrize("node", LEAVES)
def test_a_static_route_is_followed_to_its_end(knowledge: Knowledge, node: str) -> None:
    policy = make_policy(f"static:{node}", TREE, knowledge)
    assert taken(policy, 0.1) == ["first", node[0], node]


def test_dynamic_ofa_takes_a_level_to_its_end(knowledge: Knowledge) -> None:
    policy = make_policy("dynamic_ofa", TREE, knowledge)
    assert taken(policy, 9.0) == ["first", "b", "b-d"]


def test_the_oracle_takes_the_way_that_is_right_most_often() -> None:
    right = {name: np.arange(4) < hits for name, hits in zip(LEAVES, (3, 1, 2, 2), strict=True)}
    oracle = OraclePolicy({**right, "first": np.zeros(4, bool)}, layout=Layout.of(TREE))
    assert taken(oracle, 9.0) == ["first", "a", "a-c"]
    assert taken(oracle, 9.0, then=-1.0) == ["first", "a", "a-c"]
    assert taken(oracle, 1.0) == ["first"]


def test_chance_goes_on_where_it_cannot_stop() -> None:
    found = {tuple(taken(RandomPolicy(seed), 9.0)) for seed in range(30)}
    assert {way[-1] for way in found} == set(LEAVES)
    assert all(len(taken(RandomPolicy(seed), 9.0, then=-1.0)) == 3 for seed in range(5))
