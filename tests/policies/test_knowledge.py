"""Estimator and predictor agree with the models that the build fits, and need numpy alone."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from opa_trt.bundle import PROFILE, Bundle, pack_arrays
from opa_trt.errors import BundleCorrupt
from opa_trt.policies import Estimator, Knowledge, Predictor, Rightness
from opa_trt.policies.evidence import (
    MOST_NAMED,
    READINGS,
    SUREST,
    confidences,
    evidence,
    scaled_sorted,
    width,
)
from opa_trt.runtime.session import read_knowledge

Floats = npt.NDArray[np.float32]
CLASSES = 10
logits_of = arrays(
    np.float32, (7, CLASSES), elements=st.floats(-50, 50, width=32, allow_subnormal=False)
)


def group(count: int = 400, seed: int = 0) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Logits, and whether they are right: more often where they are peaked."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, CLASSES)) * rng.uniform(0.5, 4, size=(count, 1))
    right = rng.random(count) < np.exp(logits - logits.max(1, keepdims=True)).sum(1) ** -0.7
    return logits.astype(np.float32), right


# --- evidence -----------------------------------------------------------------------------------


@given(logits=logits_of)
def test_confidences_are_the_softmax(logits: Floats) -> None:
    exact = np.exp(logits.astype(np.float64))
    exact /= exact.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(confidences(logits), exact, rtol=1e-4, atol=1e-7)


def test_large_logits_do_not_overflow() -> None:
    given = confidences(np.array([[1e4, -1e4, 0.0]], dtype=np.float32))
    np.testing.assert_array_equal(given, [[1.0, 0.0, 0.0]])


@given(logits=logits_of)
def test_logits_are_not_changed(logits: Floats) -> None:
    before = logits.copy()
    scaled_sorted(confidences(logits))
    np.testing.assert_array_equal(logits, before)


@given(logits=logits_of)
def test_scaled_confidences_fall_from_1_to_0(logits: Floats) -> None:
    scaled = scaled_sorted(confidences(logits))
    assert (np.diff(scaled, axis=1) <= 0).all()
    spread = np.ptp(confidences(logits), axis=1) > 1e-6
    np.testing.assert_allclose(scaled[spread, 0], 1, rtol=1e-6)
    np.testing.assert_array_equal(scaled[:, -1], 0)


@given(logits=logits_of, seed=st.integers(0, 1000))
def test_the_order_of_classes_does_not_matter(logits: Floats, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(CLASSES)
    one, other = scaled_sorted(confidences(logits)), scaled_sorted(confidences(logits[:, order]))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_equal_confidences_are_no_division_by_zero() -> None:
    np.testing.assert_array_equal(scaled_sorted(np.full((2, 5), 0.2, np.float32)), np.zeros((2, 5)))


@given(logits=logits_of)
def test_evidence_is_read_from_the_softmax(logits: Floats) -> None:
    exact = logits.astype(np.float64)
    powers = np.sort(np.exp(exact - exact.max(axis=1, keepdims=True)), axis=1)
    rest = powers[:, :-1].sum(axis=1)
    log_odds = -np.log(np.maximum(rest, np.exp(-SUREST)))
    ordered = np.sort(exact, axis=1)
    wanted = {
        "log_odds": log_odds,
        "margin": np.minimum(ordered[:, -1] - ordered[:, -2], SUREST),
        "confidence": 1 / (1 + rest),
        "log_odds_squared": log_odds**2 / SUREST,
    }
    assert tuple(wanted) == READINGS
    found = evidence(logits)
    for column, values in enumerate(wanted.values()):
        np.testing.assert_allclose(found[:, column], values, rtol=1e-4, atol=1e-4)


def test_evidence_names_the_answer_where_there_are_few_classes() -> None:
    logits, _ = group(30)
    found = evidence(logits)
    assert found.shape == (30, width(CLASSES))
    np.testing.assert_array_equal(found[:, len(READINGS) :].argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_array_equal(found[:, len(READINGS) :].sum(axis=1), 1)
    many = np.zeros((3, MOST_NAMED + 1), np.float32)
    assert evidence(many).shape == (3, len(READINGS)) == (3, width(MOST_NAMED + 1))


@pytest.mark.parametrize("logits", [[[7.0]], [[1e4, -1e4]], [[0.0, 0.0]], [[-3e38, 3e37, 0.0]]])
def test_evidence_of_extreme_logits_is_finite(logits: Any) -> None:
    given = np.array(logits, dtype=np.float32)
    before = given.copy()
    assert np.isfinite(evidence(given)).all()
    np.testing.assert_array_equal(given, before)


# --- estimator ----------------------------------------------------------------------------------


@functools.cache
def fitted() -> tuple[Any, Estimator]:
    """scikit-learn's multinomial naive Bayes, and ours with its parameters."""
    bayes = pytest.importorskip("sklearn.naive_bayes")
    logits, right = group()
    model = bayes.MultinomialNB().fit(scaled_sorted(confidences(logits)), right)
    prior = model.class_log_prior_.astype(np.float32)
    return model, Estimator(prior, model.feature_log_prob_.astype(np.float32))


