"""The operators that a network runs one after the other: what each costs, and how to time it.

Their names are those of the published latency tables (once-for-all, ``lookup_table.yaml``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from opa_trt.supernet.cost import Cost, convolution_cost, linear_cost, norm_cost
from opa_trt.supernet.layers import GlobalPool, Residual, activation, convolution, out_size


class Operator(ABC):
    """One operator at one input size; frozen, and equal where it computes the same."""

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """What it costs for one image."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Its name in a latency table: kind, shapes as ``HxWxC``, choices."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Of one image: ``(C, H, W)``."""

    @property
    def net_layer(self) -> dict[str, Any]:
        """What OFA's published ``net.config`` files say of it; empty where they say nothing."""
        return {}

    @abstractmethod
    def build(self) -> nn.Module:
        """The operator with random weights, in plain layers, to be timed."""


@dataclass(frozen=True)
class Convolution(Operator):
    """A convolution with its norm (if any), activation, and residual (if any).

    ``size`` is the side of its input. ``name`` is the place it has in the network.
    """

    name: str
    size: int
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    act: str = "none"
    norm: bool = True
    residual: bool = False

    @property
    def cost(self) -> Cost:
        size = out_size(self.size, self.stride)
        cost = convolution_cost(size, self.inputs, self.outputs, self.kernel)
        return cost + norm_cost(self.outputs) if self.norm else cost

    @property
    def key(self) -> str:
        after = out_size(self.size, self.stride)
        return f"{self.name}-{shapes(self.size, self.inputs, after, self.outputs)}"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.inputs, self.size, self.size)

    @property
    def net_layer(self) -> dict[str, Any]:
        return {
            "name": "ConvLayer",
            "in_channels": self.inputs,
            "out_channels": self.outputs,
            "kernel_size": self.kernel,
            "stride": self.stride,
            "act_func": published_act(self.act),
            "use_bn": self.norm,
            **({"shortcut": True} if self.residual else {}),
        }

    def build(self) -> nn.Module:
        layers: list[nn.Module] = [convolution(self.inputs, self.outputs, self.kernel, self.stride)]
        if self.norm:
            layers.append(nn.BatchNorm2d(self.outputs))
        layers.append(activation(self.act))
        body = nn.Sequential(*layers)
        return Residual(body) if self.residual else body


@dataclass(frozen=True)
class Pooling(Operator):
    """What costs no MACs and keeps its channels; ``size`` is the side of its input."""

    size: int
    channels: int

    @property
    def cost(self) -> Cost:
        return Cost(0, 0)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)


@dataclass(frozen=True)
class GlobalPooling(Pooling):
    """The mean over all pixels."""

    @property
    def key(self) -> str:
        return f"AvgPool2D-{shapes(self.size, self.channels, 1, self.channels)}"

    def build(self) -> nn.Module:
        return GlobalPool()


@dataclass(frozen=True)
class Logits(Operator):
    """The classifier, on pooled features."""

    features: int
    classes: int

    @property
    def cost(self) -> Cost:
        return linear_cost(self.features, self.classes)

    @property
    def key(self) -> str:
        return f"Logits-input:1x1x{self.features}-output:{self.classes}"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.features, 1, 1)

    @property
    def net_layer(self) -> dict[str, Any]:
        return {
            "name": "LinearLayer",
            "in_features": self.features,
            "out_features": self.classes,
        }

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(1), nn.Linear(self.features, self.classes))


@dataclass(frozen=True)
class Term:
    """Operators that depend on a few genes only; a network is the sum of its terms.

    Args:
        part: the part of the network they belong to: ``stem``, ``stage1`` …, ``head``.
        genes: the columns (of ``Genome``) of the genes that they depend on.
        operators: what runs for given values of those genes; nothing where the depth leaves
            the block out.
    """

    part: str
    genes: tuple[int, ...]
    operators: Callable[..., tuple[Operator, ...]]


def published_act(name: str) -> str | None:
    """An activation as OFA's configurations name it."""
    return None if name == "none" else name


def shapes(size: int, inputs: int, after: int, outputs: int) -> str:
    """The shapes of input and output as latency tables write them."""
    return f"input:{size}x{size}x{inputs}-output:{after}x{after}x{outputs}"
