"""OFA's ResNet50D space: elastic depth, bottleneck ratio and width of every stage and the stem."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opa_trt.errors import ArchError, ConfigError
from opa_trt.supernet import ofa_archs
from opa_trt.supernet.arch import Arch, Ratio
from opa_trt.supernet.bottleneck import (
    Bottleneck,
    ElasticBottleneck,
    ElasticConvolution,
    MaxPooling,
    NormSpec,
)
from opa_trt.supernet.elastic import copy_linear
from opa_trt.supernet.layers import GlobalPool, Residual, make_divisible, out_size
from opa_trt.supernet.net_configs import Layer, stages_of
from opa_trt.supernet.operators import (
    Convolution,
    GlobalPooling,
    Logits,
    Operator,
    Term,
)
from opa_trt.supernet.space import ElasticPart, Space
from opa_trt.supernet.spaces.published import Names, convolution_and_norm, weight_and_bias

OFA_STEM = (0, 2)  # OFA's depths of the stem: without and with its residual convolution


@dataclass(frozen=True)
class ResNet50DSpace(Space):
    """The published space by default: 1,000 classes, four stages of 2, 2, 4, 2 blocks and more.

    An arch's ``depths`` are the residual convolutions of the stem (0 or 1) and the blocks of each
    stage; its ``widths`` multiply the channels inside the stem, after it, and after each stage.
    Expand ratios are those of the bottleneck's channels to a block's output channels.
    """

    name = "resnet50d"
    net_name = "ResNets"
    elastic_kernel = False
    stem_depths = 1
    stem_widths = 2

    classes: int = 1000
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    kernel_choices: tuple[int, ...] = ()
    expand_choices: tuple[Ratio, ...] = (0.2, 0.25, 0.35)
    width_choices: tuple[Ratio, ...] = (0.65, 0.8, 1.0)
    base_depths: tuple[int, ...] = (2, 2, 4, 2)
    extra_depths: tuple[int, ...] = (0, 1, 2)
    stem_width: int = 64
    stage_widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stage_strides: tuple[int, ...] = (1, 2, 2, 2)
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        stages = len(self.stage_widths)
        for key in ("base_depths", "stage_strides"):
            if len(getattr(self, key)) != stages:
                msg = f"{key} has {len(getattr(self, key))} entries."
                raise ConfigError(msg, expected=f"{stages}, as stage_widths has.")
        for key in ("base_depths", "stage_widths", "stage_strides"):
            if min(getattr(self, key), default=0) <= 0:
                msg = f"{key} = {list(getattr(self, key))}."
                raise ConfigError(msg, expected="one or more, above 0.")
        extra = self.extra_depths
        if not extra or list(extra) != sorted(set(extra)) or extra[0] < 0:
            msg = f"extra_depths = {list(extra)}."
            raise ConfigError(msg, expected="values of 0 or more, ascending, no repeats.")
        if self.kernel_choices:
            msg = f"kernel_choices = {list(self.kernel_choices)}."
            raise ConfigError(msg, expected="none: every bottleneck has kernel size 3.")
        if not 0 < self.stem_width < math.inf:
            msg = f"stem_width = {self.stem_width}."
            raise ConfigError(msg, expected="above 0.")

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(base + self.extra_depths[-1] for base in self.base_depths)

    @property
    def depth_options(self) -> tuple[tuple[int, ...], ...]:
        stages = (tuple(base + extra for extra in self.extra_depths) for base in self.base_depths)
        return ((0, 1), *stages)

    @property
    def width_slots(self) -> int:
        return self.stem_widths + len(self.stage_widths)

    def depths_from_ofa(self, given: Any) -> tuple[int, ...]:
        """From the stem's entry (its residual is kept only at 2) and each stage's extra blocks."""
        choices = (OFA_STEM, *(self.extra_depths,) * len(self.base_depths))
        listed = ofa_archs.entries("d", given, len(choices))
        stem, *extra = ofa_archs.chosen("d", listed, choices)
        stages = (b + int(e) for b, e in zip(self.base_depths, extra, strict=True))
        return (OFA_STEM.index(int(stem)), *stages)

    def depths_to_ofa(self, depths: Sequence[int]) -> tuple[int, ...]:
        extra = (d - base for d, base in zip(depths[1:], self.base_depths, strict=True))
        return (OFA_STEM[depths[0]], *extra)

    def arch_from_layers(
        self, stem: Sequence[Layer], blocks: Sequence[Layer], resolution: int
    ) -> Arch:
        stages = stages_of(blocks)
        if len(stages) != len(self.stage_widths):
            msg = f"blocks has {len(stages)} stages."
            raise ArchError(msg, expected=f"{len(self.stage_widths)}, as {self.name} has.")
        layers = [stem[0], stem[-1], *(stage[0] for stage in stages)]
        return Arch(
            resolution=resolution,
            depths=(len(stem) - 2, *map(len, stages)),
            kernel_sizes=(),
            expand_ratios=tuple(tuple(b.number("expand_ratio") for b in stage) for stage in stages),
            widths=tuple(self._width_of(entry, layer) for entry, layer in enumerate(layers)),
        )

    def _width_of(self, entry: int, layer: Layer) -> Ratio:
        """The width that gives a layer's channels; the smallest where several do."""
        given = {self.channels(entry, width): width for width in reversed(self.width_choices)}
        if (outputs := layer.number("out_channels")) not in given:
            msg = f"{layer.path}.out_channels is {outputs}."
            raise ArchError(msg, expected=f"one of {sorted(given)}.")
        return given[outputs]

    @property
    def norm(self) -> NormSpec:
        """Of every batch norm."""
        return NormSpec(self.norm_eps, self.norm_momentum)

    def channels(self, entry: int, width: Ratio) -> int:
        """Channels at entry ``entry`` of an arch's widths, if that is ``width``."""
        if entry == 0:
            return make_divisible(self.channels(1, width) // 2)
        full = (self.stem_width, *self.stage_widths)[entry - 1]
        return make_divisible(full * width)

    def middle(self, stage: int, width: Ratio, ratio: Ratio) -> int:
        """Channels of a bottleneck of stage ``stage`` (counted from 0)."""
        return make_divisible(round(self.channels(self.stem_widths + stage, width) * ratio))

    def elastic_parts(self) -> dict[str, ElasticPart]:
        parts: dict[str, ElasticPart] = {"stem": Stem(self)}
        for stage in range(len(self.stage_widths)):
            parts[f"stage{stage + 1}"] = Stage(self, stage)
        return parts | {"head": Head(self)}

    def published_names(self) -> Names:
        names = weight_and_bias("head.classifier", "classifier.linear.linear")
        stem = {"first": "input_stem.0", "skip": "input_stem.1.conv", "last": "input_stem.2"}
        for layer, theirs in stem.items():
            names |= convolution_and_norm(f"stem.{layer}.conv", f"stem.{layer}.norm", theirs)
        places = [(s, b) for s, slots in enumerate(self.slots, 1) for b in range(slots)]
        for index, (stage, block) in enumerate(places):
            ours = f"stage{stage}.blocks.{block}"
            names |= _bottleneck_names(ours, f"blocks.{index}", shortcut=block == 0)
        return names

    def terms(self) -> tuple[Term, ...]:
        genome = self.genome
        widths = genome.columns("width")
        found = [Term("stem", (0, genome.index("depth"), *widths[:2]), self._stem_operators)]
        slot = 0
        for stage, slots in enumerate(self.slots):
            depth = genome.index("depth", self.stem_depths + stage)
            before, after = widths[stage + 1 : stage + 3]
            for block in range(slots):
                wide = (before, after) if block == 0 else (after,)
                genes = (0, depth, *wide, genome.index("expand", slot))
                run = _BlockOperators(self, stage, block)
                found.append(Term(f"stage{stage + 1}", genes, run))
                slot += 1
        return (*found, Term("head", (0, widths[-1]), self._head_operators))

    def size_before(self, stage: int, resolution: int) -> int:
        """Side of a stage's input for images of side ``resolution``."""
        size = out_size(out_size(resolution, 2), 2)
        for stride in self.stage_strides[:stage]:
            size = out_size(size, stride)
        return size

    def _stem_operators(
        self, resolution: int, depth: int, inner: Ratio, outer: Ratio
    ) -> tuple[Operator, ...]:
        middle, outputs = self.channels(0, inner), self.channels(1, outer)
        size = out_size(resolution, 2)
        skip = Convolution("Conv_r", size, middle, middle, 3, act="relu", residual=True)
        return (
            Convolution("Conv", resolution, 3, middle, 3, 2, act="relu"),
            *((skip,) if depth else ()),
            Convolution("Conv_s", size, middle, outputs, 3, act="relu"),
            MaxPooling(size, outputs),
        )

    def _head_operators(self, resolution: int, width: Ratio) -> tuple[Operator, ...]:
        features = self.channels(self.width_slots - 1, width)
        size = self.size_before(len(self.stage_widths), resolution)
        return (GlobalPooling(size, features), Logits(features, self.classes))


def _bottleneck_names(ours: str, theirs: str, *, shortcut: bool) -> Names:
    layers = {"reduce": "conv1", "conv": "conv2", "project": "conv3"}
    names: Names = {}
    for layer, called in (layers | ({"shortcut": "downsample"} if shortcut else {})).items():
        inside = f"{ours}.{layer}"
        names |= convolution_and_norm(f"{inside}.conv", f"{inside}.norm", f"{theirs}.{called}")
    return names


@dataclass(frozen=True)
class _BlockOperators:
    """What a bottleneck runs: for a resolution, a depth, widths before and after, a ratio."""

    space: ResNet50DSpace
    stage: int
    block: int

    def __call__(
        self, resolution: int, depth: int, *widths_and_ratio: Ratio
    ) -> tuple[Operator, ...]:
        *widths, ratio = widths_and_ratio
        before, after = widths[0], widths[-1]
        if self.block >= depth:
            return ()
        space, first = self.space, self.block == 0
        entry = space.stem_widths + self.stage
        outputs = space.channels(entry, after)
        return (
            Bottleneck(
                size=space.size_before(self.stage + (0 if first else 1), resolution),
                inputs=space.channels(entry - 1, before) if first else outputs,
                middle=space.middle(self.stage, after, ratio),
                outputs=outputs,
                stride=space.stage_strides[self.stage] if first else 1,
                shortcut=first,
            ),
        )


class Stem(ElasticPart):
    """3x3 with stride 2, an optional residual 3x3, 3x3, max-pooling."""

    def __init__(self, space: ResNet50DSpace) -> None:
        super().__init__()
        self.space = space
        widest = space.width_choices[-1]
        middle, outputs = space.channels(0, widest), space.channels(1, widest)
        self.first = ElasticConvolution(3, middle, 3, 2, norm=space.norm)
        self.skip = ElasticConvolution(middle, middle, 3, norm=space.norm)
        self.last = ElasticConvolution(middle, outputs, 3, norm=space.norm)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        middle, outputs = self._channels(arch)
        out = self.first(x, middle).relu()
        if arch.depths[0]:
            out = out + self.skip(out, middle).relu()
        out = self.last(out, outputs).relu()
        return F.max_pool2d(out, 3, 2, padding=1)

    def extract(self, arch: Arch) -> nn.Module:
        middle, outputs = self._channels(arch)
        layers = [*self.first.extract(3, middle), nn.ReLU(inplace=True)]
        if arch.depths[0]:
            # Not in place: the sum needs what goes in.
            layers.append(Residual(nn.Sequential(*self.skip.extract(middle, middle), nn.ReLU())))
        layers += [*self.last.extract(middle, outputs), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.MaxPool2d(3, 2, padding=1))

    def _channels(self, arch: Arch) -> tuple[int, int]:
        return self.space.channels(0, arch.widths[0]), self.space.channels(1, arch.widths[1])


class Stage(ElasticPart):
    """One stage of bottlenecks; the first has the stride and a shortcut of its own."""

    def __init__(self, space: ResNet50DSpace, index: int) -> None:
        super().__init__()
        self.space, self.index = space, index
        self.blocks = nn.ModuleList(self._block(first=i == 0) for i in range(space.slots[index]))

    def _block(self, *, first: bool) -> ElasticBottleneck:
        """At its widest."""
        space, widest = self.space, self.space.width_choices[-1]
        entry = space.stem_widths + self.index
        outputs = space.channels(entry, widest)
        return ElasticBottleneck(
            inputs=space.channels(entry - 1, widest) if first else outputs,
            middle=space.middle(self.index, widest, space.expand_choices[-1]),
            outputs=outputs,
            stride=space.stage_strides[self.index] if first else 1,
            shortcut=first,
            norm=space.norm,
        )

    def _active(self, arch: Arch) -> Iterator[tuple[ElasticBottleneck, int, int, int]]:
        entry = self.space.stem_widths + self.index
        width = arch.widths[entry]
        inputs = self.space.channels(entry - 1, arch.widths[entry - 1])
        outputs = self.space.channels(entry, width)
        for block, ratio in zip(self.blocks, arch.expand_ratios[self.index], strict=False):
            assert isinstance(block, ElasticBottleneck)
            yield block, inputs, self.space.middle(self.index, width, ratio), outputs
            inputs = outputs

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        for block, _, middle, outputs in self._active(arch):
            x = block(x, middle, outputs)
        return x

    @torch.no_grad()
    def extract(self, arch: Arch) -> nn.Module:
        return nn.Sequential(
            *(
                block.extract(inputs, middle, outputs)
                for block, inputs, middle, outputs in self._active(arch)
            )
        )

    def sort_channels(self, level: int) -> None:
        space, widest = self.space, self.space.width_choices[-1]
        ratios = space.expand_choices[-level - 1 :]
        widths = [space.middle(self.index, widest, ratio) for ratio in ratios]
        for block in self.blocks:
            assert isinstance(block, ElasticBottleneck)
            block.sort_channels(widths)


class Head(ElasticPart):
    """Pooling and a classifier on the first features."""

    def __init__(self, space: ResNet50DSpace) -> None:
        super().__init__()
        features = space.channels(space.width_slots - 1, space.width_choices[-1])
        self.classifier = nn.Linear(features, space.classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.space = space

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        out = x.mean((2, 3))
        return F.linear(out, self.classifier.weight[:, : out.shape[1]], self.classifier.bias)

    def extract(self, arch: Arch) -> nn.Module:
        features = self.space.channels(self.space.width_slots - 1, arch.widths[-1])
        return nn.Sequential(GlobalPool(), nn.Flatten(1), copy_linear(self.classifier, features))