def test_the_estimator_is_multinomial_naive_bayes() -> None:
    model, estimator = fitted()
    logits, _ = group(1000, seed=1)
    wanted = model.predict(scaled_sorted(confidences(logits)))
    assert 0.05 < wanted.mean() < 0.95
    np.testing.assert_array_equal(estimator.right(logits), wanted)


def test_the_estimated_accuracy_is_the_share_judged_right() -> None:
    model, estimator = fitted()
    logits, _ = group(50, seed=2)
    wanted = model.predict(scaled_sorted(confidences(logits))).mean()
    assert estimator.accuracy(logits) == pytest.approx(wanted)


@given(seed=st.integers(0, 1000))
def test_the_order_of_images_does_not_matter(seed: int) -> None:
    _, estimator = fitted()
    logits, _ = group(60, seed)
    order = np.random.default_rng(seed).permutation(60)
    assert estimator.accuracy(logits[order]) == estimator.accuracy(logits)


def test_one_image_is_a_group() -> None:
    _, estimator = fitted()
    logits, _ = group(20)
    alone = [estimator.accuracy(row[None]) for row in logits]
    assert set(alone) <= {0.0, 1.0}
    assert np.mean(alone) == pytest.approx(estimator.accuracy(logits))


# --- predictor ----------------------------------------------------------------------------------


@functools.cache
def trained() -> tuple[Any, Predictor]:
    """scikit-learn's three-layer perceptron, and ours with its parameters."""
    network = pytest.importorskip("sklearn.neural_network")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 5))
    model = network.MLPRegressor(hidden_layer_sizes=(8, 8, 8), max_iter=30, random_state=0, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        model.fit(inputs, np.abs(inputs) @ [0.3, 0.4, 0.1, 0.0, 0.1])
    weights = tuple(w.astype(np.float32) for w in model.coefs_)
    return model, Predictor(weights, tuple(b.astype(np.float32) for b in model.intercepts_))


@given(estimated=st.floats(0, 1), seed=st.integers(0, 1000))
def test_the_predictor_is_the_perceptron(estimated: float, seed: int) -> None:
    model, predictor = trained()
    codes = np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32)
    wanted = model.predict(np.c_[np.full(6, estimated), codes])
    given = predictor.accuracies(estimated, codes)
    np.testing.assert_allclose(given, np.clip(wanted, 0, 1), atol=1e-5)


@pytest.mark.parametrize(("bias", "clipped"), [(5.0, 1.0), (-5.0, 0.0)])
def test_predictions_stay_within_0_and_1(bias: float, clipped: float) -> None:
    predictor = Predictor((np.zeros((3, 1), np.float32),), (np.full(1, bias, np.float32),))
    given = predictor.accuracies(0.5, np.ones((4, 2), np.float32))
    np.testing.assert_array_equal(given, np.full(4, clipped))


# --- rightness ----------------------------------------------------------------------------------


def rightness(*nodes: str, seed: int = 0) -> Rightness:
    rng = np.random.default_rng(seed)
    shape = (width(CLASSES), len(nodes))
    return Rightness(nodes, rng.normal(size=shape).astype("f4"), rng.normal(size=len(nodes)))


def test_probabilities_are_logistic() -> None:
    model, read = rightness("a", "b", "c"), evidence(group(20)[0])
    odds = read.astype(np.float64) @ model.weight + model.bias
    np.testing.assert_allclose(model.probabilities(read), 1 / (1 + np.exp(-odds)), atol=1e-5)


@pytest.mark.parametrize(("bias", "wanted"), [(1e4, 1.0), (-1e4, 0.0)])
def test_great_odds_do_not_overflow(bias: float, wanted: float) -> None:
    model = Rightness(("a",), np.zeros((width(CLASSES), 1), "f4"), np.full(1, bias, "f4"))
    assert model.probabilities(evidence(group(2)[0])).tolist() == [[wanted]] * 2


