"""What is learned about accuracy: estimator, predictor and rightness, and how well they do."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.errors import BackendUnavailable
from opa_trt.policies import Estimator, Predictor, Rightness
from opa_trt.policies.evidence import READINGS, confidences, evidence, scaled_sorted

Floats = npt.NDArray[np.float32]
Rights = npt.NDArray[np.bool_]
LAYERS = (124, 124, 124)
COUNTS = (1, 3, 10, 30)  # naive Bayes reads counts: how many one image's top confidence stands for
FOLDS = 5
DECAY = 1e-2
ROUNDS = 60
STRENGTHS = (0.01, 0.1, 1.0)  # of the data against the prior that weights are small
JUDGES = 3  # nodes on which the models' form is chosen
NEVER = -1e9  # log prior of a judgement that the fitting images never called for


@dataclass(frozen=True)
class Records:
    """What every node answered on a pool of images.

    Args:
        logits: the pioneer's, ``[N, C] float32``.
        right: by node name, ``[N] bool``.
        condition: ``[N] int64``, which kind of content an image is (degradation, or class).
    """

    logits: Floats
    right: Mapping[str, Rights]
    condition: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """Groups of rows of a pool: the estimated pioneer accuracy and each tail's accuracy."""

    estimated: Floats
    accuracy: Floats


def fit_estimator(records: Records, pioneer: str) -> Estimator:
    """Multinomial naive Bayes on the pioneer's scaled, sorted confidences (OPA, IV-B).

    Naive Bayes weighs its evidence by the counts it reads; how many counts a confidence of 1
    stands for is chosen by cross-validation (the paper leaves it at 1, where the prior wins).

    Raises:
        BackendUnavailable: scikit-learn is missing.
    """
    try:
        from sklearn.model_selection import cross_val_score
        from sklearn.naive_bayes import MultinomialNB
    except ImportError as exc:
        raise _sklearn_missing() from exc
    features, right = scaled_sorted(confidences(records.logits)), records.right[pioneer]
    counts = 1
    if min(right.sum(), (~right).sum()) >= FOLDS:
        scores = [
            cross_val_score(MultinomialNB(), features * n, right, cv=FOLDS).mean() for n in COUNTS
        ]
        counts = COUNTS[int(np.argmax(scores))]
    model = MultinomialNB().fit(features * counts, right)
    weight = np.zeros((2, records.logits.shape[1]), dtype=np.float32)
    prior = np.full(2, NEVER, dtype=np.float32)
    for row, label in enumerate(model.classes_):  # one class only, if it is always right
        weight[int(label)] = model.feature_log_prob_[row] * counts
        prior[int(label)] = model.class_log_prior_[row]
    return Estimator(prior, weight)


def draw_groups(
    records: Records,
    tails: list[str],
    estimator: Estimator,
    *,
    groups: int,
    size: int,
    seed: int,
) -> Groups:
    """Groups of ``size`` rows with content in common: each mixes one to three conditions.

    Returns:
        ``estimated [G] float32`` and ``accuracy [G, T] float32``.
    """
    judged = estimator.right(records.logits)
    right = np.stack([records.right[name] for name in tails])
    rows = draw_rows(records.condition, groups=groups, size=size, seed=seed)
    accuracy = np.stack([right[:, group].mean(axis=1) for group in rows])
    return Groups(judged[rows].mean(axis=1).astype(np.float32), accuracy.astype(np.float32))


def draw_rows(
    condition: npt.NDArray[np.int64], *, groups: int, size: int, seed: int
) -> npt.NDArray[np.int64]:
    """``[groups, size] int64`` rows of a pool whose conditions are ``[N]``; each group mixes one
    to three of them."""
    draw = np.random.default_rng([seed, 31])
    kinds = np.unique(condition)
    members = {kind: np.flatnonzero(condition == kind) for kind in kinds}
    found = np.empty((groups, size), dtype=np.int64)
    for row in found:
        mix = draw.choice(kinds, size=min(len(kinds), int(draw.integers(1, 4))), replace=False)
        pool = np.concatenate([members[kind] for kind in mix])
        row[:] = draw.choice(pool, size=size, replace=len(pool) < size)
    return found


