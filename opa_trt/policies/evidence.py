"""What a node's logits say about each image: numbers that policies read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
READINGS = (
    "log_odds",  # of the largest confidence, at most SUREST
    "margin",  # of the largest logit over the second largest, at most SUREST
    "confidence",  # the largest
    "log_odds_squared",  # over SUREST
)
SUREST = 16.0  # log-odds beyond which an image is not told from a surer one
MOST_NAMED = 32  # classes up to which the answer itself is evidence
_LEAST = np.exp(np.float32(-SUREST))
SAFE = 60.0  # largest logits within which their exponentials are neither too large nor too small


def width(classes: int) -> int:
    """F: how many numbers ``evidence`` gives for each image."""
    return len(READINGS) + (classes if classes <= MOST_NAMED else 0)


def evidence(logits: Floats) -> Floats:
    """Each image's ``READINGS``, and which class it is taken for where there are few.

    ``[N, C] float32`` logits (finite) to ``[N, F] float32``, F as ``width`` says: the readings
    first, then one column for each of at most ``MOST_NAMED`` classes, 1 for the largest logit.
    Log-odds and margin together say how many rivals the largest has. Nothing is sorted, and only
    logits that are far from 0 are shifted: the exponential is most of the time that it takes.
    """
    count, classes = logits.shape
    answer = logits.argmax(axis=1)
    largest = np.arange(0, logits.size, classes) + answer  # places of one index are found faster
    top = logits.ravel()[largest]
    if np.abs(top).max(initial=0) < SAFE:
        powers, scale = np.exp(logits), np.exp(-top)
    else:
        powers, scale = np.exp(logits - top[:, None]), np.ones_like(top)
    powers.ravel()[largest] = 0
    rest = powers @ np.ones(classes, dtype=np.float32) * scale
    second = powers.max(axis=1) * scale
    log_odds = np.minimum(-np.log(np.maximum(rest, _LEAST)), SUREST)
    found = np.zeros((count, width(classes)), dtype=np.float32)
    found[:, 0] = log_odds
    found[:, 1] = np.minimum(-np.log(np.maximum(second, _LEAST)), SUREST)
    found[:, 2] = 1 / (1 + rest)
    found[:, 3] = log_odds * log_odds / SUREST
    if classes <= MOST_NAMED:
        found[np.arange(count), len(READINGS) + answer] = 1
    return found


def evenly(count: int, wanted: int) -> npt.NDArray[np.intp]:
    """``wanted`` of ``count`` places, each in the middle of its share."""
    return (2 * np.arange(wanted) + 1) * count // (2 * wanted)


def ascending_powers(logits: Floats) -> Floats:
    """``exp(logit - the largest)`` of each image, ascending: ``[N, C] float32`` to the same.

    What ``scaled_sorted(confidences(logits))`` holds, before scaling and the other way round.
    """
    powers: Floats = logits - logits.max(axis=1, keepdims=True)
    np.exp(powers, out=powers)
    powers.view(np.int32).sort(axis=1)  # in order as floats above 0 are, and twice as fast
    return powers


def confidences(logits: Floats) -> Floats:
    """Softmax of ``[N, C] float32``, over C."""
    shifted: Floats = logits - logits.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


def scaled_sorted(confidence: Floats) -> Floats:
    """Each image's confidences, min-max scaled to 0..1 and sorted in descending order (OPA, IV-B).

    ``[N, C] float32`` to ``[N, C] float32``.
    """
    low = confidence.min(axis=1, keepdims=True)
    span = confidence.max(axis=1, keepdims=True) - low
    scaled = (confidence - low) / np.maximum(span, np.float32(1e-12))
    scaled.sort(axis=1)
    result: Floats = scaled[:, ::-1]
    return result
