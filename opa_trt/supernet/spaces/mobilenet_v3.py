"""OFA's MobileNetV3 space; its widths, depths, strides and choices are parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opa_trt.errors import ConfigError
from opa_trt.supernet.arch import Arch, Ratio
from opa_trt.supernet.elastic import BlockSpec, ElasticBlock, copy_norm, copy_weights
from opa_trt.supernet.layers import (
    ACTIVATIONS,
    GlobalPool,
    activation,
    convolution,
    convolution_cost,
    linear_cost,
    make_divisible,
    norm_cost,
    out_size,
    squeeze_excite_cost,
)
from opa_trt.supernet.space import Cost, ElasticPart, Space

STEM_KERNEL = 3


@dataclass(frozen=True)
class MobileNetV3Space(Space):
    """The published space by default: 1,000 classes, width 1.0, five stages.

    ``width`` multiplies every channel count, rounded to a multiple of 8. ``stage_strides``,
    ``stage_act`` and ``stage_squeeze_excite`` have one entry a stage, as ``stage_widths`` has;
    the stride is that of a stage's first block.
    """

    name = "mobilenet_v3"

    classes: int = 1000
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    slots: tuple[int, ...] = ()
    depth_choices: tuple[int, ...] = (2, 3, 4)
    kernel_choices: tuple[int, ...] = (3, 5, 7)
    expand_choices: tuple[Ratio, ...] = (3, 4, 6)
    width: float = 1.0
    stem_width: int = 16
    stem_stride: int = 2
    stage_widths: tuple[int, ...] = (24, 40, 80, 112, 160)
    stage_strides: tuple[int, ...] = (2, 2, 2, 1, 2)
    stage_act: tuple[str, ...] = ("relu", "relu", "h_swish", "h_swish", "h_swish")
    stage_squeeze_excite: tuple[bool, ...] = (False, True, False, True, True)
    head_width: int = 960
    feature_width: int = 1280
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_sizes()
        stages = len(self.stage_widths)
        for key in ("stage_strides", "stage_act", "stage_squeeze_excite"):
            if len(getattr(self, key)) != stages:
                msg = f"{key} has {len(getattr(self, key))} entries."
                raise ConfigError(
                    msg,
                    expected=f"{stages}, as stage_widths has.",
                )
        if unknown := set(self.stage_act) - set(ACTIVATIONS):
            msg = f"stage_act names {sorted(unknown)}."
            raise ConfigError(msg, expected=f"some of {sorted(ACTIVATIONS)}.")
        slots = (self.depth_choices[-1],) * stages
        if self.slots not in ((), slots):
            msg = f"slots = {self.slots}."
            raise ConfigError(msg, expected=f"{slots}, or left out.")
        object.__setattr__(self, "slots", slots)

    def _check_sizes(self) -> None:
        for key in ("classes", "width", "stem_width", "stem_stride", "head_width", "feature_width"):
            if not 0 < getattr(self, key) < math.inf:
                msg = f"{key} = {getattr(self, key)}."
                raise ConfigError(msg, expected="above 0.")
        for key in ("stage_widths", "stage_strides"):
            sizes = getattr(self, key)
            if not sizes or min(sizes) <= 0:
                msg = f"{key} = {list(sizes)}."
                raise ConfigError(msg, expected="one or more, above 0.")

    @property
    def stem_channels(self) -> int:
        """Channels of the stem's output."""
        return make_divisible(self.stem_width * self.width)

    def blocks(self, stage: int, depth: int) -> Iterator[BlockSpec]:
        """The first ``depth`` blocks of a stage (counted from 0)."""
        widths = [self.stem_channels, *(make_divisible(w * self.width) for w in self.stage_widths)]
        for block in range(depth):
            yield BlockSpec(
                inputs=widths[stage] if block == 0 else widths[stage + 1],
                outputs=widths[stage + 1],
                stride=self.stage_strides[stage] if block == 0 else 1,
                act=self.stage_act[stage],
                squeeze_excite=bool(self.stage_squeeze_excite[stage]),
                eps=self.norm_eps,
                momentum=self.norm_momentum,
            )

    @property
    def first_block(self) -> BlockSpec:
        """The fixed block between the stem's convolution and the first stage."""
        channels = self.stem_channels
        return BlockSpec(channels, channels, 1, "relu", False, self.norm_eps, self.norm_momentum)

    @property
    def head_channels(self) -> tuple[int, int, int]:
        """Channels of the last stage, the final expansion and the classifier's input."""
        return (
            make_divisible(self.stage_widths[-1] * self.width),
            make_divisible(self.head_width * self.width),
            make_divisible(self.feature_width * self.width),
        )

    def elastic_parts(self) -> dict[str, ElasticPart]:
        parts: dict[str, ElasticPart] = {"stem": Stem(self)}
        for stage in range(len(self.stage_widths)):
            parts[f"stage{stage + 1}"] = Stage(self, stage)
        return parts | {"head": Head(self)}

    def costs(self, arch: Arch) -> dict[str, Cost]:
        size = out_size(arch.resolution, self.stem_stride)
        channels = self.stem_channels
        stem = convolution_cost(size, 3, channels, STEM_KERNEL) + norm_cost(channels)
        costs = {"stem": stem + block_cost(self.first_block, size, STEM_KERNEL, None)}
        for stage, depth in enumerate(arch.depths):
            total = Cost(0, 0)
            choices = zip(arch.kernel_sizes[stage], arch.expand_ratios[stage], strict=True)
            for spec, (kernel, ratio) in zip(self.blocks(stage, depth), choices, strict=True):
                total += block_cost(spec, size, kernel, ratio)
                size = out_size(size, spec.stride)
            costs[f"stage{stage + 1}"] = total
        last, expanded, features = self.head_channels
        costs["head"] = (
            convolution_cost(size, last, expanded, 1)
            + norm_cost(expanded)
            + convolution_cost(1, expanded, features, 1)
            + linear_cost(features, self.classes)
        )
        return costs


