"""OFA's ProxylessNAS space: inverted residuals, ReLU6, no attention, one block at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opa_trt.supernet import ofa_archs
from opa_trt.supernet.arch import Arch, Ratio
from opa_trt.supernet.elastic import BlockSpec, copy_linear, copy_norm, copy_weights
from opa_trt.supernet.layers import GlobalPool, activation, convolution
from opa_trt.supernet.operators import Convolution, GlobalPooling, Logits, Operator
from opa_trt.supernet.space import ElasticPart
from opa_trt.supernet.spaces.inverted import InvertedResidualSpace
from opa_trt.supernet.spaces.published import Names, convolution_and_norm, weight_and_bias


@dataclass(frozen=True)
class ProxylessSpace(InvertedResidualSpace):
    """The published space by default: 1,000 classes, width 1.3, six stages, 21 elastic blocks.

    ``first_width`` is that of the fixed first block; the last stage always has one block.
    """

    name = "proxyless"
    net_name = "ProxylessNASNets"
    stem_act = "relu6"
    published_widths = (1.3,)

    classes: int = 1000
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    depth_choices: tuple[int, ...] = (2, 3, 4)
    kernel_choices: tuple[int, ...] = (3, 5, 7)
    expand_choices: tuple[Ratio, ...] = (3, 4, 6)
    width: float = 1.3
    stem_width: int = 32
    stem_stride: int = 2
    first_width: int = 16
    stage_widths: tuple[int, ...] = (24, 40, 80, 96, 192, 320)
    stage_strides: tuple[int, ...] = (2, 2, 2, 1, 2, 1)
    feature_width: int = 1280
    norm_eps: float = 1e-3
    norm_momentum: float = 0.1
    dropout: float = 0.1

    @property
    def depth_options(self) -> tuple[tuple[int, ...], ...]:
        return (*(self.depth_choices,) * (len(self.stage_widths) - 1), (1,))

    def depths_from_ofa(self, given: Any) -> tuple[int, ...]:
        """As every space does, but the last stage, always of one block, may be left out.

        Published lists may hold a depth of the other stages there.
        """
        stages = len(self.stage_widths)
        listed = ofa_archs.entries("d", given, stages - 1, stages)
        depths = self.capped([*listed, 1][:stages])
        return tuple(int(depth) for depth in ofa_archs.chosen("d", depths, self.depth_options))

    def blocks(self, stage: int, depth: int) -> Iterator[BlockSpec]:
        return self.block_specs(stage, depth, "relu6", squeeze_excite=False)

    @property
    def first_block(self) -> BlockSpec:
        inputs, outputs = self.stem_channels, self.channels(self.first_width)
        return BlockSpec(inputs, outputs, 1, "relu6", False, self.norm_eps, self.norm_momentum)

    def head(self) -> ElasticPart:
        return Head(self)

    def head_operators(self, size: int) -> tuple[Operator, ...]:
        last, features = self.channels(self.stage_widths[-1]), self.channels(self.feature_width)
        return (
            Convolution("Conv_1", size, last, features, 1, act="relu6"),
            GlobalPooling(size, features),
            Logits(features, self.classes),
        )

    def head_names(self) -> Names:
        return {
            **convolution_and_norm("head.mix", "head.norm", "feature_mix_layer", elastic=False),
            **weight_and_bias("head.classifier", "classifier.linear"),
        }


class Head(ElasticPart):
    """Feature mix (with norm), pooling and classifier."""

    def __init__(self, space: ProxylessSpace) -> None:
        super().__init__()
        last, features = space.channels(space.stage_widths[-1]), space.channels(space.feature_width)
        self.mix = convolution(last, features, 1)
        self.norm = nn.BatchNorm2d(features, eps=space.norm_eps, momentum=space.norm_momentum)
        self.classifier = nn.Linear(features, space.classes)
        self.dropout = space.dropout
        nn.init.kaiming_normal_(self.mix.weight, mode="fan_out")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        out = F.relu6(self.norm(self.mix(x))).mean((2, 3))
        logits: Tensor = self.classifier(F.dropout(out, self.dropout, self.training))
        return logits

    @torch.no_grad()
    def extract(self, arch: Arch) -> nn.Module:
        mix = convolution(self.mix.in_channels, self.mix.out_channels, 1)
        return nn.Sequential(
            copy_weights(mix, self.mix.weight),
            copy_norm(self.norm, self.norm.num_features),
            activation("relu6"),
            GlobalPool(),
            nn.Flatten(1),
            copy_linear(self.classifier, self.classifier.in_features),
        )
