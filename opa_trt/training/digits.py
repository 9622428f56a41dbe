"""Scikit-learn's 1,797 handwritten digits: small, offline, the data of the demo and the tests."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opa_trt.errors import DataError
from opa_trt.training.data import Images, Labels, Pixels, Splits, draw

FIT, TEST = 397, 400  # the other 1,000 are train
CLASSES = tuple("0123456789")
WHITE = 16.0  # the brightest value of the 8 x 8 originals


def load_digits(size: int = 32, seed: int = 0) -> Splits:
    """The digits as ``[N, 3, size, size] uint8``: 1,000 train, 397 fit, 400 test, stratified.

    8 x 8 greys are scaled from 0..16 to 0..255 and resized bicubically to ``size`` px; the three
    channels are equal. The same ``seed`` draws the same splits. Raises ``DataError`` where
    scikit-learn is missing or ``size`` is not positive.
    """
    if size < 1:
        message = f"an image size of {size} px is not positive."
        raise DataError(message, expected="at least 1 px.")
    greys, labels = _originals()
    whole = Images(_resized(greys, size), labels, CLASSES)
    rest, test = _divide(np.arange(len(whole), dtype=np.int64), labels, TEST, (seed, 0))
    train, fit = _divide(rest, labels, FIT, (seed, 1))
    return Splits(whole.select(train), whole.select(fit), whole.select(test))


def proportions(counts: Sequence[int], total: int) -> list[int]:
    """Shares of ``total`` in proportion to ``counts``: each within 1, none above its count.

    They add up to ``total``, which is at most ``sum(counts)`` (largest remainders, ties to the
    first).
    """
    exact = np.asarray(counts) * total
    quotas, remainders = exact // sum(counts), exact % sum(counts)
    quotas[np.argsort(-remainders, kind="stable")[: total - quotas.sum()]] += 1
    return [int(quota) for quota in quotas]


def _originals() -> tuple[NDArray[np.float64], Labels]:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as exc:
        message = "the digits come with scikit-learn, which is not installed."
        raise DataError(message, remedy="pip install opa-trt[build]") from exc
    digits = datasets.load_digits()
    return digits.images, digits.target.astype(np.int64)


def _resized(greys: NDArray[np.float64], size: int) -> Pixels:
    levels = np.rint(greys * (255 / WHITE)).astype(np.uint8)
    bicubic = Image.Resampling.BICUBIC
    grown = [np.asarray(Image.fromarray(each).resize((size, size), bicubic)) for each in levels]
    return np.repeat(np.stack(grown)[:, None], 3, axis=1)


def _divide(
    rows: NDArray[np.int64], labels: Labels, total: int, seed: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``rows`` without, and with, a stratified draw of ``total`` of them."""
    counts = np.bincount(labels[rows], minlength=len(CLASSES)).tolist()
    drawn = draw(labels[rows], proportions(counts, total), seed)
    return np.delete(rows, drawn), rows[drawn]
