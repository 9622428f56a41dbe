"""The pioneer's exit head: trained on frozen features, distilled from the full network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.layers import GlobalPool, activation, convolution


@dataclass(frozen=True)
class ExitHeadPlan:
    """How an exit head is made: ``width`` channels between expansion and classifier."""

    width: int = 128
    epochs: int = 15
    learning_rate: float = 3e-3
    batch_size: int = 128
    distill_weight: float = 1.0


def exit_head(channels: int, width: int, classes: int) -> nn.Sequential:
    """1×1 expansion, norm, h-swish, pooling, linear: ``[N, channels, H, W]`` to ``[N, classes]``.

    OPA says only that a fully connected layer follows the pioneer's last convolution.
    """
    return nn.Sequential(
        convolution(channels, width, 1),
        nn.BatchNorm2d(width),
        activation("h_swish"),
        GlobalPool(),
        nn.Flatten(1),
        nn.Linear(width, classes),
    )


def train_exit_head(
    features: Tensor, labels: Tensor, soft: Tensor, plan: ExitHeadPlan, *, seed: int
) -> nn.Sequential:
    """Train an exit head on features that no longer change.

    Args:
        features: ``[N, C, H, W] float32`` of the frozen, calibrated pioneer.
        labels: ``[N] int64``.
        soft: ``[N, classes] float32`` probabilities of the full network, to distil from.
        plan: width, epochs, rate.
        seed: of the weights and of the order of the images.

    Returns:
        The head in evaluation mode, its batch norm calibrated on ``features``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = exit_head(features.shape[1], plan.width, soft.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=plan.learning_rate)
    order = torch.Generator().manual_seed(seed)
    steps = max(1, len(features) // plan.batch_size) * plan.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    head.train()
    for _ in range(plan.epochs):
        for rows in torch.split(torch.randperm(len(features), generator=order), plan.batch_size):
            if len(rows) < min(plan.batch_size, len(features)):
                continue  # a short last batch would unsettle the batch norm
            logits = head(features[rows])
            hard = F.cross_entropy(logits, labels[rows])
            loss = hard + plan.distill_weight * F.cross_entropy(logits, soft[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    head.eval()
    for parameter in head.parameters():
        parameter.requires_grad_(False)
    calibrate(head, torch.split(features, plan.batch_size))
    return head
