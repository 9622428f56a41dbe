"""What the spaces of inverted-residual blocks (MobileNetV3, ProxylessNAS) have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from opa_trt.errors import ConfigError
from opa_trt.supernet.arch import Arch, Ratio
from opa_trt.supernet.cost import Cost, convolution_cost, norm_cost, squeeze_excite_cost
from opa_trt.supernet.elastic import BlockSpec, ElasticBlock, copy_norm, copy_weights
from opa_trt.supernet.layers import activation, convolution, make_divisible, out_size
from opa_trt.supernet.net_configs import Layer, stages_of
from opa_trt.supernet.operators import Convolution, Operator, Term, published_act, shapes
from opa_trt.supernet.space import ElasticPart, Space
from opa_trt.supernet.spaces.published import (
    Names,
    convolution_and_norm,
    kernel_matrices,
    weight_and_bias,
)

STEM_KERNEL = 3


@dataclass(frozen=True)
class InvertedResidualSpace(Space):
    """A stem with a fixed first block, stages of elastic blocks, and a head.

    ``width`` multiplies every channel count, rounded to a multiple of 8. ``stage_strides`` has
    one entry a stage, as ``stage_widths`` has; the stride is that of a stage's first block.
    """

    depth_choices: tuple[int, ...]
    width: float
    stem_width: int
    stem_stride: int
    stage_widths: tuple[int, ...]
    stage_strides: tuple[int, ...]
    feature_width: int
    norm_eps: float
    norm_momentum: float
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("width", "stem_width", "stem_stride", "feature_width"):
            if not 0 < getattr(self, key) < math.inf:
                msg = f"{key} = {getattr(self, key)}."
                raise ConfigError(msg, expected="above 0.")
        for key in ("stage_widths", "stage_strides"):
            sizes = getattr(self, key)
            if not sizes or min(sizes) <= 0:
                msg = f"{key} = {list(sizes)}."
                raise ConfigError(msg, expected="one or more, above 0.")
        self.check_stages("stage_strides")

    def check_stages(self, *keys: str) -> None:
        """ConfigError where one of the parameters ``keys`` has not one entry a stage."""
        stages = len(self.stage_widths)
        for key in keys:
            if len(getattr(self, key)) != stages:
                msg = f"{key} has {len(getattr(self, key))} entries."
                raise ConfigError(msg, expected=f"{stages}, as stage_widths has.")

    # --- what a space of this kind defines ----------------------------------------------------

    stem_act: ClassVar[str]

    @property
    @abstractmethod
    def first_block(self) -> BlockSpec:
        """The fixed block between the stem's convolution and the first stage."""

    @abstractmethod
    def blocks(self, stage: int, depth: int) -> Iterator[BlockSpec]:
        """The first ``depth`` blocks of a stage (counted from 0)."""

    @abstractmethod
    def head(self) -> ElasticPart:
        """The freshly initialised head."""

    @abstractmethod
    def head_operators(self, size: int) -> tuple[Operator, ...]:
        """What the head runs on an input of side ``size``."""

    @abstractmethod
    def head_names(self) -> Names:
        """The head's part of ``published_names``."""

    # --- what follows from it -----------------------------------------------------------------

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(options[-1] for options in self.depth_options)

    @property
    def depth_options(self) -> tuple[tuple[int, ...], ...]:
        return (self.depth_choices,) * len(self.stage_widths)

    def channels(self, width: float) -> int:
        """``width`` channels at the width of this space."""
        return make_divisible(width * self.width)

    @property
    def stem_channels(self) -> int:
        """Channels of the stem's convolution."""
        return self.channels(self.stem_width)

    def block_specs(
        self, stage: int, depth: int, act: str, *, squeeze_excite: bool
    ) -> Iterator[BlockSpec]:
        """``depth`` blocks of ``stage``; the first comes from the stage before and has a stride."""
        outputs = [self.first_block.outputs, *map(self.channels, self.stage_widths)]
        for block in range(depth):
            yield BlockSpec(
                inputs=outputs[stage] if block == 0 else outputs[stage + 1],
                outputs=outputs[stage + 1],
                stride=self.stage_strides[stage] if block == 0 else 1,
                act=act,
                squeeze_excite=squeeze_excite,
                eps=self.norm_eps,
                momentum=self.norm_momentum,
            )

    def elastic_parts(self) -> dict[str, ElasticPart]:
        parts: dict[str, ElasticPart] = {"stem": Stem(self)}
        for stage in range(len(self.stage_widths)):
            parts[f"stage{stage + 1}"] = Stage(self, stage)
        return parts | {"head": self.head()}

    def published_names(self) -> Names:
        names = convolution_and_norm("stem.conv", "stem.norm", "first_conv", elastic=False)
        names |= _projection_names("stem.block", "blocks.0.conv", elastic=False)
        index = 1
        for stage, slots in enumerate(self.slots):
            for block, spec in enumerate(self.blocks(stage, slots)):
                ours, theirs = f"stage{stage + 1}.blocks.{block}", f"blocks.{index}.conv"
                names |= self._block_names(ours, theirs)
                names |= _attention_names(ours, theirs) if spec.squeeze_excite else {}
                index += 1
        return names | self.head_names()

    def _block_names(self, ours: str, theirs: str) -> Names:
        expand, called = f"{ours}.expand", f"{theirs}.inverted_bottleneck"
        depthwise, kernel = f"{ours}.depthwise", f"{theirs}.depth_conv.conv"
        return {
            **convolution_and_norm(expand, f"{expand}_norm", called),
            **_projection_names(ours, theirs, elastic=True),
            **kernel_matrices(depthwise, kernel, self.kernel_choices),
        }

    def terms(self) -> tuple[Term, ...]:
        genome = self.genome
        found = [Term("stem", (0,), self._stem_operators)]
        slot = 0
        for stage, slots in enumerate(self.slots):
            for block, spec in enumerate(self.blocks(stage, slots)):
                genes = [0, genome.index("depth", stage)]
                genes += [genome.index("kernel", slot), genome.index("expand", slot)]
                run = _BlockOperators(self, stage, block, spec)
                found.append(Term(f"stage{stage + 1}", tuple(genes), run))
                slot += 1
        return (*found, Term("head", (0,), self._head_operators))

    def arch_from_layers(
        self, stem: Sequence[Layer], blocks: Sequence[Layer], resolution: int
    ) -> Arch:
        stages = stages_of(blocks[1:])  # the first block is the stem's
        return Arch(
            resolution=resolution,
            depths=tuple(map(len, stages)),
            kernel_sizes=tuple(tuple(b.number("kernel_size") for b in stage) for stage in stages),
            expand_ratios=tuple(tuple(b.number("expand_ratio") for b in stage) for stage in stages),
        )

    def size_before(self, stage: int, resolution: int) -> int:
        """Side of a stage's input for images of side ``resolution``."""
        size = out_size(resolution, self.stem_stride)
        for stride in self.stage_strides[:stage]:
            size = out_size(size, stride)
        return size

    def _stem_operators(self, resolution: int) -> tuple[Operator, ...]:
        channels, size = self.stem_channels, self.size_before(0, resolution)
        conv = Convolution(
            "Conv", resolution, 3, channels, STEM_KERNEL, self.stem_stride, self.stem_act
        )
        return (conv, InvertedResidual(self.first_block, size, STEM_KERNEL))

    def _head_operators(self, resolution: int) -> tuple[Operator, ...]:
        return self.head_operators(self.size_before(len(self.stage_widths), resolution))


