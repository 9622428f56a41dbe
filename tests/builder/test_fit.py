"""Estimator and predictor: what they learn from records, and what the report says of them."""

from __future__ import annotations

import math
import sys

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.naive_bayes import MultinomialNB

from opa_trt.builder.fit import (
    FOLDS,
    Groups,
    Records,
    draw_groups,
    fit_estimator,
    fit_predictor,
    fit_rightness,
    report,
)
from opa_trt.errors import BackendUnavailable
from opa_trt.policies import Estimator, Predictor
from opa_trt.policies.evidence import READINGS, confidences, evidence, scaled_sorted

CLASSES = 4
CODES = np.array([[0.2, 1.0], [0.5, 0.3], [0.9, 0.6]], dtype=np.float32)
TAILS = ["tail1", "tail2", "tail3"]


def make_records(count: int = 300, seed: int = 0, kinds: int = 5) -> Records:
    """Peaked logits where the pioneer is right, flat ones where not; tails right by condition."""
    draw = np.random.default_rng(seed)
    condition = draw.integers(0, kinds, count)
    right = draw.random(count) < 0.9 - 0.15 * condition
    logits = draw.standard_normal((count, CLASSES)) * np.where(right, 6.0, 0.7)[:, None]
    answers = {"pioneer": right}
    for index, name in enumerate(TAILS):
        answers[name] = draw.random(count) < 0.5 + 0.15 * index - 0.05 * condition
    return Records(logits.astype(np.float32), answers, condition)


def constant_estimator(right: bool) -> Estimator:
    """One that judges everything alike."""
    prior = np.array([0.0, 1.0] if right else [1.0, 0.0], dtype=np.float32)
    return Estimator(prior, np.zeros((2, CLASSES), dtype=np.float32))


def constant_predictor(value: float) -> Predictor:
    """One that always says ``value``."""
    return Predictor((np.zeros((3, 1), np.float32),), (np.array([value], np.float32),))


# --- the estimator ------------------------------------------------------------------------------


def test_the_estimator_beats_always_saying_the_commoner() -> None:
    estimator, fresh = fit_estimator(make_records(), "pioneer"), make_records(seed=1)
    right = fresh.right["pioneer"]
    judged = (estimator.right(fresh.logits) == right).mean()
    assert judged > max(right.mean(), 1 - right.mean()) + 0.1


def test_the_estimator_judges_as_scikit_learns_naive_bayes_on_some_count_does() -> None:
    records = make_records()
    features, right = scaled_sorted(confidences(records.logits)), records.right["pioneer"]
    judged = fit_estimator(records, "pioneer").right(records.logits)
    agreed = [
        (MultinomialNB().fit(features * n, right).predict(features * n) == judged).all()
        for n in (1, 3, 10, 30)
    ]
    assert any(agreed)


def test_fitting_the_estimator_twice_gives_the_same() -> None:
    one, two = (fit_estimator(make_records(), "pioneer") for _ in range(2))
    assert np.array_equal(one.prior, two.prior)
    assert np.array_equal(one.weight, two.weight)


def test_the_estimators_arrays_are_float32_by_class() -> None:
    estimator = fit_estimator(make_records(), "pioneer")
    assert estimator.prior.shape == (2,)
    assert estimator.weight.shape == (2, CLASSES)
    assert estimator.prior.dtype == estimator.weight.dtype == np.float32


@pytest.mark.parametrize("always", [True, False])
def test_a_pioneer_that_is_always_alike_is_judged_so(always: bool) -> None:
    records = make_records()
    alike = Records(records.logits, {"pioneer": np.full(300, always)}, records.condition)
    assert (fit_estimator(alike, "pioneer").right(records.logits) == always).all()


def test_too_few_errors_to_cross_validate_are_fitted_all_the_same() -> None:
    records = make_records()
    right = np.ones(300, dtype=bool)
    right[: FOLDS - 1] = False
    few = Records(records.logits, {"pioneer": right}, records.condition)
    assert np.isfinite(fit_estimator(few, "pioneer").weight).all()


@pytest.mark.parametrize("module", ["sklearn.naive_bayes", "sklearn.model_selection"])
def test_the_estimator_without_scikit_learn_says_what_to_install(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailable, match="scikit-learn") as caught:
        fit_estimator(make_records(), "pioneer")
    assert caught.value.remedy == "pip install 'opa-trt[build]'"


# --- groups -------------------------------------------------------------------------------------