def fit_predictor(lessons: Sequence[tuple[Groups, Floats]], *, seed: int) -> Predictor:
    """Three layers of 124: (estimated pioneer accuracy, arch) to accuracy (OPA, IV-C).

    Args:
        lessons: of every pioneer its groups, and the archs ``[T, E] float32`` of its tails.
        seed: of weights and batches.

    Raises:
        BackendUnavailable: scikit-learn is missing.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor
    except ImportError as exc:
        raise _sklearn_missing() from exc
    rows = [_rows(groups, codes) for groups, codes in lessons]
    inputs, targets = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    model = MLPRegressor(
        hidden_layer_sizes=LAYERS,
        alpha=DECAY,
        learning_rate_init=1e-3,
        batch_size=min(256, len(targets)),
        max_iter=ROUNDS,
        tol=1e-5,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many rounds, by design
        model.fit(inputs, targets)
    return Predictor(
        tuple(weight.astype(np.float32) for weight in model.coefs_),
        tuple(bias.astype(np.float32) for bias in model.intercepts_),
    )


def fit_rightness(records: Records, pioneer: str, *, seed: int) -> Rightness:
    """A logistic model for every node: the pioneer's evidence to how likely the node is right.

    All share how strongly weights are held small, and whether the predicted class is looked at:
    cross-validation of the log loss decides, on ``JUDGES`` of the nodes from first to last. A node
    that is always right, or never, gets the rate that its count allows (Laplace's).

    Raises:
        BackendUnavailable: scikit-learn is missing.
    """
    found = evidence(records.logits).astype(np.float64)
    mean, scale = found.mean(axis=0), found.std(axis=0)
    mean[len(READINGS) :], scale[len(READINGS) :] = 0, 1  # classes stay what they are
    scale[scale < 1e-6] = np.inf  # what never varies says nothing
    inputs = (found - mean) / scale
    names = [pioneer, *(name for name in records.right if name != pioneer)]
    rights = [records.right[name] for name in names]
    widths = sorted({len(READINGS), inputs.shape[1]})
    ways = [(width, strength) for width in widths for strength in STRENGTHS]
    places = np.unique(np.linspace(0, len(names) - 1, JUDGES).round().astype(int))
    judges = [rights[place] for place in places]
    weight, bias = np.zeros((inputs.shape[1], len(names))), np.zeros(len(names))
    with _one_thread():
        losses = [_left_out_loss(inputs[:, :w], judges, strength, seed) for w, strength in ways]
        width, strength = ways[int(np.argmin(losses))]
        for column, right in enumerate(rights):
            slope, start = _logistic(inputs[:, :width], right, strength)
            weight[:width, column] = slope / scale[:width]
            bias[column] = start - mean[:width] @ weight[:width, column]
    return Rightness(tuple(names), weight.astype(np.float32), bias.astype(np.float32))


def _one_thread() -> AbstractContextManager[Any]:
    """Many small models: threads would cost more than they bring."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # scikit-learn brings it
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits


def _left_out_loss(inputs: Any, rights: list[Rights], strength: float, seed: int) -> float:
    """Mean log loss, over nodes, on the parts that were left out."""
    part = np.random.default_rng([seed, 32]).permutation(len(inputs)) % FOLDS
    losses = []
    for left_out in range(min(FOLDS, len(inputs))):
        rest, rows = part != left_out, part == left_out
        for right in rights:
            slope, start = _logistic(inputs[rest], right[rest], strength)
            odds = inputs[rows] @ slope + start
            losses.append(np.logaddexp(0, np.where(right[rows], -odds, odds)).mean())
    return float(np.mean(losses))


def _logistic(inputs: Any, right: Rights, strength: float) -> tuple[Any, float]:
    """Slope ``[F]`` and start of the log-odds that ``right [N]`` is true for ``inputs [N, F]``."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as exc:
        raise _sklearn_missing() from exc
    hits = int(right.sum())
    if hits in (0, len(right)):
        return np.zeros(inputs.shape[1]), float(np.log((hits + 1) / (len(right) - hits + 1)))
    model = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=100)
    model.fit(inputs, right)
    return model.coef_[0], float(model.intercept_[0])


def report(
    estimator: Estimator,
    predictor: Predictor,
    held_out: Records,
    groups: Groups,
    codes: Floats,
    pioneer: str,
) -> dict[str, Any]:
    """Held-out figures: share of right judgements; RMSE and R² of the tails' group accuracies.

    ``judgement_base`` is what always saying the commoner of right and wrong would score.
    ``groups`` must be drawn from ``held_out``.
    """
    right = held_out.right[pioneer]
    judged = estimator.right(held_out.logits)
    predicted = np.stack([predictor.accuracies(float(e), codes) for e in groups.estimated])
    error = predicted - groups.accuracy
    spread = groups.accuracy - groups.accuracy.mean()
    return {
        "judgement": float((judged == right).mean()),
        "judgement_base": float(max(right.mean(), 1 - right.mean())),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float(1 - (error**2).sum() / max(1e-12, float((spread**2).sum()))),
        "groups": len(groups.estimated),
        "images": len(right),
    }


def _rows(groups: Groups, codes: Floats) -> tuple[Floats, Floats]:
    """Every (group, tail) pair as a row ``[G × T, 1 + E]``, and its accuracy."""
    estimated = np.repeat(groups.estimated, len(codes))[:, None]
    inputs = np.concatenate([estimated, np.tile(codes, (len(groups.estimated), 1))], axis=1)
    return inputs.astype(np.float32), groups.accuracy.reshape(-1)


def _sklearn_missing() -> BackendUnavailable:
    return BackendUnavailable(
        "fitting needs scikit-learn, which is not installed.",
        remedy="pip install 'opa-trt[build]'",
    )
