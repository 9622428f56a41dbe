"""Bottleneck blocks with elastic channels, and the operators that they and their stem are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opa_trt.supernet.cost import Cost, convolution_cost, norm_cost
from opa_trt.supernet.elastic import (
    copy_norm,
    copy_weights,
    permute_norm,
    sliced_norm,
    sorted_order,
)
from opa_trt.supernet.layers import convolution, out_size
from opa_trt.supernet.operators import Operator, Pooling, shapes


@dataclass(frozen=True)
class NormSpec:
    """Constants of a batch norm."""

    eps: float = 1e-5
    momentum: float = 0.1


class BottleneckBlock(nn.Module):
    """``relu(body(x) + shortcut(x))``; without a shortcut, ``x`` itself."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential | None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.body(x) + kept)


class ElasticConvolution(nn.Module):
    """A convolution and its norm, of which the first channels are used."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, norm: NormSpec
    ) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel, stride)
        self.norm = nn.BatchNorm2d(outputs, eps=norm.eps, momentum=norm.momentum)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")

    def forward(self, x: Tensor, outputs: int) -> Tensor:
        """``[N, C, H, W]`` to ``[N, outputs, …]``, without an activation."""
        weight = self.conv.weight[:outputs, : x.shape[1]]
        out = F.conv2d(x, weight, stride=self.conv.stride, padding=self.conv.padding)
        return sliced_norm(self.norm, out)

    def extract(self, inputs: int, outputs: int) -> list[nn.Module]:
        """Copies of the convolution and the norm at these channels."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        plain = convolution(inputs, outputs, kernel, stride)
        weight = self.conv.weight[:outputs, :inputs]
        return [copy_weights(plain, weight), copy_norm(self.norm, outputs)]


class ElasticBottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1, each with its norm; middle and output channels are chosen.

    Args:
        inputs, middle, outputs: channels at most.
        stride: of the 3x3 convolution, and of the average pooling before the shortcut.
        shortcut: whether the shortcut is a 1x1 convolution with its norm rather than ``x``.
        norm: of every norm.
    """

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        stride: int = 1,
        *,
        shortcut: bool,
        norm: NormSpec,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.reduce = ElasticConvolution(inputs, middle, 1, norm=norm)
        self.conv = ElasticConvolution(middle, middle, 3, stride, norm=norm)
        self.project = ElasticConvolution(middle, outputs, 1, norm=norm)
        self.shortcut = ElasticConvolution(inputs, outputs, 1, norm=norm) if shortcut else None

    def forward(self, x: Tensor, middle: int, outputs: int) -> Tensor:
        """``[N, C, H, W]`` to ``[N, outputs, H / stride, W / stride]``."""
        kept = x
        if self.shortcut is not None:
            pooled = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
            kept = self.shortcut(pooled, outputs)
        out = self.reduce(x, middle).relu()
        out = self.conv(out, middle).relu()
        return F.relu(self.project(out, outputs) + kept)

    @torch.no_grad()
    def extract(self, inputs: int, middle: int, outputs: int) -> nn.Module:
        """A copy at these channels, in plain layers."""
        body = nn.Sequential(
            *self.reduce.extract(inputs, middle),
            nn.ReLU(inplace=True),
            *self.conv.extract(middle, middle),
            nn.ReLU(inplace=True),
            *self.project.extract(middle, outputs),
        )
        if self.shortcut is None:
            return BottleneckBlock(body, None)
        pool = [] if self.stride == 1 else [nn.AvgPool2d(self.stride, ceil_mode=True)]
        layers = self.shortcut.extract(inputs, outputs)
        return BottleneckBlock(body, nn.Sequential(*pool, *layers))

    @torch.no_grad()
    def sort_channels(self, widths: Sequence[int]) -> None:
        """Sort the channels on both sides of the 3x3 convolution by importance (OFA's code).

        Each range between the ascending ``widths`` is sorted on its own.
        """
        for before, after in ((self.conv, self.project), (self.reduce, self.conv)):
            order = sorted_order(after.conv.weight.abs().sum((0, 2, 3)), widths)
            after.conv.weight.copy_(after.conv.weight[:, order])
            before.conv.weight.copy_(before.conv.weight[order])
            permute_norm(before.norm, order)


# --- operators ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaxPooling(Pooling):
    """The stem's 3x3 max-pooling with stride 2."""

    @property
    def key(self) -> str:
        after = out_size(self.size, 2)
        return f"MaxPool2D-{shapes(self.size, self.channels, after, self.channels)}"

    def build(self) -> nn.Module:
        return nn.MaxPool2d(3, 2, padding=1)


@dataclass(frozen=True)
class Bottleneck(Operator):
    """1x1, 3x3 with the stride, 1x1, each with its norm, and a shortcut that is identity or not."""

    size: int
    inputs: int
    middle: int
    outputs: int
    stride: int
    shortcut: bool

    @property
    def cost(self) -> Cost:
        after = out_size(self.size, self.stride)
        cost = convolution_cost(self.size, self.inputs, self.middle, 1) + norm_cost(self.middle)
        cost += convolution_cost(after, self.middle, self.middle, 3) + norm_cost(self.middle)
        cost += convolution_cost(after, self.middle, self.outputs, 1) + norm_cost(self.outputs)
        if self.shortcut:
            cost += convolution_cost(after, self.inputs, self.outputs, 1) + norm_cost(self.outputs)
        return cost

    @property
    def key(self) -> str:
        after = out_size(self.size, self.stride)
        return (
            f"bottleneck-{shapes(self.size, self.inputs, after, self.outputs)}"
            f"-expand:{self.middle}-stride:{self.stride}-idskip:{int(not self.shortcut)}"
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.inputs, self.size, self.size)

    @property
    def net_layer(self) -> dict[str, Any]:
        return {
            "name": "ResNetBottleneckBlock",
            "in_channels": self.inputs,
            "out_channels": self.outputs,
            "kernel_size": 3,
            "stride": self.stride,
            "mid_channels": self.middle,
            "act_func": "relu",
            "downsample_mode": "avgpool_conv",
        }

    def build(self) -> nn.Module:
        sizes = (self.inputs, self.middle, self.outputs)
        block = ElasticBottleneck(*sizes, self.stride, shortcut=self.shortcut, norm=NormSpec())
        return block.extract(*sizes)
