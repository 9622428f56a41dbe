"""Image by image: exact, never worse than the whole group to one tail, and the same twice."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import opa_trt
from opa_trt.bundle import Bundle
from opa_trt.errors import ConfigError
from opa_trt.policies import STOP, Budget, Knowledge, Policy, Rightness, View, make_policy
from opa_trt.policies.evidence import READINGS, evidence, width
from opa_trt.policies.opa_split import OpaSplitPolicy, Plan, plan
from opa_trt.runtime.session import read_knowledge
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Tree

Floats = npt.NDArray[np.float32]
TAILS = ("tiny", "small", "medium", "large")
QUALITY = (0.5, 0.6, 0.7, 0.9)
CLASSES = 5


# --- made by hypothesis -------------------------------------------------------------------------


@st.composite
def situations(draw: Any, images: int = 6, tails: int = 3) -> dict[str, Any]:
    """What ``plan`` is asked: few values, so that there are ties, and any latencies."""
    count, kinds = draw(st.integers(1, images)), draw(st.integers(1, tails))
    below = draw(st.lists(st.integers(1, images), unique=True, max_size=3))
    batches = (*sorted(size for size in below if size < count), count)
    chance = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32)
    ms = st.sampled_from([1.0, 2.0, 4.0]) | st.floats(0.5, 9)
    return {
        "right": draw(arrays(np.float32, (count, 1 + kinds), elements=chance)),
        "latency_ms": draw(arrays(np.float64, (kinds, len(batches)), elements=ms)),
        "batches": batches,
        "split_ms": draw(st.sampled_from([0.0, 0.5, 3.0])),
        "left_ms": draw(st.sampled_from([-1.0, 1.0, 2.0, 4.0, 5.0, math.inf]) | st.floats(0, 12)),
    }


def gains_of(given: dict[str, Any]) -> npt.NDArray[np.float64]:
    """``[T, N]`` by how much each image gains by each tail."""
    right = given["right"]
    return (right[:, 1:] - right[:, :1]).T.astype(np.float64)


def cost_of(given: dict[str, Any], tail: int, sent: int) -> float:
    """ms of sending so many images to a tail."""
    holds = next(i for i, size in enumerate(given["batches"]) if size >= sent)
    split = given["split_ms"] if sent < len(given["right"]) else 0.0
    return float(given["latency_ms"][tail, holds] + split)


def brute_force(given: dict[str, Any]) -> float:
    """The largest gain of every set of images and every tail that fits."""
    count, gains, best = len(given["right"]), gains_of(given), 0.0
    for tail, sent in itertools.product(range(len(gains)), range(1, count + 1)):
        if cost_of(given, tail, sent) <= given["left_ms"]:
            sets = itertools.combinations(gains[tail], sent)
            best = max(best, *map(sum, sets))
    return best


def value(given: dict[str, Any], found: Plan) -> float:
    """What a plan's choice gains, counted image by image."""
    if found.tail == STOP:
        return 0.0
    return float(gains_of(given)[found.tail][found.choice == found.tail].sum())


@given(given=situations())
def test_no_set_of_images_and_no_tail_would_gain_more(given: dict[str, Any]) -> None:
    found = plan(**given)
    assert value(given, found) == pytest.approx(brute_force(given), abs=1e-6)
    assert found.gain == pytest.approx(value(given, found), abs=1e-6)


@given(given=situations())
def test_what_is_planned_fits(given: dict[str, Any]) -> None:
    found = plan(**given)
    assert found.sent == (found.choice != STOP).sum()
    assert set(found.choice.tolist()) <= {STOP, found.tail}
    if found.sent:
        assert cost_of(given, found.tail, found.sent) <= given["left_ms"]
        assert found.fits


@given(given=situations())
def test_it_fits_where_any_image_could_be_sent(given: dict[str, Any]) -> None:
    count, tails = len(given["right"]), len(given["latency_ms"])
    pairs = itertools.product(range(tails), range(1, count + 1))
    assert plan(**given).fits == any(cost_of(given, *pair) <= given["left_ms"] for pair in pairs)


@given(given=situations(images=12, tails=5))
def test_it_is_never_worse_than_the_whole_group_to_the_best_tail(given: dict[str, Any]) -> None:
    overall = given["right"].sum(axis=0, dtype=np.float64)
    fits = given["latency_ms"][:, -1] <= given["left_ms"]
    whole = max([0.0, *(overall[1:] - overall[0])[fits]])
    assert plan(**given).gain >= whole - 1e-6


