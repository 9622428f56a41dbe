"""BranchyNet and the cascade: thresholds for each group, and who leaves where."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opa_trt
from opa_trt.bundle import PROFILE, Bundle
from opa_trt.errors import BundleCorrupt, ConfigError
from opa_trt.policies import STOP, Budget, Decision, Policy, View, make_policy
from opa_trt.policies.thresholds import (
    Chain,
    chain_of,
    chains_from_arrays,
    chains_to_arrays,
    entropy,
    unsureness,
)
from opa_trt.runtime.session import read_knowledge
from opa_trt.tree import BRANCHYNET, CASCADE, Tree

NAMES = ("branchynet", "cascade")
EXITS = {"branchynet": ("exit1", "exit2", "exit3"), "cascade": ("cascade1", "cascade2", "cascade3")}


@pytest.fixture
def tree(every_node: Any) -> Tree:
    return Tree(every_node)


@pytest.fixture
def knowledge(everything: Path) -> Any:
    return read_knowledge(Bundle(everything))


def logits_of(*confidences: float) -> Any:
    """Logits of two classes whose softmax has these largest confidences."""
    top = np.array(confidences, np.float64)
    return np.log(np.stack([top, 1 - top], axis=1)).astype(np.float32)


SURE, SO_SO, UNSURE = 0.99, 0.7, 0.51  # doubts 0.01, 0.3, 0.49; nats 0.06, 0.61, 0.69


def view_of(
    tree: Tree, node: str, logits: Any, ms: tuple[float, ...], overhead: float = 0.0, **more: Any
) -> View:
    """After ``node``; ``ms`` of the exits for a full batch, proportional below it."""
    system, count = tree[node].system, len(logits)
    chain = [each.name for each in chain_of(tree, system)]
    batches = tuple(range(1, count + 1))
    each = np.zeros((len(tree.nodes), len(batches)))
    for name, full in zip(chain, ms, strict=True):
        each[[*tree.nodes].index(name)] = [full * batch / count for batch in batches]
    (follower,) = tree[node].successors
    latency = each[[*tree.nodes].index(follower)][None] + overhead
    return View(
        node, logits, (follower,), batches, latency, overhead_ms=overhead, each_ms=each, **more
    )


def step(policy: Policy, view: View, left_ms: float, state: Any = None) -> tuple[Decision, Any]:
    return policy.step(view, Budget(left_ms), state)


def of_chain(tree: Tree, knowledge: Any, chain: Chain, name: str = "cascade") -> Policy:
    system = make_policy(name, tree, knowledge).system
    return make_policy(name, tree, replace(knowledge, chains={system: chain}))


def one_way(*thresholds: float, reach: tuple[float, ...] = (1, 1, 1)) -> Chain:
    return Chain(
        np.array([thresholds], np.float32),
        np.array([reach], np.float32),
        np.array([0.5], np.float32),
    )


# --- who leaves ---------------------------------------------------------------------------------


def test_an_image_leaves_a_cascade_where_its_confidence_is_above(
    tree: Tree, knowledge: Any
) -> None:
    policy = of_chain(tree, knowledge, one_way(0.25, 0.25))  # a confidence above 0.75
    view = view_of(tree, "cascade1", logits_of(SURE, SO_SO, 0.76, 0.74), (1, 1, 1))
    assert step(policy, view, 9.0)[0].choice.tolist() == [STOP, 0, STOP, 0]


def test_an_image_leaves_branchynet_where_its_entropy_is_below(tree: Tree, knowledge: Any) -> None:
    nats = float(entropy(logits_of(0.75))[0])
    policy = of_chain(tree, knowledge, one_way(nats, nats), "branchynet")
    view = view_of(tree, "exit1", logits_of(SURE, SO_SO, 0.76, 0.74), (1, 1, 1))
    assert step(policy, view, 9.0)[0].choice.tolist() == [STOP, 0, STOP, 0]


def test_doubt_at_the_threshold_goes_on(tree: Tree, knowledge: Any) -> None:
    logits = logits_of(SO_SO)
    policy = of_chain(tree, knowledge, one_way(float(unsureness(logits)[0]), 0.1))
    assert step(policy, view_of(tree, "cascade1", logits, (1, 1, 1)), 9.0)[0].choice == [0]


def test_every_exit_has_its_own_threshold(tree: Tree, knowledge: Any) -> None:
    policy = of_chain(tree, knowledge, one_way(0.05, 0.4))
    logits = logits_of(SURE, SO_SO, UNSURE)
    first, state = step(policy, view_of(tree, "cascade1", logits, (1, 1, 1)), 9.0)
    second, _ = step(policy, view_of(tree, "cascade2", logits, (1, 1, 1)), 9.0, state)
    assert first.choice.tolist() == [STOP, 0, 0]
    assert second.choice.tolist() == [STOP, STOP, 0]


@given(
    confidence=st.lists(st.floats(0.5, 0.999), min_size=1, max_size=20),
    threshold=st.floats(0, 0.5),
)
def test_more_doubt_never_leaves_earlier(confidence: list[float], threshold: float) -> None:
    doubt = unsureness(logits_of(*confidence))
    leaves = doubt < threshold
    assert not leaves.any() or doubt[leaves].max() < min(doubt[~leaves], default=math.inf)


@given(st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=1, max_size=6))
def test_entropy_is_that_of_the_softmax(rows: list[list[float]]) -> None:
    logits = np.array(rows, np.float32)
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    share = wide / wide.sum(axis=1, keepdims=True)
    wanted = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
    found = entropy(logits)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (found >= 0).all()
    assert (found <= math.log(4) + 1e-5).all()


# --- which thresholds ---------------------------------------------------------------------------


@pytest.fixture
def ways() -> Chain:
    """Three ways: all go on to the last exit, half to the second, none."""
    return Chain(
        np.array([[0, 0], [0.25, np.inf], [np.inf, np.inf]], np.float32),
        np.array([[1, 1, 1], [1, 0.5, 0], [1, 0, 0]], np.float32),
        np.array([0.9, 0.8, 0.6], np.float32),
    )


@pytest.mark.parametrize(
    ("left", "wanted"),
    # four images: all through both exits 4 + 8 ms; two of them to the second 2 ms
    [(12.0, 0.9), (11.9, 0.8), (2.0, 0.8), (1.9, 0.6), (0.0, 0.6)],
)
def test_the_most_accurate_way_that_fits_is_taken(
    tree: Tree, knowledge: Any, ways: Chain, left: float, wanted: float
) -> None:
    logits = logits_of(SURE, SURE, SO_SO, UNSURE)
    view = view_of(tree, "cascade1", logits, (1.0, 4.0, 8.0))
    decision, _ = step(of_chain(tree, knowledge, ways), view, left)
    assert decision.notes["expected_accuracy"] == pytest.approx(wanted)
    assert decision.fits == (wanted > 0.6)


def test_a_share_of_the_images_is_rounded_up(tree: Tree, knowledge: Any, ways: Chain) -> None:
    view = view_of(tree, "cascade1", logits_of(SURE, SO_SO, SURE), (1.0, 3.0, 9.0))
    policy = of_chain(tree, knowledge, ways)
    enough, _ = step(policy, view, 2.0)  # half of three are two, of 1 ms each
    assert enough.notes["expected_ms"] == pytest.approx(2.0)
    assert step(policy, view, 1.9)[0].notes["expected_accuracy"] == pytest.approx(0.6)


def test_overhead_and_split_are_counted_at_every_exit(
    tree: Tree, knowledge: Any, ways: Chain
) -> None:
    logits = logits_of(SURE, SURE, SO_SO, UNSURE)
    view = view_of(tree, "cascade1", logits, (1.0, 4.0, 8.0), overhead=0.5, split_ms=0.25)
    policy = of_chain(tree, knowledge, ways)
    assert step(policy, view, 13.0)[0].notes["expected_ms"] == pytest.approx(13.0)
    assert step(policy, view, 12.9)[0].notes["expected_ms"] == pytest.approx(2.0 + 0.75)


def test_a_group_of_more_doubt_than_usual_takes_another_way(
    tree: Tree, knowledge: Any, ways: Chain
) -> None:
    logits = logits_of(UNSURE, UNSURE, SO_SO, UNSURE)  # all four would go on, not two
    view = view_of(tree, "cascade1", logits, (1.0, 4.0, 8.0))
    decision, _ = step(of_chain(tree, knowledge, ways), view, 3.0)
    assert decision.notes["expected_accuracy"] == pytest.approx(0.6)
    assert (decision.choice == STOP).all()


def test_equal_ways_go_to_the_faster(tree: Tree, knowledge: Any, ways: Chain) -> None:
    equal = replace(ways, accuracy=np.full(3, 0.7, np.float32))
    view = view_of(tree, "cascade1", logits_of(SO_SO, SO_SO), (1, 1, 1))
    assert step(of_chain(tree, knowledge, equal), view, 99.0)[0].notes["expected_ms"] == 0.0


def test_the_way_is_kept_until_the_last_exit(tree: Tree, knowledge: Any, ways: Chain) -> None:
    policy = of_chain(tree, knowledge, ways)
    logits = logits_of(SO_SO, SO_SO)
    _, state = step(policy, view_of(tree, "cascade1", logits, (1, 4, 8)), 99.0)
    kept, after = step(policy, view_of(tree, "cascade2", logits, (1, 4, 8)), 9.0, state)
    assert (kept.choice == 0).all()
    assert (after, kept.notes) == (state, {})


def test_where_the_next_exit_no_longer_fits_the_pending_stop(
    tree: Tree, knowledge: Any, ways: Chain
) -> None:
    policy = of_chain(tree, knowledge, ways)
    logits = logits_of(SO_SO, SO_SO)
    _, state = step(policy, view_of(tree, "cascade1", logits, (1, 4, 8)), 99.0)
    late, _ = step(policy, view_of(tree, "cascade2", logits, (1, 4, 8)), 7.9, state)
    assert (late.choice == STOP).all()
    assert not late.fits
    assert "nothing fits" in late.reason


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", [-1.0, 0.0])
def test_without_time_the_first_exit_answers(
    tree: Tree, knowledge: Any, name: str, left: float
) -> None:
    view = view_of(tree, EXITS[name][0], logits_of(UNSURE, UNSURE), (1, 1, 1))
    decision, _ = step(make_policy(name, tree, knowledge), view, left)
    assert (decision.choice == STOP).all()
    assert not decision.fits


@pytest.mark.parametrize("name", NAMES)
def test_more_time_never_expects_less(tree: Tree, knowledge: Any, name: str) -> None:
    policy = make_policy(name, tree, knowledge)
    view = view_of(tree, EXITS[name][0], logits_of(SURE, SO_SO, UNSURE, SO_SO), (1, 4, 8))
    found = [
        step(policy, view, left)[0].notes["expected_accuracy"] for left in np.linspace(0, 13, 27)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


# --- in a session -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "deadline"), [("branchynet", 7.5), ("cascade", 11.0)])
def test_images_leave_at_several_exits(
    every_machine: Any, everything: Path, name: str, deadline: float
) -> None:
    images = np.zeros((8, 3, 16, 16), np.uint8)
    images[:, 0, 0, 0] = np.linspace(0, 255, 8)  # ever surer
    with every_machine.load(everything, policy=name) as session:
        result = session.infer(images, deadline)
    assert result.deadline_met
    assert set(result.nodes.tolist()) == set(EXITS[name])
    places = [EXITS[name].index(node) for node in result.nodes]
    assert places == sorted(places, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_without_its_nodes_is_refused(name: str, machine: Any, toy_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=f"no nodes for {name}"):
        opa_trt.load(toy_bundle, policy=name, backend="null")


@pytest.mark.parametrize("name", NAMES)
def test_options_are_refused(tree: Tree, knowledge: Any, name: str) -> None:
    with pytest.raises(ConfigError, match="takes no options"):
        make_policy(name, tree, knowledge, entropy=1)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_without_thresholds_are_refused(tree: Tree, knowledge: Any, name: str) -> None:
    with pytest.raises(ConfigError, match="no thresholds for the 3 exits"):
        make_policy(name, tree, replace(knowledge, chains={}))


# --- as arrays ----------------------------------------------------------------------------------


def test_the_profile_gives_the_thresholds_back(everything: Path, chains: Any) -> None:
    found = chains_from_arrays(Bundle(everything).arrays(PROFILE))
    assert found.keys() == {CASCADE, BRANCHYNET}
    for system, chain in chains.items():
        np.testing.assert_array_equal(found[system].thresholds, chain.thresholds)
        np.testing.assert_array_equal(found[system].reach, chain.reach)
        np.testing.assert_array_equal(found[system].accuracy, chain.accuracy)


@pytest.mark.parametrize("field", ["thresholds", "reach", "accuracy"])
def test_a_missing_array_is_named(chains: Any, field: str) -> None:
    arrays = chains_to_arrays(chains)
    del arrays[f"chains/cascade/{field}"]
    with pytest.raises(BundleCorrupt, match=f"chains/cascade/{field}"):
        chains_from_arrays(arrays)


def test_arrays_that_do_not_fit_together_are_refused(chains: Any) -> None:
    arrays = chains_to_arrays(chains)
    arrays["chains/cascade/accuracy"] = arrays["chains/cascade/accuracy"][:2]
    with pytest.raises(BundleCorrupt, match="do not fit together"):
        chains_from_arrays(arrays)


def test_a_chain_is_in_order(tree: Tree) -> None:
    assert [node.name for node in chain_of(tree, BRANCHYNET)] == ["exit1", "exit2", "exit3"]
    assert chain_of(Tree(tuple(tree.nodes.values())[:4]), BRANCHYNET) == ()