def _projection_names(ours: str, theirs: str, *, elastic: bool) -> Names:
    """What every block has: the depthwise convolution and the projection."""
    names: Names = {}
    for layer, called in (("depthwise", "depth_conv"), ("project", "point_linear")):
        inside = f"{ours}.{layer}"
        place = f"{theirs}.{called}"
        names |= convolution_and_norm(inside, f"{inside}_norm", place, elastic=elastic)
    return names


def _attention_names(ours: str, theirs: str) -> Names:
    inside, called = f"{ours}.squeeze_excite", f"{theirs}.depth_conv.se.fc"
    return {
        **weight_and_bias(f"{inside}.reduce", f"{called}.reduce"),
        **weight_and_bias(f"{inside}.expand", f"{called}.expand"),
    }


@dataclass(frozen=True)
class _BlockOperators:
    """What one elastic block runs for a resolution, its stage's depth, its kernel and ratio."""

    space: InvertedResidualSpace
    stage: int
    block: int
    spec: BlockSpec

    def __call__(
        self, resolution: int, depth: int, kernel: int, ratio: Ratio
    ) -> tuple[Operator, ...]:
        if self.block >= depth:
            return ()
        after = 0 if self.block == 0 else 1  # blocks after the first read the strided size
        size = self.space.size_before(self.stage + after, resolution)
        return (InvertedResidual(self.spec, size, kernel, ratio),)