@given(given=situations(), more=st.floats(0, 10))
def test_more_time_never_gains_less(given: dict[str, Any], more: float) -> None:
    longer = {**given, "left_ms": given["left_ms"] + more}
    assert plan(**longer).gain >= plan(**given).gain


@given(given=situations(images=12), seed=st.integers(0, 1000))
def test_permuting_images_permutes_the_choice(given: dict[str, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    given["right"] = rng.random(given["right"].shape).astype(np.float32)  # no two are equal
    order = rng.permutation(len(given["right"]))
    one, other = plan(**given), plan(**{**given, "right": given["right"][order]})
    assert one.choice[order].tolist() == other.choice.tolist()
    assert one.gain == other.gain


@given(given=situations(), seed=st.integers(0, 1000))
def test_equal_images_share_the_same_fate_in_any_order(given: dict[str, Any], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(given["right"]))
    one, other = plan(**given), plan(**{**given, "right": given["right"][order]})
    fates = [
        sorted(zip(right.tolist(), found.choice.tolist(), strict=True))
        for right, found in ((given["right"], one), (given["right"][order], other))
    ]
    assert fates[0] == fates[1]


@given(given=situations())
def test_what_it_reads_is_not_changed(given: dict[str, Any]) -> None:
    before = given["right"].copy(), given["latency_ms"].copy()
    plan(**given)
    np.testing.assert_array_equal(given["right"], before[0])
    np.testing.assert_array_equal(given["latency_ms"], before[1])


# --- by hand ------------------------------------------------------------------------------------


def asked(right: Any, ms: Any, left: float, split: float = 0.0, batches: Any = None) -> Plan:
    """A plan, from each image's probabilities and each tail's ms."""
    table = np.array(right, dtype=np.float32)
    sizes = tuple(range(1, len(table) + 1)) if batches is None else batches
    return plan(table, np.array(ms, dtype=np.float64), sizes, split, left)


def test_the_images_that_gain_most_are_sent() -> None:
    found = asked([[0.9, 0.95], [0.2, 0.8], [0.5, 0.4], [0.3, 0.8]], [[1, 2, 3, 4]], 2.0)
    assert found.choice.tolist() == [STOP, 0, STOP, 0]
    assert found.gain == pytest.approx(1.1)


def test_a_large_tail_for_few_beats_a_small_one_for_all() -> None:
    right = [[0.9, 0.9, 0.9], [0.9, 0.9, 0.9], [0.1, 0.3, 0.9]]
    found = asked(right, [[1, 2, 3], [3, 6, 9]], 3.0)
    assert found.choice.tolist() == [STOP, STOP, 1]


def test_the_split_is_charged() -> None:
    right = [[0.5, 0.4], [0.5, 0.9]]
    assert asked(right, [[1, 9]], 1.0).sent == 1
    assert asked(right, [[1, 9]], 1.0, split=0.1).sent == 0
    assert asked(right, [[1, 9]], 1.1, split=0.1).sent == 1


def test_the_whole_group_needs_no_split_even_where_an_image_loses() -> None:
    right = [[0.5, 0.45], [0.5, 0.9]]
    found = asked(right, [[2, 2]], 2.0, split=0.1)
    assert found.sent == 2
    assert found.gain == pytest.approx(0.35)


def test_fewer_images_than_the_batch_take_the_smallest_batch_that_holds_them() -> None:
    right = [[0.5, 0.9], *[[0.5, 0.5]] * 7]
    found = asked(right, [[1, 2, 4]], 1.0, batches=(1, 4, 8))
    assert (found.sent, found.choice[0]) == (1, 0)
    # The larger batch is faster here, but one image does not take it.
    assert asked(right, [[4, 2, 9]], 3.0, batches=(1, 4, 8)).sent == 0


def test_among_equals_the_fewest_ms_win_then_the_earlier_tail() -> None:
    right = [[0.5, 0.75, 0.75], [0.5, 0.75, 0.75]]
    assert asked(right, [[2, 3], [1, 2]], 9.0).tail == 1
    assert asked(right, [[1, 2], [1, 2]], 9.0).tail == 0


def test_among_equals_in_ms_too_the_smaller_batch_wins() -> None:
    right = [[0.5, 0.75], [0.5, 0.5]]  # the second gains nothing
    found = asked(right, [[2, 2]], 9.0)
    assert found.choice.tolist() == [0, STOP]


def test_among_images_that_gain_alike_the_one_in_most_doubt_goes() -> None:
    found = asked([[0.5, 0.75], [0.25, 0.5], [0.5, 0.75]], [[1, 5, 9]], 1.0)
    assert found.choice.tolist() == [STOP, 0, STOP]


def test_where_nothing_fits_all_stop() -> None:
    found = asked([[0.1, 0.9]] * 3, [[2, 3, 4]], 1.9)
    assert found.choice.tolist() == [STOP] * 3
    assert not found.fits


def test_where_nobody_gains_all_stop_though_it_fits() -> None:
    found = asked([[0.9, 0.8]] * 3, [[2, 3, 4]], 9.0)
    assert found.choice.tolist() == [STOP] * 3
    assert found.fits


@pytest.mark.parametrize(("left", "tail"), [(0.5, STOP), (1.0, 0), (2.0, 1)])
def test_one_image_is_a_group(left: float, tail: int) -> None:
    found = asked([[0.5, 0.6, 0.7]], [[1], [2]], left, split=5.0)
    assert found.choice.tolist() == [tail]


# --- the policy ---------------------------------------------------------------------------------


@pytest.fixture
def made(toy_bundle: Path) -> tuple[Tree, Knowledge]:
    bundle = Bundle(toy_bundle)
    return bundle.tree, read_knowledge(bundle)


@pytest.fixture
def split(made: tuple[Tree, Knowledge]) -> Policy:
    return make_policy("opa_split", *made)


def logits_of(count: int, seed: int = 0) -> Floats:
    return (2 * np.random.default_rng(seed).normal(size=(count, CLASSES))).astype(np.float32)


def view_of(count: int = 8, **changes: Any) -> View:
    """After the pioneer: four tails at three sizes of batch."""
    full = np.array([1.0, 2.0, 4.0, 8.0])[:, None]
    values = {
        "node": "pioneer", "logits": logits_of(count), "successors": TAILS,
        "batches": (1, 4, count), "latency_ms": full * [0.5, 0.75, 1.0], **changes,
    }  # fmt: skip
    return View(**values)


# Of the large tail there is time for one image, of the others for none.
ONE_LARGE = np.array([[9.0] * 3, [9.0] * 3, [9.0] * 3, [4.0, 6.0, 8.0]])


def test_the_hard_images_go_on(split: Policy) -> None:
    view = view_of(latency_ms=ONE_LARGE)
    decision, _ = split.step(view, Budget(4.0), None)
    sure = evidence(logits_of(8))[:, READINGS.index("log_odds")]
    sent = decision.choice != STOP
    assert set(decision.choice[sent].tolist()) == {TAILS.index("large")}
    assert sent.sum() == 1
    assert sure[sent].max() == sure.min()
    assert decision.fits


def test_it_says_what_it_was_based_on(split: Policy, made: tuple[Tree, Knowledge]) -> None:
    view = view_of(latency_ms=ONE_LARGE)
    assert view.logits is not None
    decision, state = split.step(view, Budget(4.0), split.start())
    log_odds = evidence(view.logits)[:, 0].astype(np.float64)
    assert decision.estimated_accuracy == pytest.approx((1 / (1 + np.exp(-log_odds))).mean(), 1e-5)
    tails = [(1 / (1 + np.exp(2 - 4 * q - log_odds / 4))).mean() for q in QUALITY]
    assert decision.predicted_accuracy == pytest.approx(tails, 1e-5)
    assert decision.predicted_ms == (9.0, 9.0, 9.0, 8.0)
    assert (decision.left_ms, state) == (4.0, None)
    assert decision.reason.startswith("1 of 8 images to large, +0.")
    assert decision.notes["expected_accuracy"] > decision.estimated_accuracy


def test_it_decides_the_same_from_evidence(split: Policy) -> None:
    assert isinstance(split, OpaSplitPolicy)
    view = view_of(30)
    assert view.logits is not None
    one, _ = split.step(view, Budget(5.0), None)
    other = split.decide(view, Budget(5.0), evidence(view.logits))
    assert one.choice.tolist() == other.choice.tolist()
    assert replace(one, choice=other.choice) == other


@pytest.mark.parametrize(
    ("left", "start", "reason"),
    [
        (0.4, 3.0, "nothing fits, so pioneer answers"),
        (math.inf, 3.0, "all images to large"),
        (9.0, 50.0, "no image is expected to gain"),
    ],
)
def test_it_says_why(left: float, start: float, reason: str, split: Policy) -> None:
    logits = np.zeros((8, CLASSES), np.float32)
    logits[:, 0] = start
    decision, _ = split.step(view_of(logits=logits), Budget(left), None)
    assert decision.reason.startswith(reason)
    assert decision.fits == (left > 0.4)


def test_where_nothing_fits_logits_are_not_read(
    split: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opa_trt.policies.opa_split.evidence", lambda _: pytest.fail("read"))
    decision, _ = split.step(view_of(), Budget(0.4), None)
    assert (decision.choice == STOP).all()
    assert math.isnan(decision.estimated_accuracy)


def test_a_bundle_without_rightness_says_to_build_it_again(made: tuple[Tree, Knowledge]) -> None:
    tree, knowledge = made
    earlier = replace(knowledge, rightness={})
    assert make_policy("opa", tree, earlier).name == "opa"
    with pytest.raises(ConfigError) as caught:
        make_policy("opa_split", tree, earlier)
    assert caught.value.remedy == "build the bundle again."


def test_options_are_refused(made: tuple[Tree, Knowledge]) -> None:
    with pytest.raises(ConfigError, match="takes no options"):
        make_policy("opa_split", *made, threshold=0.5)


def test_a_node_without_logits_cannot_be_judged(split: Policy) -> None:
    with pytest.raises(ConfigError, match="needs logits"):
        split.step(view_of(logits=None), Budget(5.0), None)


# --- deeper in a tree ---------------------------------------------------------------------------


def chain() -> Tree:
    """Three exits, one after the other."""
    both = (FEATURES, LOGITS)
    return Tree((
        Node("first", "first", IMAGES, both, ("second",)),
        Node("second", "second", FEATURES, both, ("third",)),
        Node("third", "third", FEATURES, (LOGITS,)),
    ))  # fmt: skip


def model_of(*nodes: str) -> Rightness:
    """The later the node, the likelier it is right, whatever the image."""
    weight = np.zeros((width(CLASSES), len(nodes)), np.float32)
    return Rightness(nodes, weight, np.arange(len(nodes), dtype=np.float32))


def at(node: str, successor: str) -> View:
    each = np.array([[1.0, 2.0]] * 3)
    return view_of(
        2,
        node=node,
        successors=(successor,),
        batches=(1, 2),
        latency_ms=each[:1],
        each_ms=each,
    )


def test_every_node_that_a_model_reads_may_be_followed(made: tuple[Tree, Knowledge]) -> None:
    models = {"first": model_of("first", "second", "third"), "second": model_of("second", "third")}
    policy = make_policy("opa_split", chain(), replace(made[1], rightness=models))
    for node, successor in (("first", "second"), ("second", "third")):
        decision, _ = policy.step(at(node, successor), Budget(2.0), None)
        assert decision.choice.tolist() == [0, 0]


def test_a_node_that_no_model_reads_is_refused(made: tuple[Tree, Knowledge]) -> None:
    only, both = {"first": model_of("first", "second")}, {"second": model_of("second")}
    for models in (only, only | both):
        policy = make_policy("opa_split", chain(), replace(made[1], rightness=models))
        with pytest.raises(ConfigError, match="no model that reads the logits of second"):
            policy.step(at("second", "third"), Budget(2.0), None)


# --- in a session -------------------------------------------------------------------------------


def gives(logits: Floats, inputs: Any) -> dict[str, torch.Tensor]:
    """The first of these logits, and features of nothing."""
    count = len(inputs[IMAGES])
    wanted = torch.from_numpy(logits[:count])
    return {LOGITS: wanted, FEATURES: torch.zeros(count, 4, 4, 4)}


def test_a_session_sends_the_hard_images_on(machine: Any, invent: Any, toy: Any) -> None:
    logits = np.zeros((8, CLASSES), np.float32)
    logits[:, 1] = [8, 0.1, 8, 8, 0.2, 8, 8, 8]
    machine.outputs["pioneer"] = lambda inputs: gives(logits, inputs)
    with machine.load(invent(toy.nodes), policy="opa_split") as session:
        result = session.infer(toy.images(8), deadline_ms=8.0)
    assert result.deadline_met
    assert result.nodes.tolist() == [
        "large" if hard else "pioneer" for hard in (0, 1, 0, 0, 1, 0, 0, 0)
    ]


def test_a_session_on_real_engines_answers_each_image_by_its_node(
    toy: Any, toy_bundle: Path, ticking: Any
) -> None:
    images = toy.images(8)
    with opa_trt.load(toy_bundle, policy="opa_split", clock=ticking) as session:
        result = session.infer(images, deadline_ms=1e9)
    wanted = {name: toy.monolith(name, images) for name in TAILS}
    for row, name in enumerate(result.nodes):
        if name != "pioneer":
            np.testing.assert_allclose(result.logits[row], wanted[name][row], atol=1e-4)
    assert set(result.nodes) <= {"pioneer", "large"}
