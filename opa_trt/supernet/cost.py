"""What layers cost: multiply-accumulates of one image, and parameters."""

from __future__ import annotations

from dataclasses import dataclass

from opa_trt.supernet.layers import make_divisible


@dataclass(frozen=True)
class Cost:
    """MACs of one image and parameters; costs add up over parts."""

    macs: int
    params: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params)


def convolution_cost(
    size: int, inputs: int, outputs: int, kernel: int, groups: int = 1, bias: bool = False
) -> Cost:
    """Cost of a convolution whose *output* has side ``size``."""
    weights = kernel * kernel * (inputs // groups) * outputs
    return Cost(weights * size * size, weights + (outputs if bias else 0))


def norm_cost(channels: int) -> Cost:
    """Cost of a batch norm: no MACs, two parameters a channel."""
    return Cost(0, 2 * channels)


def squeeze_excite_cost(channels: int) -> Cost:
    """Cost of ``SqueezeExcite(channels)``."""
    middle = make_divisible(channels // 4)
    return convolution_cost(1, channels, middle, 1, bias=True) + convolution_cost(
        1, middle, channels, 1, bias=True
    )


def linear_cost(inputs: int, outputs: int) -> Cost:
    """Cost of a linear layer with bias."""
    return Cost(inputs * outputs, inputs * outputs + outputs)
