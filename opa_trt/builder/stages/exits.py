"""Exit heads: the pioneer's, and those along the largest network (BranchyNet)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opa_trt.builder import pooling
from opa_trt.builder.network import logits_macs, run_batches
from opa_trt.builder.parts import Parts
from opa_trt.supernet.calibration import calibrate
from opa_trt.training.exit_head import ExitHeadPlan, train_exit_head

CANDIDATE_CALIBRATION = 400  # images; the chosen tails are calibrated again on all


@dataclass(frozen=True)
class Lesson:
    """What exit heads learn from: inputs in batches, labels ``[N] int64``, and the probabilities
    ``[N, classes] float32`` of the full network."""

    inputs: list[Tensor]
    labels: Tensor
    soft: Tensor


def lesson(parts: Parts) -> Lesson:
    """The recipe's images for exit heads, and what the full network says of them."""
    images, labels = pooling.head_images(parts.splits.train, parts.source, parts.recipe)
    inputs = [parts.source.tensor(part, parts.side) for part in images]
    largest = parts.supernet.extract(parts.supernet.space.largest(parts.side))
    calibrate(largest, parts.calibration(CANDIDATE_CALIBRATION))
    return Lesson(inputs, labels, torch.cat(run_batches(largest, inputs)).softmax(1))


def learn_head(parts: Parts, taught: Lesson, features: list[Tensor]) -> nn.Sequential:
    """A head on frozen ``features`` (of the lesson's batches), distilled from the full network."""
    wanted = parts.recipe.pioneer
    plan = ExitHeadPlan(wanted.head_width, wanted.epochs, wanted.learning_rate)
    rows = torch.cat(features)
    return train_exit_head(rows, taught.labels, taught.soft, plan, seed=parts.recipe.seed)


def train_exits(
    parts: Parts, largest: nn.Sequential
) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """Heads of the exits between the pioneer's and the last, which is the network's own.

    Args:
        parts: what came before.
        largest: the largest tail, calibrated.

    Returns:
        Channels and MACs of each head by exit, and the heads' arrays as ``EXIT/NAME``.
    """
    facts: dict[str, dict[str, int]] = {}
    arrays: dict[str, Any] = {}
    middle = [*parts.deployment.exits.items()][:-1]
    if not middle:
        return facts, arrays
    taught = lesson(parts)
    features = run_batches(parts.pioneer.trunk, taught.inputs)
    parts.progress.start("calibrate", len(middle))
    for done, (name, piece) in enumerate(middle, 1):
        features = run_batches(largest[piece], features)
        head = learn_head(parts, taught, features)
        facts[name] = {
            "channels": features[0].shape[1],
            "head_macs": logits_macs(head, features[0]),
        }
        arrays |= {f"{name}/{key}": value.numpy() for key, value in head.state_dict().items()}
        parts.progress.advance(done, name)
    return facts, arrays