@dataclass(frozen=True)
class InvertedResidual(Operator):
    """An inverted-residual block; without a ratio it has no expansion.

    ``size`` is the side of its input.
    """

    spec: BlockSpec
    size: int
    kernel: int
    ratio: Ratio | None = None

    @property
    def middle(self) -> int:
        """Channels between expansion and projection."""
        return self.spec.inputs if self.ratio is None else self.spec.middle(self.ratio)

    @property
    def cost(self) -> Cost:
        spec, width = self.spec, self.middle
        after = out_size(self.size, spec.stride)
        cost = convolution_cost(after, width, width, self.kernel, groups=width) + norm_cost(width)
        if self.ratio is not None:
            cost += convolution_cost(self.size, spec.inputs, width, 1) + norm_cost(width)
        if spec.squeeze_excite:
            cost += squeeze_excite_cost(width)
        return cost + convolution_cost(after, width, spec.outputs, 1) + norm_cost(spec.outputs)

    @property
    def key(self) -> str:
        spec = self.spec
        after = out_size(self.size, spec.stride)
        return (
            f"expanded_conv-{shapes(self.size, spec.inputs, after, spec.outputs)}"
            f"-expand:{self.middle}-kernel:{self.kernel}-stride:{spec.stride}"
            f"-idskip:{int(spec.residual)}-se:{int(spec.squeeze_excite)}"
            f"-hs:{int(spec.act == 'h_swish')}"
            # No published space has ratio 1, which is not the stem's block without an expansion.
            f"{'-ratio:1' if self.ratio == 1 else ''}"
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.spec.inputs, self.size, self.size)

    @property
    def net_layer(self) -> dict[str, Any]:
        return {
            "name": "MBConvLayer",
            "in_channels": self.spec.inputs,
            "out_channels": self.spec.outputs,
            "kernel_size": self.kernel,
            "stride": self.spec.stride,
            "expand_ratio": 1 if self.ratio is None else self.ratio,
            "mid_channels": self.middle,
            "act_func": published_act(self.spec.act),
            "use_se": self.spec.squeeze_excite,
            "shortcut": self.spec.residual,
        }

    def build(self) -> nn.Module:
        ratio = 1 if self.ratio is None else self.ratio
        block = ElasticBlock(self.spec, (self.kernel,), (ratio,), expansion=self.ratio is not None)
        return block.extract(self.kernel, ratio)


class Stem(ElasticPart):
    """First convolution and the fixed first block."""

    def __init__(self, space: InvertedResidualSpace) -> None:
        super().__init__()
        channels = space.stem_channels
        self.conv = convolution(3, channels, STEM_KERNEL, space.stem_stride)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        self.norm = nn.BatchNorm2d(channels, eps=space.norm_eps, momentum=space.norm_momentum)
        self.block = ElasticBlock(space.first_block, (STEM_KERNEL,), (1,), expansion=False)
        self.act_name = space.stem_act
        self.act = activation(space.stem_act)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        out = self.act(self.norm(self.conv(x)))
        result: Tensor = self.block(out, STEM_KERNEL, 1)
        return result

    def extract(self, arch: Arch) -> nn.Module:
        conv = convolution(3, self.conv.out_channels, STEM_KERNEL, self.conv.stride[0])
        return nn.Sequential(
            copy_weights(conv, self.conv.weight),
            copy_norm(self.norm, self.norm.num_features),
            activation(self.act_name),
            self.block.extract(STEM_KERNEL, 1),
        )


class Stage(ElasticPart):
    """One elastic stage; the arch says how many of its blocks run, and how."""

    def __init__(self, space: InvertedResidualSpace, index: int) -> None:
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
