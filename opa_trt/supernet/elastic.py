"""Elastic layers: the largest layer's weights, and how smaller ones are cut out of them.

Forward passes slice with gradients; ``extract`` copies the same slices into plain layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opa_trt.supernet.arch import Ratio
from opa_trt.supernet.layers import (
    Residual,
    SqueezeExcite,
    activation,
    convolution,
    make_divisible,
)


def sliced_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``norm`` on its first ``x.shape[1]`` channels; in training their statistics are updated."""
    channels = x.shape[1]
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    assert norm.momentum is not None
    return F.batch_norm(
        x,
        mean[:channels],
        var[:channels],
        norm.weight[:channels],
        norm.bias[:channels],
        norm.training,
        norm.momentum,
        norm.eps,
    )


@torch.no_grad()
def copy_norm(norm: nn.BatchNorm2d, channels: int) -> nn.BatchNorm2d:
    """The first ``channels`` channels of ``norm``, as a layer of its own."""
    plain = nn.BatchNorm2d(channels, eps=norm.eps, momentum=norm.momentum)
    for key in ("weight", "bias", "running_mean", "running_var"):
        getattr(plain, key).copy_(getattr(norm, key)[:channels])
    return plain


@torch.no_grad()
def copy_weights(plain: nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """``plain`` with ``weight`` (and ``bias``) copied into it."""
    plain.weight.copy_(weight)
    if bias is not None and plain.bias is not None:
        plain.bias.copy_(bias)
    return plain


@torch.no_grad()
def copy_linear(linear: nn.Linear, features: int) -> nn.Linear:
    """``linear`` on its first ``features`` inputs, as a layer of its own."""
    plain = nn.Linear(features, linear.out_features)
    plain.weight.copy_(linear.weight[:, :features])
    plain.bias.copy_(linear.bias)
    return plain


def sorted_order(importance: Tensor, widths: Sequence[int]) -> Tensor:
    """Channels by descending ``importance``, each range between ascending ``widths`` on its own."""
    return torch.cat(
        [
            low + importance[low:high].argsort(descending=True, stable=True)
            for low, high in itertools.pairwise((0, *widths))
        ]
    )


def permute_norm(norm: nn.BatchNorm2d, order: Tensor) -> None:
    """Reorder the channels of ``norm``, in place."""
    for key in ("weight", "bias", "running_mean", "running_var"):
        values = getattr(norm, key)
        values.copy_(values[order])


class ElasticKernel(nn.Module):
    """Depthwise weights ``[C, 1, K, K]`` and the matrices that turn them into smaller kernels.

    The 5×5 kernel is the centre of the 7×7 one times a matrix, the 3×3 the centre of *that*
    5×5 times another; the matrices are shared by all channels (OFA, elastic kernel size).
    """

    def __init__(self, channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.kernels = tuple(sorted(kernels, reverse=True))
        self.weight = nn.Parameter(torch.empty(channels, 1, self.kernels[0], self.kernels[0]))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        self.matrices = nn.ParameterDict(
            {
                f"{large}to{small}": nn.Parameter(torch.eye(small * small))
                for large, small in zip(self.kernels, self.kernels[1:], strict=False)
            }
        )

    def forward(self, channels: int, kernel: int) -> Tensor:
        """The weights ``[channels, 1, kernel, kernel]``."""
        weight = self.weight[:channels]
        for large, small in zip(self.kernels, self.kernels[1:], strict=False):
            if large == kernel:
                break
            edge = (large - small) // 2
            centre = weight[:, :, edge : edge + small, edge : edge + small]
            flat = F.linear(centre.reshape(channels, -1), self.matrices[f"{large}to{small}"])
            weight = flat.view(channels, 1, small, small)
        return weight


@dataclass(frozen=True)
class BlockSpec:
    """What an inverted-residual block is, apart from its elastic choices."""

    inputs: int
    outputs: int
    stride: int
    act: str
    squeeze_excite: bool
    eps: float
    momentum: float

    @property
    def residual(self) -> bool:
        """Whether the block adds its input: at stride 1 and equal channels."""
        return self.stride == 1 and self.inputs == self.outputs

    def middle(self, ratio: Ratio) -> int:
        """Channels between expansion and projection."""
        return make_divisible(round(self.inputs * ratio))


class ElasticBlock(nn.Module):
    """Inverted residual with elastic kernel size and expand ratio.

    Expansion 1×1, norm, activation; depthwise, norm, activation, squeeze-and-excitation;
    projection 1×1, norm. With ``expansion=False`` the first three are left out.
    """

    def __init__(
        self,
        spec: BlockSpec,
        kernels: Sequence[int],
        ratios: Sequence[Ratio],
        *,
        expansion: bool = True,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.ratios = tuple(sorted(ratios, reverse=True))
        widest = spec.middle(self.ratios[0])
        self.expand = convolution(spec.inputs, widest, 1) if expansion else None
        self.expand_norm = self._norm(widest) if expansion else None
        self.depthwise = ElasticKernel(widest, kernels)
        self.depthwise_norm = self._norm(widest)
        self.squeeze_excite = SqueezeExcite(widest) if spec.squeeze_excite else None
        self.project = convolution(widest, spec.outputs, 1)
        self.project_norm = self._norm(spec.outputs)
        for layer in (self.expand, self.project):
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        self.act = activation(spec.act)

    def _norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=self.spec.eps, momentum=self.spec.momentum)

    def forward(self, x: Tensor, kernel: int, ratio: Ratio) -> Tensor:
        """``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``."""
        width = self.spec.middle(ratio)
        out = x
        if self.expand is not None and self.expand_norm is not None:
            out = F.conv2d(out, self.expand.weight[:width])
            out = self.act(sliced_norm(self.expand_norm, out))
        out = F.conv2d(
            out,
            self.depthwise(width, kernel),
            stride=self.spec.stride,
            padding=kernel // 2,
            groups=width,
        )
        out = self.act(sliced_norm(self.depthwise_norm, out))
        if self.squeeze_excite is not None:
            out = self._attend(self.squeeze_excite, out)
        out = F.conv2d(out, self.project.weight[:, :width])
        out = sliced_norm(self.project_norm, out)
        return x + out if self.spec.residual else out

    def _attend(self, layer: SqueezeExcite, x: Tensor) -> Tensor:
        width = x.shape[1]
        middle = make_divisible(width // 4)
        assert layer.reduce.bias is not None
        assert layer.expand.bias is not None
        pooled = x.mean((2, 3), keepdim=True)
        reduced = F.conv2d(pooled, layer.reduce.weight[:middle, :width], layer.reduce.bias[:middle])
        gate = F.conv2d(
            reduced.relu(), layer.expand.weight[:width, :middle], layer.expand.bias[:width]
        )
        return x * F.hardsigmoid(gate)

    @torch.no_grad()
    def extract(self, kernel: int, ratio: Ratio) -> nn.Module:
        """A copy of the block at this kernel size and expand ratio, in plain layers."""
        spec, width = self.spec, self.spec.middle(ratio)
        layers: list[nn.Module] = []
        if self.expand is not None and self.expand_norm is not None:
            conv = convolution(spec.inputs, width, 1)
            layers += [
                copy_weights(conv, self.expand.weight[:width]),
                copy_norm(self.expand_norm, width),
                activation(spec.act),
            ]
        conv = convolution(width, width, kernel, spec.stride, groups=width)
        layers += [
            copy_weights(conv, self.depthwise(width, kernel)),
            copy_norm(self.depthwise_norm, width),
            activation(spec.act),
        ]
        if self.squeeze_excite is not None:
            layers.append(_copy_attention(self.squeeze_excite, width))
        conv = convolution(width, spec.outputs, 1)
        layers += [
            copy_weights(conv, self.project.weight[:, :width]),
            copy_norm(self.project_norm, spec.outputs),
        ]
        body = nn.Sequential(*layers)
        return Residual(body) if spec.residual else body

    @torch.no_grad()
    def sort_channels(self, level: int) -> None:
        """Sort middle channels by the L1 norm of the projection's input weights.

        Only the ``level`` + 1 largest widths take part as one range each, so the widths that
        earlier phases trained keep their channels. The full block computes what it did before.
        Attention's hidden channels are sorted over their whole range, as OFA's code does, so
        with squeeze-and-excitation the smaller widths change a little even then.
        """
        widths = [self.spec.middle(ratio) for ratio in reversed(self.ratios[: level + 1])]
        order = sorted_order(self.project.weight.abs().sum((0, 2, 3)), widths)
        if self.expand is not None and self.expand_norm is not None:
            self.expand.weight.copy_(self.expand.weight[order])
            permute_norm(self.expand_norm, order)
        self.depthwise.weight.copy_(self.depthwise.weight[order])
        permute_norm(self.depthwise_norm, order)
        self.project.weight.copy_(self.project.weight[:, order])
        if self.squeeze_excite is not None:
            _permute_attention(self.squeeze_excite, order)


def _copy_attention(layer: SqueezeExcite, width: int) -> SqueezeExcite:
    plain = SqueezeExcite(width)
    middle = plain.reduce.out_channels
    assert layer.reduce.bias is not None
    assert layer.expand.bias is not None
    copy_weights(plain.reduce, layer.reduce.weight[:middle, :width], layer.reduce.bias[:middle])
    copy_weights(plain.expand, layer.expand.weight[:width, :middle], layer.expand.bias[:width])
    return plain


def _permute_attention(layer: SqueezeExcite, order: Tensor) -> None:
    assert layer.reduce.bias is not None
    assert layer.expand.bias is not None
    layer.expand.weight.copy_(layer.expand.weight[order])
    layer.expand.bias.copy_(layer.expand.bias[order])
    layer.reduce.weight.copy_(layer.reduce.weight[:, order])
    inner = layer.expand.weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
    layer.expand.weight.copy_(layer.expand.weight[:, inner])
    layer.reduce.weight.copy_(layer.reduce.weight[inner])
    layer.reduce.bias.copy_(layer.reduce.bias[inner])
