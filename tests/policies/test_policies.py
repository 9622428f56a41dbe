"""What policies decide: pure functions of what they see."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.bundle import Bundle
from opa_trt.errors import ConfigError, UnknownNameError
from opa_trt.policies import (
    STOP,
    Budget,
    Estimator,
    Knowledge,
    Policy,
    Predictor,
    View,
    make_policy,
    policy_names,
    route_end,
)
from opa_trt.runtime.session import read_knowledge
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Tree

TAILS = ("tiny", "small", "medium", "large")


@pytest.fixture
def made(toy_bundle: Path) -> tuple[Tree, Knowledge]:
    bundle = Bundle(toy_bundle)
    return bundle.tree, read_knowledge(bundle)


@pytest.fixture
def opa(made: tuple[Tree, Knowledge]) -> Policy:
    return make_policy("opa", *made)


def logits_of(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return (3 * np.random.default_rng(seed).normal(size=(count, 5))).astype(np.float32)


def view_of(latency: Any, logits: Any = None, **changes: Any) -> View:
    """After the pioneer; ``latency`` is of each tail for the whole group."""
    values = logits_of(6) if logits is None else logits
    column = np.array(latency, dtype=np.float64)[:, None]
    table = np.hstack([column / 2, column])
    return View(**{
        "node": "pioneer", "logits": values, "successors": TAILS,
        "batches": (1, len(values)), "latency_ms": table, **changes,
    })  # fmt: skip


def chosen(policy: Policy, view: View, left_ms: float) -> str:
    """The one successor of all images, or ``stop``."""
    decision, _ = policy.step(view, Budget(left_ms), policy.start())
    (index,) = set(decision.choice.tolist())
    return "stop" if index == STOP else view.successors[index]


# --- by name ------------------------------------------------------------------------------------


def test_policies_are_made_by_name(made: tuple[Tree, Knowledge]) -> None:
    assert {"opa", "static"} <= set(policy_names())
    for name in policy_names():
        assert make_policy(name, *made).name == name


def test_an_unknown_policy_names_the_nearest(made: tuple[Tree, Knowledge]) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'static'"):
        make_policy("sttic", *made)


@pytest.mark.parametrize("name", ["opa", "static"])
def test_an_unknown_option_is_refused(made: tuple[Tree, Knowledge], name: str) -> None:
    with pytest.raises(ConfigError, match="windw"):
        make_policy(name, *made, windw=3)


def test_an_unknown_node_names_the_nearest(made: tuple[Tree, Knowledge]) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'medium'"):
        make_policy("static:medum", *made)


def test_a_node_for_a_policy_that_takes_none_is_refused(made: tuple[Tree, Knowledge]) -> None:
    with pytest.raises(ConfigError, match="takes no options"):
        make_policy("opa:tiny", *made)


# --- opa ----------------------------------------------------------------------------------------


def test_opa_takes_the_best_tail_that_fits(opa: Policy) -> None:
    view = view_of([1, 2, 4, 8])
    assert [chosen(opa, view, ms) for ms in (1.5, 2.5, 4.5, 8.5)] == list(TAILS)


def test_a_tail_that_fits_exactly_fits(opa: Policy) -> None:
    assert chosen(opa, view_of([1, 2, 4, 8]), 4.0) == "medium"


def test_a_better_and_faster_tail_is_taken(opa: Policy) -> None:
    assert chosen(opa, view_of([1, 2, 4, 0.5]), 1.5) == "large"


def test_where_nothing_fits_the_pioneer_answers(opa: Policy) -> None:
    decision, _ = opa.step(view_of([1, 2, 4, 8]), Budget(0.5), None)
    assert (decision.choice == STOP).all()
    assert not decision.fits
    assert "nothing fits" in decision.reason


def test_where_nothing_fits_logits_are_not_read(
    opa: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opa_trt.policies.opa.ascending_powers", lambda _: pytest.fail("read"))
    decision, _ = opa.step(view_of([1, 2, 4, 8]), Budget(0.5), None)
    assert math.isnan(decision.estimated_accuracy)


@pytest.mark.parametrize("left", [0.0, -3.0])
def test_without_time_the_pioneer_answers(opa: Policy, left: float) -> None:
    assert chosen(opa, view_of([1, 2, 4, 8]), left) == "stop"


def test_without_deadline_the_best_is_taken(opa: Policy) -> None:
    assert chosen(opa, view_of([1, 2, 4, 8]), math.inf) == "large"


def test_equal_predictions_go_to_the_faster_tail(made: tuple[Tree, Knowledge]) -> None:
    tree, knowledge = made
    same = {name: np.array([0.5, 0.0], np.float32) for name in TAILS}
    opa = make_policy("opa", tree, replace(knowledge, codes=same))
    assert chosen(opa, view_of([4, 2, 1, 8]), 10.0) == "medium"
    assert chosen(opa, view_of([3, 3, 3, 3]), 10.0) == "tiny"


def test_it_says_what_it_was_based_on(opa: Policy, made: tuple[Tree, Knowledge]) -> None:
    view = view_of([1, 2, 4, 8])
    decision, _ = opa.step(view, Budget(5.0), None)
    assert view.logits is not None
    estimated = made[1].estimators[view.node].accuracy(view.logits)
    assert decision.predicted_ms == (1.0, 2.0, 4.0, 8.0)
    assert decision.estimated_accuracy == estimated
    assert decision.predicted_accuracy == pytest.approx(
        [0.2 * estimated + 0.8 * quality for quality in (0.5, 0.6, 0.7, 0.9)]
    )
    assert (decision.left_ms, decision.fits) == (5.0, True)
    assert "medium is the best of 3 that fit" in decision.reason


def test_every_image_gets_the_same_answer(opa: Policy) -> None:
    decision, _ = opa.step(view_of([1, 2, 4, 8], logits_of(9)), Budget(5.0), None)
    assert decision.choice.tolist() == [2] * 9


def test_peaked_logits_are_judged_more_accurate(opa: Policy) -> None:
    sure, unsure = 10 * np.eye(5, dtype=np.float32), np.zeros((5, 5), np.float32)
    high, low = (
        opa.step(view_of([1, 2, 4, 8], logits), Budget(9.0), None)[0] for logits in (sure, unsure)
    )
    assert (high.estimated_accuracy, low.estimated_accuracy) == (1.0, 0.0)
    assert all(np.array(high.predicted_accuracy) > low.predicted_accuracy)


@given(seed=st.integers(0, 1000))
def test_the_order_of_images_does_not_matter(seed: int) -> None:
    logits = logits_of(12, seed)
    order = np.random.default_rng(seed).permutation(12)
    policy = invented(np.random.default_rng(seed), 4)
    one, _ = policy.step(view_of([1, 2, 4, 8], logits), Budget(5.0), None)
    other, _ = policy.step(view_of([1, 2, 4, 8], logits[order]), Budget(5.0), None)
    assert one.choice.tolist() == other.choice.tolist()
    assert one.predicted_accuracy == other.predicted_accuracy


def invented(rng: np.random.Generator, tails: int) -> Policy:
    """opa over a random pioneer with ``tails`` random tails, some of them equal."""
    names = tuple(f"t{i}" for i in range(tails))
    nodes = [Node("pioneer", "pioneer", IMAGES, (FEATURES, LOGITS), names)]
    nodes += [Node(name, name, FEATURES, (LOGITS,)) for name in names]
    codes = {name: np.round(rng.random(2), 1).astype(np.float32) for name in names}
    estimator = Estimator(
        rng.normal(size=2).astype(np.float32), np.log(rng.random((2, 5))).astype(np.float32)
    )
    last = np.array([[0.1], [0.6], [0.3]], np.float32)
    predictor = Predictor((np.eye(3, dtype=np.float32), last), (np.zeros(3, "f4"), np.zeros(1)))
    codes = {"pioneer": np.zeros(0, np.float32), **codes}
    knowledge = Knowledge({"pioneer": estimator}, predictor, codes)
    return make_policy("opa", Tree(tuple(nodes)), knowledge)


@given(
    latency=st.lists(st.floats(0.01, 100) | st.sampled_from([1.0, 2.0]), min_size=1, max_size=12),
    left=st.floats(-1, 120) | st.sampled_from([1.0, 2.0, math.inf]),
    seed=st.integers(0, 10_000),
)
def test_the_choice_is_an_exact_argmax(latency: list[float], left: float, seed: int) -> None:
    policy = invented(np.random.default_rng(seed), len(latency))
    names = tuple(f"t{i}" for i in range(len(latency)))
    view = view_of(latency, successors=names)
    decision, _ = policy.step(view, Budget(left), policy.start())
    # Brute force: the highest prediction among those that fit, then the fastest of these.
    options = [
        (-decision.predicted_accuracy[i], ms, i) for i, ms in enumerate(latency) if ms <= left
    ]
    best = min(options)[2] if options else STOP
    assert set(decision.choice.tolist()) == {best}
    assert decision.fits == bool(options)


def test_a_node_that_no_estimator_reads_is_refused(made: tuple[Tree, Knowledge]) -> None:
    tree, knowledge = made
    opa = make_policy("opa", tree, replace(knowledge, estimators={}))
    with pytest.raises(ConfigError, match="no estimator that reads the logits of pioneer"):
        opa.step(view_of([1, 2, 4, 8]), Budget(5.0), None)


def test_every_node_is_judged_by_its_own_estimator(made: tuple[Tree, Knowledge]) -> None:
    tree, knowledge = made
    sure = Estimator(np.array([0, 1], np.float32), np.zeros((2, 5), np.float32))
    never = replace(sure, prior=-sure.prior)
    for estimator, judged in ((sure, 1.0), (never, 0.0)):
        others = dict.fromkeys(TAILS, knowledge.estimators["pioneer"])
        own = replace(knowledge, estimators={**others, "pioneer": estimator})
        decision, _ = make_policy("opa", tree, own).step(view_of([1, 2, 4, 8]), Budget(9.0), None)
        assert decision.estimated_accuracy == judged


def test_a_node_without_logits_cannot_be_judged(opa: Policy) -> None:
    view = replace(view_of([1, 2, 4, 8]), logits=None)
    with pytest.raises(ConfigError, match="needs logits"):
        opa.step(view, Budget(5.0), None)


def test_the_view_is_not_changed(opa: Policy) -> None:
    view = view_of([1, 2, 4, 8])
    assert view.logits is not None
    before = view.logits.copy(), view.latency_ms.copy()
    opa.step(view, Budget(5.0), None)
    np.testing.assert_array_equal(view.logits, before[0])
    np.testing.assert_array_equal(view.latency_ms, before[1])


def test_the_last_batch_size_is_the_number_of_images() -> None:
    assert view_of([1, 2, 4, 8], logits_of(9)).pending == 9


# --- static -------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", TAILS)
def test_static_takes_its_node_whatever_the_time(made: tuple[Tree, Knowledge], node: str) -> None:
    policy = make_policy(f"static:{node}", *made)
    for left in (-1.0, 3.0, math.inf):
        assert chosen(policy, view_of([1, 2, 4, 8]), left) == node


def test_static_stops_at_its_own_node(made: tuple[Tree, Knowledge]) -> None:
    policy = make_policy("static", *made, node="pioneer")
    assert chosen(policy, view_of([1, 2, 4, 8]), 100.0) == "stop"


def test_static_predicts_latency_and_nothing_else(made: tuple[Tree, Knowledge]) -> None:
    decision, _ = make_policy("static:small", *made).step(view_of([1, 2, 4, 8]), Budget(3.0), None)
    assert decision.predicted_ms == (1.0, 2.0, 4.0, 8.0)
    assert np.isnan(decision.predicted_accuracy).all()
    assert math.isnan(decision.estimated_accuracy)
    assert decision.reason == "always small"


def test_static_works_without_logits(made: tuple[Tree, Knowledge]) -> None:
    policy = make_policy("static:small", *made)
    assert chosen(policy, replace(view_of([1, 2, 4, 8]), logits=None), 1.0) == "small"


@pytest.mark.parametrize(("name", "node"), [("smallest", "tiny"), ("largest", "large")])
def test_the_smallest_and_the_largest_go_by_macs(
    made: tuple[Tree, Knowledge], name: str, node: str
) -> None:
    assert route_end(made[0], name) == node


def test_static_alone_is_the_largest(made: tuple[Tree, Knowledge]) -> None:
    assert chosen(make_policy("static", *made), view_of([1, 2, 4, 8]), 1.0) == "large"


def test_a_node_without_logits_is_no_end() -> None:
    stem = Node("stem", "stem", IMAGES, (FEATURES,), ("end",))
    end = Node("end", "end", FEATURES, (LOGITS,))
    with pytest.raises(ConfigError, match="stem has no logits"):
        route_end(Tree((stem, end)), "stem")
