"""The optimiser that every training here uses."""

from __future__ import annotations

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


def descend(module: nn.Module, optimizer: torch.optim.SGD) -> None:
    """One step along the gradients of ``module``, clipped to ``GRADIENT_NORM``."""
    nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
    optimizer.step()
