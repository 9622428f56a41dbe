"""The adaptive loss: configurations of small and of large losses count alike (LeAF, Eq. 1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from opa_trt.supernet.legacy import Configuration

LEAST = 1e-12  # of a mean that a loss is divided by


class AdaptiveLoss:
    """Remembers the latest losses of every configuration.

    Args:
        window: how many of each.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._seen: dict[Configuration, deque[float]] = {}

    def __call__(self, losses: Tensor, configurations: Sequence[Configuration]) -> Tensor:
        """The mean over configurations of each one's loss divided by its own mean.

        The latter, over the last ``window`` steps with it and this one among them, is a constant:
        no gradient flows through it.

        Args:
            losses: ``[K] float32``.
            configurations: K different ones.
        """
        means = []
        for value, configuration in zip(losses.detach().tolist(), configurations, strict=True):
            seen = self._seen.setdefault(configuration, deque(maxlen=self.window))
            seen.append(value)
            means.append(max(LEAST, sum(seen) / len(seen)))
        return (losses / torch.tensor(means, device=losses.device)).mean()

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered, ``[n] float64`` for each configuration, as ``0101``."""
        return {
            "".join(str(int(shallow)) for shallow in configuration.shallow): torch.tensor(
                [*seen], dtype=torch.float64
            )
            for configuration, seen in self._seen.items()
        }

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what ``tensors`` gave."""
        self._seen = {
            Configuration(tuple(bit == "1" for bit in name)): deque(
                seen.tolist(), maxlen=self.window
            )
            for name, seen in tensors.items()
        }
