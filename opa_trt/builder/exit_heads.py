"""What exit heads learn from, and how one is trained on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opa_trt.builder.network import run_batches
from opa_trt.builder.pooling import Pools, head_images
from opa_trt.builder.recipe import Recipe
from opa_trt.supernet import Supernet
from opa_trt.supernet.calibration import calibrate
from opa_trt.training.exit_head import ExitHeadPlan, train_exit_head

CANDIDATE_CALIBRATION = 400  # images; what is chosen is calibrated again on all


@dataclass(frozen=True)
class Lesson:
    """What exit heads learn from: inputs in batches, labels ``[N] int64``, and the probabilities
    ``[N, classes] float32`` of the full network."""

    inputs: list[Tensor]
    labels: Tensor
    soft: Tensor


def make_lesson(supernet: Supernet, pools: Pools, side: int) -> Lesson:
    """The recipe's images for exit heads at a resolution, and what the full network says of
    them."""
    images, labels = head_images(pools.splits.train, pools.source, pools.recipe)
    inputs = [pools.source.tensor(part, side) for part in images]
    largest = supernet.extract(supernet.space.largest(side))
    calibrate(largest, pools.calibration(side, CANDIDATE_CALIBRATION))
    return Lesson(inputs, labels, torch.cat(run_batches(largest, inputs)).softmax(1))


def learn_head(recipe: Recipe, taught: Lesson, features: list[Tensor]) -> nn.Sequential:
    """A head on frozen ``features`` (of the lesson's batches), distilled from the full network."""
    wanted = recipe.pioneer
    plan = ExitHeadPlan(wanted.head_width, wanted.epochs, wanted.learning_rate)
    rows = torch.cat(features)
    return train_exit_head(rows, taught.labels, taught.soft, plan, seed=recipe.seed)