def test_models_of_some_nodes_come_in_the_order_asked_for() -> None:
    model, read = rightness("a", "b", "c"), evidence(group(20)[0])
    some = model.of(("c", "a"))
    assert some is not None
    assert some.nodes == ("c", "a")
    np.testing.assert_array_equal(some.probabilities(read), model.probabilities(read)[:, [2, 0]])
    assert model.of(("a", "d")) is None


# --- as arrays ----------------------------------------------------------------------------------


def knowledge() -> Knowledge:
    _, estimator = fitted()
    codes = {name: np.ones(4, np.float32) for name in ("pioneer", "tail2", "tail1")}
    return Knowledge({"pioneer": estimator}, trained()[1], codes, {"pioneer": rightness(*codes)})


def test_knowledge_comes_back_from_its_arrays() -> None:
    made = knowledge()
    found = Knowledge.from_arrays(made.to_arrays(), made.codes)
    logits, _ = group(30)
    codes = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    assert found.estimators.keys() == {"pioneer"}
    one, other = (k.estimators["pioneer"].accuracy(logits) for k in (found, made))
    assert one == other
    one, other = (k.predictor.accuracies(0.5, codes) for k in (found, made))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "key",
    [
        "estimator/pioneer/prior",
        "estimator/pioneer/weight",
        "predictor/0/bias",
        "predictor/1/weight",
        "rightness/pioneer/tail1/bias",
    ],
)
def test_a_missing_array_is_a_corrupt_bundle(key: str) -> None:
    arrays = knowledge().to_arrays()
    del arrays[key]
    with pytest.raises(BundleCorrupt, match="the profile lacks the array"):
        Knowledge.from_arrays(arrays, knowledge().codes)


def test_rightness_comes_back_in_the_manifests_order() -> None:
    made = knowledge()
    kept = dict(sorted(made.to_arrays().items()))  # as a file may have them
    found = Knowledge.from_arrays(kept, made.codes).rightness
    assert [*found] == ["pioneer"]
    assert found["pioneer"].nodes == ("pioneer", "tail2", "tail1")
    np.testing.assert_array_equal(found["pioneer"].weight, made.rightness["pioneer"].weight)
    np.testing.assert_array_equal(found["pioneer"].bias, made.rightness["pioneer"].bias)


def test_an_estimator_without_a_name_reads_every_node() -> None:
    made = knowledge()
    arrays = {
        key.replace("estimator/pioneer/", "estimator/"): v for key, v in made.to_arrays().items()
    }
    assert {"estimator/prior", "estimator/weight"} <= arrays.keys()
    found = Knowledge.from_arrays(arrays, made.codes)
    logits, _ = group(30)
    assert found.estimators.keys() == made.codes.keys()
    for estimator in found.estimators.values():
        assert estimator.accuracy(logits) == made.estimators["pioneer"].accuracy(logits)


@pytest.mark.parametrize("key", ["estimator/prior", "estimator/weight"])
def test_an_estimator_without_a_name_has_both_arrays(key: str) -> None:
    arrays = {
        k.replace("estimator/pioneer/", "estimator/"): v for k, v in knowledge().to_arrays().items()
    }
    del arrays[key]
    with pytest.raises(BundleCorrupt, match=f"lacks the array '{key}'"):
        Knowledge.from_arrays(arrays, knowledge().codes)


def test_estimators_come_back_for_every_entry() -> None:
    made = knowledge()
    other = Estimator(*(np.ones_like(v) for v in (fitted()[1].prior, fitted()[1].weight)))
    both = replace(made, estimators={"pioneer": fitted()[1], "tail2": other})
    found = Knowledge.from_arrays(both.to_arrays(), made.codes)
    assert list(found.estimators) == ["pioneer", "tail2"]
    np.testing.assert_array_equal(found.estimators["tail2"].weight, other.weight)


def test_a_bundle_built_earlier_has_no_rightness() -> None:
    made = knowledge()
    arrays = {k: v for k, v in made.to_arrays().items() if not k.startswith("rightness/")}
    assert Knowledge.from_arrays(arrays, made.codes).rightness == {}


def test_a_bundle_brings_the_codes_of_its_nodes(toy: Any, toy_bundle: Path) -> None:
    found = read_knowledge(Bundle(toy_bundle))
    assert {name: tuple(code) for name, code in found.codes.items()} == {
        node.name: tuple(np.float32(node.code)) for node in toy.nodes
    }


def test_a_profile_without_estimator_is_a_corrupt_bundle(toy: Any, tmp_path: Path) -> None:
    empty = pack_arrays({"other": np.zeros(1, np.float32)})
    with pytest.raises(BundleCorrupt, match="estimator"):
        read_knowledge(Bundle(toy.pack(tmp_path / "b", files={PROFILE: empty})))
