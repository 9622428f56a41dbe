"""OFA's published networks once more, in plain torch, from the published tables.

Nothing here comes from the library: tests compare it with these networks. ``random_state`` makes
weights under the published keys (newest style), ``random_choice`` a sub-network as OFA writes it
(``ks``, ``e``, ``d``, ``w``, ``r``), and ``subnet`` cuts that sub-network out of such weights.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
Choice = dict[str, Any]
SIDES = (64, 72, 100)  # the last is odd after two strides of 2
CLASSES = 7


@dataclass(frozen=True)
class Table:
    """A published super-network of inverted residuals: a row a stage, widths at their largest."""

    space: str
    width: float
    act: str  # of the stem and the head
    first_act: str
    stem: int
    first: int
    stages: tuple[int, ...]
    strides: tuple[int, ...]
    acts: tuple[str, ...]
    attention: tuple[bool, ...]
    depths: tuple[int, ...]
    expanded: int | None  # the final expansion, where there is one
    features: int
    eps: float


def _mobilenet(width: float, stem: int, stages: tuple[int, ...], head: tuple[int, int]) -> Table:
    return Table(
        space="mobilenet_v3",
        width=width,
        act="h_swish",
        first_act="relu",
        stem=stem,
        first=stem,
        stages=stages,
        strides=(2, 2, 2, 1, 2),
        acts=("relu", "relu", "h_swish", "h_swish", "h_swish"),
        attention=(False, True, False, True, True),
        depths=(4, 4, 4, 4, 4),
        expanded=head[0],
        features=head[1],
        eps=1e-5,
    )


@dataclass(frozen=True)
class ResNetTable:
    """The published ResNet50D: for every place the channels of the three widths."""

    space: str = "resnet50d"
    width: None = None
    middle: tuple[int, ...] = (24, 24, 32)
    stem: tuple[int, ...] = (40, 48, 64)
    stages: tuple[tuple[int, ...], ...] = (
        (168, 208, 256),
        (336, 408, 512),
        (664, 816, 1024),
        (1328, 1640, 2048),
    )
    strides: tuple[int, ...] = (1, 2, 2, 2)
    depths: tuple[int, ...] = (2, 2, 4, 2)
    ratios: tuple[float, ...] = (0.2, 0.25, 0.35)
    eps: float = 1e-5


TABLES: dict[str, Table | ResNetTable] = {
    "mobilenet_v3 1.0": _mobilenet(1.0, 16, (24, 40, 80, 112, 160), (960, 1280)),
    "mobilenet_v3 1.2": _mobilenet(1.2, 24, (32, 48, 96, 136, 192), (1152, 1536)),
    "proxyless 1.3": Table(
        space="proxyless",
        width=1.3,
        act="relu6",
        first_act="relu6",
        stem=40,
        first=24,
        stages=(32, 56, 104, 128, 248, 416),
        strides=(2, 2, 2, 1, 2, 1),
        acts=("relu6",) * 6,
        attention=(False,) * 6,
        depths=(4, 4, 4, 4, 4, 1),
        expanded=None,
        features=1664,
        eps=1e-3,
    ),
    "resnet50d": ResNetTable(),
}


def round8(channels: float) -> int:
    """The nearest multiple of 8, never less than 90 % of ``channels``."""
    nearest = max(8, 8 * int(channels / 8 + 0.5))
    return nearest + 8 if nearest < 0.9 * channels else nearest


# --- weights --------------------------------------------------------------------------------------


class Weights:
    """Draws random tensors under keys; ``plain`` layers have no inner ``conv`` and ``bn``."""

    def __init__(self, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def conv(self, key: str, *shape: int) -> None:
        reads = shape[1] * shape[2] * shape[3]
        drawn = torch.randn(shape, generator=self.draw)
        self.state[f"{key}.weight"] = drawn * (2.0 / reads) ** 0.5

    def bias(self, key: str, channels: int) -> None:
        self.state[f"{key}.bias"] = torch.randn(channels, generator=self.draw) * 0.1

    def norm(self, key: str, channels: int) -> None:
        self.bias(key, channels)
        self.state[f"{key}.running_mean"] = torch.randn(channels, generator=self.draw) * 0.1
        for part in ("weight", "running_var"):
            self.state[f"{key}.{part}"] = torch.rand(channels, generator=self.draw) + 0.5
        self.state[f"{key}.num_batches_tracked"] = torch.tensor(9)

    def layer(self, key: str, *shape: int, plain: bool = False) -> None:
        """A convolution and its norm."""
        self.conv(f"{key}.conv" if plain else f"{key}.conv.conv", *shape)
        self.norm(f"{key}.bn" if plain else f"{key}.bn.bn", shape[0])

    def linear(self, key: str, classes: int, features: int) -> None:
        drawn = torch.randn(classes, features, generator=self.draw)
        self.state[f"{key}.weight"] = drawn * features**-0.5
        self.bias(key, classes)

    def matrix(self, key: str, size: int) -> None:
        drawn = torch.randn(size, size, generator=self.draw)
        self.state[key] = torch.eye(size) + 0.1 * drawn


def random_state(table: Table | ResNetTable, *, classes: int = CLASSES, seed: int = 0) -> State:
    """Random weights under the published keys: random norms and kernel matrices too."""
    weights = Weights(seed)
    if isinstance(table, ResNetTable):
        _resnet_state(table, weights, classes)
    else:
        _inverted_state(table, weights, classes)
    return weights.state


def _inverted_state(table: Table, weights: Weights, classes: int) -> None:
    weights.layer("first_conv", table.stem, 3, 3, 3, plain=True)
    weights.layer("blocks.0.conv.depth_conv", table.stem, 1, 3, 3, plain=True)
    weights.layer("blocks.0.conv.point_linear", table.first, table.stem, 1, 1, plain=True)
    index, inputs = 1, table.first
    for outputs, attention, depth in zip(table.stages, table.attention, table.depths, strict=True):
        for _ in range(depth):
            _block_state(weights, f"blocks.{index}.conv", inputs, outputs, attention=attention)
            index, inputs = index + 1, outputs
    if table.expanded is None:
        weights.layer("feature_mix_layer", table.features, inputs, 1, 1, plain=True)
    else:
        weights.layer("final_expand_layer", table.expanded, inputs, 1, 1, plain=True)
        weights.conv("feature_mix_layer.conv", table.features, table.expanded, 1, 1)
    weights.linear("classifier.linear", classes, table.features)


def _block_state(weights: Weights, key: str, inputs: int, outputs: int, *, attention: bool) -> None:
    wide = round8(inputs * 6)
    weights.layer(f"{key}.inverted_bottleneck", wide, inputs, 1, 1)
    weights.layer(f"{key}.depth_conv", wide, 1, 7, 7)
    weights.matrix(f"{key}.depth_conv.conv.7to5_matrix", 25)
    weights.matrix(f"{key}.depth_conv.conv.5to3_matrix", 9)
    if attention:
        middle = round8(wide // 4)
        for layer, shape in (("reduce", (middle, wide, 1, 1)), ("expand", (wide, middle, 1, 1))):
            weights.conv(f"{key}.depth_conv.se.fc.{layer}", *shape)
            weights.bias(f"{key}.depth_conv.se.fc.{layer}", shape[0])
    weights.layer(f"{key}.point_linear", outputs, wide, 1, 1)


def _resnet_state(table: ResNetTable, weights: Weights, classes: int) -> None:
    middle, inputs = table.middle[-1], table.stem[-1]
    weights.layer("input_stem.0", middle, 3, 3, 3)
    weights.layer("input_stem.1.conv", middle, middle, 3, 3)
    weights.layer("input_stem.2", inputs, middle, 3, 3)
    index = 0
    for (*_, outputs), depth in zip(table.stages, table.depths, strict=True):
        narrow = round8(round(outputs * 0.35))
        for block in range(depth + 2):
            key = f"blocks.{index}"
            weights.layer(f"{key}.conv1", narrow, inputs, 1, 1)
            weights.layer(f"{key}.conv2", narrow, narrow, 3, 3)
            weights.layer(f"{key}.conv3", outputs, narrow, 1, 1)
            if block == 0:
                weights.layer(f"{key}.downsample", outputs, inputs, 1, 1)
            index, inputs = index + 1, outputs
    weights.linear("classifier.linear.linear", classes, inputs)


# --- sub-networks as OFA writes them --------------------------------------------------------------


def random_choice(table: Table | ResNetTable, seed: int) -> Choice:
    """A random sub-network; lists have an entry for every block of the largest network."""
    draw = random.Random(seed)
    if isinstance(table, ResNetTable):
        blocks = sum(table.depths) + 2 * len(table.depths)
        return {
            "d": [draw.choice((0, 2)), *(draw.choice((0, 1, 2)) for _ in table.depths)],
            "e": [draw.choice(table.ratios) for _ in range(blocks)],
            "w": [draw.choice((0, 1, 2)) for _ in range(6)],
            "r": draw.choice(SIDES),
        }
    blocks = sum(table.depths)
    return {
        "ks": [draw.choice((3, 5, 7)) for _ in range(blocks)],
        "e": [draw.choice((3, 4, 6)) for _ in range(blocks)],
        "d": [min(most, draw.choice((2, 3, 4))) for most in table.depths],
        "r": draw.choice(SIDES),
    }


# --- layers ---------------------------------------------------------------------------------------


class Sum(nn.Module):
    """``body(x) + side(x)``, through an activation where one is given."""

    def __init__(self, body: nn.Module, side: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.body, self.side, self.act = body, side, act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.body(x) + self.side(x))
        return out


class Gate(nn.Module):
    """Squeeze-and-excitation: the input times a gate a channel."""

    def __init__(self, reduce: nn.Module, expand: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), reduce, nn.ReLU(), expand, nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layers(x)


def activation(name: str) -> nn.Module:
    return {"relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish, "none": nn.Identity}[
        name
    ]()


class Cutter:
    """Cuts layers out of the tensors of the largest network: always the first channels."""

    def __init__(self, state: State, eps: float) -> None:
        self.state, self.eps = state, eps

    def conv(
        self, key: str, outputs: int, inputs: int, stride: int = 1, bias: bool = False
    ) -> nn.Conv2d:
        weight = self.state[f"{key}.weight"][:outputs, :inputs]
        return self.filled(weight, stride, 1, self.state[f"{key}.bias"][:outputs] if bias else None)

    def filled(self, weight: Tensor, stride: int, groups: int, bias: Tensor | None) -> nn.Conv2d:
        side = weight.shape[-1]
        inputs, outputs = weight.shape[1] * groups, weight.shape[0]
        layer = nn.Conv2d(
            inputs, outputs, side, stride, side // 2, groups=groups, bias=bias is not None
        )
        layer.weight.data = weight.clone()
        if bias is not None:
            layer.bias = nn.Parameter(bias.clone())
        return layer

    def depthwise(self, key: str, channels: int, side: int, stride: int) -> nn.Conv2d:
        """7x7 is stored; smaller kernels are centres times a matrix, one after the other."""
        weight = self.state[f"{key}.conv.weight"][:channels]
        while weight.shape[-1] > side:
            large = weight.shape[-1]
            matrix = self.state[f"{key}.{large}to{large - 2}_matrix"]
            centre = weight[:, :, 1:-1, 1:-1].flatten(1)
            weight = (centre @ matrix.T).reshape(channels, 1, large - 2, large - 2)
        return self.filled(weight, stride, channels, None)

    def norm(self, key: str, channels: int) -> nn.BatchNorm2d:
        layer = nn.BatchNorm2d(channels, eps=self.eps)
        for part in ("weight", "bias", "running_mean", "running_var"):
            getattr(layer, part).data = self.state[f"{key}.{part}"][:channels].clone()
        return layer

    def linear(self, key: str, features: int) -> nn.Linear:
        weight, bias = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        layer = nn.Linear(features, len(bias))
        layer.weight.data, layer.bias.data = weight[:, :features].clone(), bias.clone()
        return layer


# --- networks -------------------------------------------------------------------------------------


def subnet(table: Table | ResNetTable, state: State, choice: Choice) -> nn.Sequential:
    """The sub-network ``choice`` of the super-network ``state``, in evaluation mode."""
    cut = Cutter(state, table.eps)
    with torch.random.fork_rng():
        if isinstance(table, ResNetTable):
            layers = _resnet(table, cut, choice)
        else:
            layers = _inverted(table, cut, choice)
    return nn.Sequential(*layers).eval()


def _inverted(table: Table, cut: Cutter, choice: Choice) -> list[nn.Module]:
    fixed = cut.state["blocks.0.conv.depth_conv.conv.weight"]
    first = [
        cut.filled(fixed, 1, table.stem, None),
        cut.norm("blocks.0.conv.depth_conv.bn", table.stem),
        activation(table.first_act),
        cut.conv("blocks.0.conv.point_linear.conv", table.first, table.stem),
        cut.norm("blocks.0.conv.point_linear.bn", table.first),
    ]
    layers = [
        cut.conv("first_conv.conv", table.stem, 3, 2),
        cut.norm("first_conv.bn", table.stem),
        activation(table.act),
        _maybe_residual(first, residual=table.stem == table.first),
    ]
    start, inputs = 0, table.first
    for stage, outputs in enumerate(table.stages):
        for slot in range(start, start + choice["d"][stage]):
            stride = table.strides[stage] if slot == start else 1
            kernel, ratio = choice["ks"][slot], choice["e"][slot]
            block = _block(table, cut, stage, slot + 1, inputs, stride, kernel, ratio)
            layers.append(_maybe_residual(block, residual=stride == 1 and inputs == outputs))
            inputs = outputs
        start += table.depths[stage]
    return [*layers, *_head(table, cut, inputs)]


def _maybe_residual(layers: list[nn.Module], *, residual: bool) -> nn.Module:
    body = nn.Sequential(*layers)
    return Sum(body, nn.Identity(), nn.Identity()) if residual else body


def _block(
    table: Table,
    cut: Cutter,
    stage: int,
    index: int,
    inputs: int,
    stride: int,
    kernel: int,
    ratio: int,
) -> list[nn.Module]:
    key, wide, outputs = f"blocks.{index}.conv", round8(round(inputs * ratio)), table.stages[stage]
    layers: list[nn.Module] = [
        cut.conv(f"{key}.inverted_bottleneck.conv.conv", wide, inputs),
        cut.norm(f"{key}.inverted_bottleneck.bn.bn", wide),
        activation(table.acts[stage]),
        cut.depthwise(f"{key}.depth_conv.conv", wide, kernel, stride),
        cut.norm(f"{key}.depth_conv.bn.bn", wide),
        activation(table.acts[stage]),
    ]
    if table.attention[stage]:
        middle, se = round8(wide // 4), f"{key}.depth_conv.se.fc"
        reduce = cut.conv(f"{se}.reduce", middle, wide, bias=True)
        layers.append(Gate(reduce, cut.conv(f"{se}.expand", wide, middle, bias=True)))
    layers.append(cut.conv(f"{key}.point_linear.conv.conv", outputs, wide))
    layers.append(cut.norm(f"{key}.point_linear.bn.bn", outputs))
    return layers


def _head(table: Table, cut: Cutter, inputs: int) -> list[nn.Module]:
    end = [nn.Flatten(), cut.linear("classifier.linear", table.features)]
    if table.expanded is None:
        return [
            cut.conv("feature_mix_layer.conv", table.features, inputs),
            cut.norm("feature_mix_layer.bn", table.features),
            activation(table.act),
            nn.AdaptiveAvgPool2d(1),
            *end,
        ]
    return [
        cut.conv("final_expand_layer.conv", table.expanded, inputs),
        cut.norm("final_expand_layer.bn", table.expanded),
        activation(table.act),
        nn.AdaptiveAvgPool2d(1),
        cut.conv("feature_mix_layer.conv", table.features, table.expanded),
        activation(table.act),
        *end,
    ]


def _resnet(table: ResNetTable, cut: Cutter, choice: Choice) -> list[nn.Module]:
    stem, inner, *widths = choice["d"][0], choice["w"][0], *choice["w"][1:]
    middle, inputs = table.middle[inner], table.stem[widths[0]]
    layers = _layer(cut, "input_stem.0", middle, 3, 2)
    if stem == 2:
        body = nn.Sequential(*_layer(cut, "input_stem.1.conv", middle, middle))
        layers.append(Sum(body, nn.Identity(), nn.Identity()))
    layers += _layer(cut, "input_stem.2", inputs, middle)
    layers.append(nn.MaxPool2d(3, 2, 1))
    start = 0
    for stage, (depth, extra) in enumerate(zip(table.depths, choice["d"][1:], strict=True)):
        outputs = table.stages[stage][widths[1 + stage]]
        for slot in range(start, start + depth + extra):
            stride = table.strides[stage] if slot == start else None
            layers.append(_bottleneck(cut, slot, inputs, outputs, stride, choice["e"][slot]))
            inputs = outputs
        start += depth + 2
    end = cut.linear("classifier.linear.linear", inputs)
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), end]


def _layer(
    cut: Cutter, key: str, outputs: int, inputs: int, stride: int = 1, act: str = "relu"
) -> list[nn.Module]:
    return [
        cut.conv(f"{key}.conv.conv", outputs, inputs, stride),
        cut.norm(f"{key}.bn.bn", outputs),
        activation(act),
    ]


def _bottleneck(
    cut: Cutter, index: int, inputs: int, outputs: int, stride: int | None, ratio: float
) -> nn.Module:
    """The first block of a stage has a ``stride``, and a shortcut with weights."""
    key, narrow = f"blocks.{index}", round8(round(outputs * ratio))
    body = nn.Sequential(
        *_layer(cut, f"{key}.conv1", narrow, inputs),
        *_layer(cut, f"{key}.conv2", narrow, narrow, stride or 1),
        *_layer(cut, f"{key}.conv3", outputs, narrow, act="none"),
    )
    side: nn.Module = nn.Identity()
    if stride is not None:
        side = nn.Sequential(
            nn.AvgPool2d(stride, stride, ceil_mode=True),
            *_layer(cut, f"{key}.downsample", outputs, inputs, act="none"),
        )
    return Sum(body, side, nn.ReLU())