def block_cost(spec: BlockSpec, size: int, kernel: int, ratio: Ratio | None) -> Cost:
    """Cost of a block on an input of side ``size``; without a ratio it has no expansion."""
    width = spec.inputs if ratio is None else spec.middle(ratio)
    after = out_size(size, spec.stride)
    cost = convolution_cost(after, width, width, kernel, groups=width) + norm_cost(width)
    if ratio is not None:
        cost += convolution_cost(size, spec.inputs, width, 1) + norm_cost(width)
    if spec.squeeze_excite:
        cost += squeeze_excite_cost(width)
    return cost + convolution_cost(after, width, spec.outputs, 1) + norm_cost(spec.outputs)


class Stem(ElasticPart):
    """First convolution and the fixed first block."""

    def __init__(self, space: MobileNetV3Space) -> None:
        super().__init__()
        channels = space.stem_channels
        self.conv = convolution(3, channels, STEM_KERNEL, space.stem_stride)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        self.norm = nn.BatchNorm2d(channels, eps=space.norm_eps, momentum=space.norm_momentum)
        self.block = ElasticBlock(space.first_block, (STEM_KERNEL,), (1,), expansion=False)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        out = F.hardswish(self.norm(self.conv(x)))
        result: Tensor = self.block(out, STEM_KERNEL, 1)
        return result

    def extract(self, arch: Arch) -> nn.Module:
        conv = convolution(3, self.conv.out_channels, STEM_KERNEL, self.conv.stride[0])
        return nn.Sequential(
            copy_weights(conv, self.conv.weight),
            copy_norm(self.norm, self.norm.num_features),
            activation("h_swish"),
            self.block.extract(STEM_KERNEL, 1),
        )


class Stage(ElasticPart):
    """One elastic stage; the arch says how many of its blocks run, and how."""

    def __init__(self, space: MobileNetV3Space, index: int) -> None:
        super().__init__()
        self.index = index
        self.blocks = nn.ModuleList(
            ElasticBlock(spec, space.kernel_choices, space.expand_choices)
            for spec in space.blocks(index, space.slots[index])
        )

    def _active(self, arch: Arch) -> Iterator[tuple[ElasticBlock, int, Ratio]]:
        kernels, ratios = arch.kernel_sizes[self.index], arch.expand_ratios[self.index]
        for block, kernel, ratio in zip(self.blocks, kernels, ratios, strict=False):
            assert isinstance(block, ElasticBlock)
            yield block, kernel, ratio

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        for block, kernel, ratio in self._active(arch):
            x = block(x, kernel, ratio)
        return x

    def extract(self, arch: Arch) -> nn.Module:
        return nn.Sequential(*(block.extract(k, e) for block, k, e in self._active(arch)))

    def sort_channels(self, level: int) -> None:
        for block in self.blocks:
            assert isinstance(block, ElasticBlock)
            block.sort_channels(level)


class Head(ElasticPart):
    """Final expansion, pooling, feature mix (no norm, no bias) and classifier."""

    def __init__(self, space: MobileNetV3Space) -> None:
        super().__init__()
        last, expanded, features = space.head_channels
        self.conv = convolution(last, expanded, 1)
        self.norm = nn.BatchNorm2d(expanded, eps=space.norm_eps, momentum=space.norm_momentum)
        self.mix = convolution(expanded, features, 1)
        self.classifier = nn.Linear(features, space.classes)
        self.dropout = space.dropout
        for conv in (self.conv, self.mix):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        out = F.hardswish(self.norm(self.conv(x))).mean((2, 3), keepdim=True)
        out = F.hardswish(self.mix(out)).flatten(1)
        logits: Tensor = self.classifier(F.dropout(out, self.dropout, self.training))
        return logits

    @torch.no_grad()
    def extract(self, arch: Arch) -> nn.Module:
        conv = convolution(self.conv.in_channels, self.conv.out_channels, 1)
        mix = convolution(self.mix.in_channels, self.mix.out_channels, 1)
        classifier = nn.Linear(self.classifier.in_features, self.classifier.out_features)
        classifier.weight.copy_(self.classifier.weight)
        classifier.bias.copy_(self.classifier.bias)
        return nn.Sequential(
            copy_weights(conv, self.conv.weight),
            copy_norm(self.norm, self.norm.num_features),
            activation("h_swish"),
            GlobalPool(),
            copy_weights(mix, self.mix.weight),
            activation("h_swish"),
            nn.Flatten(1),
            classifier,
        )