def drawn(records: Records, *, groups: int = 40, size: int = 12, seed: int = 0) -> Groups:
    estimator = constant_estimator(True)
    return draw_groups(records, TAILS, estimator, groups=groups, size=size, seed=seed)


def test_groups_have_an_estimate_and_an_accuracy_of_every_tail() -> None:
    groups = drawn(make_records())
    assert groups.estimated.shape == (40,)
    assert groups.accuracy.shape == (40, len(TAILS))


def test_accuracies_are_shares_of_a_group() -> None:
    twelfths = drawn(make_records()).accuracy * 12
    assert np.allclose(twelfths, np.rint(twelfths), atol=1e-4)
    assert 0 <= twelfths.min() <= twelfths.max() <= 12


def test_the_estimate_is_the_share_that_the_estimator_judges_right() -> None:
    records = make_records()
    for judged in (True, False):
        estimator = constant_estimator(judged)
        groups = draw_groups(records, TAILS, estimator, groups=5, size=9, seed=0)
        assert (groups.estimated == judged).all()


def test_a_group_mixes_one_to_three_conditions() -> None:
    records = make_records(kinds=7)
    # Tail k is right on condition k alone, so its accuracy is that condition's share.
    right = {f"tail{k}": records.condition == k for k in range(7)}
    only = Records(
        records.logits, {"pioneer": records.right["pioneer"], **right}, records.condition
    )
    estimator = constant_estimator(True)
    groups = draw_groups(only, list(right), estimator, groups=200, size=60, seed=0)
    assert np.allclose(groups.accuracy.sum(axis=1), 1)
    assert set((groups.accuracy > 0).sum(axis=1)) == {1, 2, 3}


def test_one_condition_alone_makes_groups_too() -> None:
    assert drawn(make_records(kinds=1)).accuracy.shape == (40, len(TAILS))


def test_groups_larger_than_the_pool_repeat_images() -> None:
    assert drawn(make_records(count=20), size=50).accuracy.shape == (40, len(TAILS))


def test_a_seed_draws_the_same_groups() -> None:
    records = make_records()
    assert np.array_equal(drawn(records).accuracy, drawn(records).accuracy)
    assert not np.array_equal(drawn(records).accuracy, drawn(records, seed=1).accuracy)


# --- the predictor ------------------------------------------------------------------------------


def linear_groups(count: int, seed: int = 0) -> Groups:
    """Accuracies that follow from the estimate and the arch: 0.2 + 0.4 × estimate + 0.3 × code."""
    estimated = np.random.default_rng(seed).random(count).astype(np.float32)
    accuracy = 0.2 + 0.4 * estimated[:, None] + 0.3 * CODES[None, :, 0]
    return Groups(estimated, accuracy.astype(np.float32))


def test_the_predictor_learns_accuracy_from_estimate_and_arch() -> None:
    predictor, fresh = (
        fit_predictor([(linear_groups(400), CODES)], seed=0),
        linear_groups(30, seed=1),
    )
    predicted = np.stack([predictor.accuracies(float(e), CODES) for e in fresh.estimated])
    assert np.abs(predicted - fresh.accuracy).max() < 0.05


def test_the_predictor_has_three_hidden_layers_of_124() -> None:
    predictor = fit_predictor([(linear_groups(20), CODES)], seed=0)
    assert [w.shape for w in predictor.weights] == [(3, 124), (124, 124), (124, 124), (124, 1)]
    assert all(w.dtype == np.float32 for w in (*predictor.weights, *predictor.biases))


def test_a_seed_fits_the_same_predictor() -> None:
    one, two, other = (fit_predictor([(linear_groups(20), CODES)], seed=s) for s in (0, 0, 1))
    assert np.array_equal(one.weights[0], two.weights[0])
    assert not np.array_equal(one.weights[0], other.weights[0])


def test_the_predictor_without_scikit_learn_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    with pytest.raises(BackendUnavailable, match="scikit-learn"):
        fit_predictor([(linear_groups(5), CODES)], seed=0)


# --- rightness ----------------------------------------------------------------------------------


def test_rightness_knows_more_than_the_rate() -> None:
    model, fresh = fit_rightness(make_records(600), "pioneer", seed=0), make_records(600, seed=1)
    assert model.nodes == ("pioneer", *TAILS)
    right = fresh.right["pioneer"]
    believed = model.probabilities(evidence(fresh.logits))[:, 0]
    loss = -np.log(np.where(right, believed, 1 - believed)).mean()
    rate = right.mean()
    assert loss < -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)) - 0.1


