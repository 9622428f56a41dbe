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
from opa_trt.supernet.elastic import BlockSpec, copy_linear, copy_norm, copy_weights
from opa_trt.supernet.layers import ACTIVATIONS, GlobalPool, activation, convolution
from opa_trt.supernet.operators import Convolution, GlobalPooling, Logits, Operator
from opa_trt.supernet.space import ElasticPart
from opa_trt.supernet.spaces.inverted import InvertedResidualSpace
from opa_trt.supernet.spaces.published import Names, convolution_and_norm, weight_and_bias


@dataclass(frozen=True)
class MobileNetV3Space(InvertedResidualSpace):
    """The published space by default: 1,000 classes, width 1.0 (1.2 is published too), five stages.

    ``stage_act`` and ``stage_squeeze_excite`` have one entry a stage, as ``stage_widths`` has.
    """

    name = "mobilenet_v3"
    net_name = "MobileNetV3"
    stem_act = "h_swish"
    published_widths = (1.0, 1.2)

    classes: int = 1000
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
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
        self.check_stages("stage_act", "stage_squeeze_excite")
        if not 0 < self.head_width < math.inf:
            msg = f"head_width = {self.head_width}."
            raise ConfigError(msg, expected="above 0.")
        if unknown := set(self.stage_act) - set(ACTIVATIONS):
            msg = f"stage_act names {sorted(unknown)}."
            raise ConfigError(msg, expected=f"some of {sorted(ACTIVATIONS)}.")

    def blocks(self, stage: int, depth: int) -> Iterator[BlockSpec]:
        act, attention = self.stage_act[stage], bool(self.stage_squeeze_excite[stage])
        return self.block_specs(stage, depth, act, squeeze_excite=attention)

    @property
    def first_block(self) -> BlockSpec:
        channels = self.stem_channels
        return BlockSpec(channels, channels, 1, "relu", False, self.norm_eps, self.norm_momentum)

    @property
    def head_channels(self) -> tuple[int, int, int]:
        """Channels of the last stage, the final expansion and the classifier's input."""
        last, expanded = self.channels(self.stage_widths[-1]), self.channels(self.head_width)
        return last, expanded, self.channels(self.feature_width)

    def head(self) -> ElasticPart:
        return Head(self)

    def head_operators(self, size: int) -> tuple[Operator, ...]:
        last, expanded, features = self.head_channels
        return (
            Convolution("Conv_1", size, last, expanded, 1, act="h_swish"),
            GlobalPooling(size, expanded),
            Convolution("Conv_2", 1, expanded, features, 1, act="h_swish", norm=False),
            Logits(features, self.classes),
        )

    def head_names(self) -> Names:
        return {
            **convolution_and_norm("head.conv", "head.norm", "final_expand_layer", elastic=False),
            "head.mix.weight": "feature_mix_layer.conv.weight",
            **weight_and_bias("head.classifier", "classifier.linear"),
        }


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
        return nn.Sequential(
            copy_weights(conv, self.conv.weight),
            copy_norm(self.norm, self.norm.num_features),
            activation("h_swish"),
            GlobalPool(),
            copy_weights(mix, self.mix.weight),
            activation("h_swish"),
            nn.Flatten(1),
            copy_linear(self.classifier, self.classifier.in_features),
        )
