"""The plain layers that extracted networks are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from opa_trt.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "h_swish": lambda: nn.Hardswish(inplace=True),
    "none": nn.Identity,
}


def activation(name: str) -> nn.Module:
    """The activation called ``name``; ConfigError where there is none of that name."""
    if name not in ACTIVATIONS:
        msg = f"activation {name!r}."
        raise ConfigError(msg, expected=f"one of {list(ACTIVATIONS)}.")
    return ACTIVATIONS[name]()


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, one step up if that loses more than 10 % (OFA)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def out_size(size: int, stride: int) -> int:
    """Side of the output of a convolution with an odd kernel and padding ``kernel // 2``."""
    return (size - 1) // stride + 1


class SqueezeExcite(nn.Module):
    """Channel attention: pool, reduce to a quarter, expand, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = make_divisible(channels // 4)
        self.reduce = nn.Conv2d(channels, middle, 1)
        self.expand = nn.Conv2d(middle, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        gate = self.expand(torch.relu(self.reduce(pooled)))
        return x * nn.functional.hardsigmoid(gate)


class Residual(nn.Module):
    """``x + body(x)``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class GlobalPool(nn.Module):
    """``[N, C, H, W]`` to ``[N, C, 1, 1]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution padded by ``kernel // 2``."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
