"""What a node's logits say about each image: numbers that policies read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


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