def test_believed_rates_are_those_of_the_fitting_images() -> None:
    records = make_records(400)
    believed = fit_rightness(records, "pioneer", seed=0).probabilities(evidence(records.logits))
    wanted = [records.right[name].mean() for name in ("pioneer", *TAILS)]
    assert believed.mean(axis=0) == pytest.approx(wanted, abs=1e-3)


def by_class(count: int, told: bool) -> Records:
    """Images of one sureness, right by their class or by chance."""
    draw = np.random.default_rng(0)
    answer = draw.integers(0, CLASSES, count)
    logits = (2 * np.eye(CLASSES)[answer] + 0.1 * draw.random((count, CLASSES))).astype("f4")
    right = (answer < 2) ^ (draw.random(count) < 0.1) if told else draw.random(count) < 0.5
    return Records(logits, {"pioneer": right}, answer)


@pytest.mark.parametrize("told", [True, False])
def test_the_class_counts_where_it_tells(told: bool) -> None:
    model = fit_rightness(by_class(400, told), "pioneer", seed=0)
    assert model.weight[len(READINGS) :].any() == told


@pytest.mark.parametrize("always", [True, False])
def test_a_node_that_is_always_alike_gets_its_rate(always: bool) -> None:
    records = make_records(48)
    alike = Records(
        records.logits, {**records.right, "tail2": np.full(48, always)}, records.condition
    )
    believed = fit_rightness(alike, "pioneer", seed=0).probabilities(evidence(records.logits))
    assert believed[:, 2] == pytest.approx(np.full(48, (49 if always else 1) / 50), rel=1e-4)


def test_all_nodes_may_be_alike_on_few_images() -> None:
    few = Records(np.zeros((2, 40), "f4"), {"pioneer": np.ones(2, bool)}, np.zeros(2, "i8"))
    model = fit_rightness(few, "pioneer", seed=0)
    assert model.probabilities(evidence(few.logits)).tolist() == [[0.75]] * 2


def test_a_seed_fits_the_same_rightness() -> None:
    one, two = (fit_rightness(make_records(100), "pioneer", seed=0) for _ in range(2))
    assert np.array_equal(one.weight, two.weight)
    assert np.array_equal(one.bias, two.bias)
    assert one.weight.dtype == one.bias.dtype == np.float32


def test_rightness_without_scikit_learn_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(BackendUnavailable, match="scikit-learn"):
        fit_rightness(make_records(), "pioneer", seed=0)


# --- the report ---------------------------------------------------------------------------------


def reported(judged: bool, predicted: float, accuracy: npt.ArrayLike) -> dict[str, float]:
    groups = Groups(np.array([0.5, 0.7], np.float32), np.array(accuracy, np.float32))
    return report(
        constant_estimator(judged),
        constant_predictor(predicted),
        make_records(),
        groups,
        CODES[:2],
        "pioneer",
    )


@pytest.mark.parametrize("judged", [True, False])
def test_the_judgement_is_the_share_of_right_ones(judged: bool) -> None:
    right = make_records().right["pioneer"]
    found = reported(judged, 0.5, [[0.5, 0.5], [0.5, 0.5]])
    assert found["judgement"] == pytest.approx((right == judged).mean())


def test_the_base_is_always_saying_the_commoner() -> None:
    share = make_records().right["pioneer"].mean()
    found = reported(True, 0.5, [[0.5, 0.5], [0.5, 0.5]])
    assert found["judgement_base"] == pytest.approx(max(share, 1 - share))


def test_rmse_is_that_of_every_tail_in_every_group() -> None:
    found = reported(True, 0.5, [[0.5, 0.6], [0.4, 0.9]])
    assert found["rmse"] == pytest.approx(math.sqrt((0.0 + 0.01 + 0.01 + 0.16) / 4), rel=1e-5)


def test_r2_of_the_mean_is_zero() -> None:
    assert reported(True, 0.6, [[0.5, 0.6], [0.4, 0.9]])["r2"] == pytest.approx(0.0, abs=1e-6)


def test_r2_of_what_is_right_is_one() -> None:
    assert reported(True, 0.6, [[0.6, 0.6], [0.6, 0.6]])["r2"] == pytest.approx(1.0, abs=1e-3)


def test_the_report_counts_groups_and_images() -> None:
    found = reported(True, 0.6, [[0.5, 0.6], [0.4, 0.9]])
    assert (found["groups"], found["images"]) == (2, 300)
