"""The optimiser that every training here uses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

GRADIENT_NORM = 5.0  # to which gradients are clipped


def sgd(
    module: nn.Module, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """SGD with Nesterov momentum; norms and biases are not decayed, frozen weights left out."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1]},
    ]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0)


def warm_cosine(rate: float, steps: int, step: int) -> float:
    """The learning rate of one of so many steps: 5 % of them warm up, then it falls as a cosine."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return rate * 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimizer: torch.optim.SGD, rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(module: nn.Module, optimizer: torch.optim.SGD) -> None:
    """One step along the gradients of ``module``, clipped to ``GRADIENT_NORM``."""
    nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
    optimizer.step()
