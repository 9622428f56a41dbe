"""How far the models of rightness can be trusted, on images that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.builder.fit import Records
from opa_trt.policies import STOP, Rightness
from opa_trt.policies.evidence import evidence
from opa_trt.policies.opa_split import plan

Floats = npt.NDArray[np.float32]
Rights = npt.NDArray[np.bool_]
BINS = 10  # of equally many images, for the calibration error
PARTS = 50  # sizes of a share of all images that are tried
STEPS = 20  # of the shares in ``shares``
LEAST = 1e-6  # probability: one image that was thought impossible must not decide a mean


def report_rightness(
    model: Rightness, fitted: Records, held_out: Records, macs: Mapping[str, int]
) -> dict[str, Any]:
    """Held-out figures, means over all nodes unless they say otherwise.

    ``log_loss`` stands beside ``log_loss_base``, which is that of always saying each node's share
    of right answers on the fitted images; ``calibration_error`` is the expected one, of ``BINS``
    bins of equally many images. ``gain`` is by what share more images are right when each image
    stops or goes to one tail, than when all do what is best for all, at the MACs of each tail for
    all of the images (``gains``, by tail; ``gain`` is their mean). Both choose by the model.
    ``shares`` is what share of all images is right when those that are believed to gain most go to
    a tail, by tail: at 0, 1 ... ``STEPS`` of ``STEPS`` parts sent on.

    Args:
        model: of ``pioneer`` (its first node) and tails.
        fitted: what it was fitted to.
        held_out: what it was not.
        macs: of each tail, for one image.
    """
    believed = model.probabilities(evidence(held_out.logits))
    right = np.stack([held_out.right[name] for name in model.nodes], axis=1)
    before = np.array([fitted.right[name].mean() for name in model.nodes])
    gains = _gains(believed, right, [macs[name] for name in model.nodes[1:]])
    return {
        "log_loss": _log_loss(believed, right),
        "log_loss_base": _log_loss(np.broadcast_to(before, right.shape), right),
        "calibration_error": float(
            np.mean([calibration_error(b, r) for b, r in zip(believed.T, right.T, strict=True)])
        ),
        "gain": float(np.mean(gains)) if gains else 0.0,
        "gains": dict(zip(model.nodes[1:], gains, strict=True)),
        "shares": {
            name: _shares(believed[:, place] - believed[:, 0], right[:, 0], right[:, place])
            for place, name in enumerate(model.nodes[1:], start=1)
        },
    }


def calibration_error(believed: Floats, right: Rights) -> float:
    """Mean distance between what was believed and what came true, over bins of equal size.

    ``[N]`` probabilities and ``[N]`` whether it came true.
    """
    order = np.argsort(believed, kind="stable")
    bins = [rows for rows in np.array_split(order, BINS) if len(rows)]
    distances = [len(rows) * abs(believed[rows].mean() - right[rows].mean()) for rows in bins]
    return float(sum(distances) / len(believed))


def _log_loss(believed: Any, right: Rights) -> float:
    sure = np.clip(np.where(right, believed, 1 - believed), LEAST, 1)
    return float(-np.log(sure).mean())


def _shares(gain: Floats, here: Rights, there: Rights) -> list[float]:
    """How many are right when ever more images go on, those of the largest ``gain`` first."""
    order = np.argsort(-gain, kind="stable")
    more = np.cumsum(there[order].astype(np.int64) - here[order])
    known = np.concatenate([[0], more]) + np.count_nonzero(here)
    sent = [round(len(gain) * step / STEPS) for step in range(STEPS + 1)]
    shares: list[float] = (known[sent] / len(gain)).tolist()
    return shares


def _gains(believed: Floats, right: Rights, macs: Sequence[int]) -> list[float]:
    """At the MACs of each tail for all images: image by image, less the best node for all."""
    count = len(right)
    sizes = tuple(dict.fromkeys(-(-count * part // PARTS) for part in range(1, PARTS + 1)))
    cost = np.array(macs, dtype=np.float64)[:, None] * np.array(sizes)
    overall = believed.mean(axis=0)
    found = []
    for budget in cost[:, -1]:
        best = int(np.argmax(np.where(np.append(0, cost[:, -1]) <= budget, overall, -1)))
        chosen = plan(believed, cost, sizes, 0.0, float(budget)).choice
        column = np.where(chosen == STOP, 0, 1 + chosen)
        found.append(float(right[np.arange(count), column].mean() - right[:, best].mean()))
    return found
