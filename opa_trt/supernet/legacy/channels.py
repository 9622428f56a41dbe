"""Which tensors of a phase share their channels, and how many each keeps when it is narrowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from opa_trt.errors import ConfigError
from opa_trt.supernet.layers import make_divisible
from opa_trt.supernet.legacy.nodes import (
    ADDITIONS,
    PRODUCTS,
    count_of,
    depends,
    is_addition,
    is_channelwise,
    is_layer,
    layer_of,
    linear_end,
    refused,
)


@dataclass
class Channels:
    """Those that several tensors have in common.

    Args:
        count: how many there are in the legacy phase.
        name: of the layer that makes them, for messages.
        fixed: whether they are the phase's input or output, and so all stay.
        made_by: the convolutions (not depthwise) that make them, in order.
        read_by: those that read them.
        depthwise: whether a depthwise convolution is among what they pass.
    """

    count: int
    name: str
    fixed: bool = False
    made_by: list[fx.Node] = field(default_factory=list)
    read_by: list[fx.Node] = field(default_factory=list)
    depthwise: bool = False


class Flow:
    """The channels of every tensor of a traced phase.

    Args:
        phase: traced, every node that remains in use.
        example: an input, ``[N, C, H, W] float32``.

    Attributes:
        closing: the 1×1 convolution that the phase ends with, or None.
        last_sum: the sum with a shortcut that follows it, or None.
        shortcuts: sums, and the tensor among their two that comes from the phase's input.

    Raises:
        ConfigError: a layer that cannot be narrowed, or a tensor that is no feature map.
    """

    def __init__(self, phase: fx.GraphModule, example: Tensor) -> None:
        self.phase = phase
        with torch.no_grad():
            ShapeProp(phase).propagate(example)
        self.of: dict[fx.Node, Channels] = {}
        self.shortcuts: dict[fx.Node, fx.Node] = {}
        self._order = {node: place for place, node in enumerate(phase.graph.nodes)}
        self.result = _result(phase.graph)
        self.closing, self.last_sum = _closing(self.result)
        called: set[str] = set()
        for node in phase.graph.nodes:
            if node.op == "output":
                continue
            _check_map(node)
            if node.op == "placeholder":
                self.of[node] = Channels(count_of(node), node.name, fixed=True)
            elif is_layer(node, nn.Conv2d) or is_layer(node, nn.BatchNorm2d):
                if str(node.target) in called:
                    raise refused(node, "runs more than once")
                called.add(str(node.target))
                self._layer(node)
            else:
                self._operation(node)

    @property
    def norms(self) -> list[fx.Node]:
        """The batch norms, in order."""
        return [node for node in self.phase.graph.nodes if is_layer(node, nn.BatchNorm2d)]

    def _layer(self, node: fx.Node) -> None:
        (source,), layer = node.all_input_nodes, layer_of(node)
        if isinstance(layer, nn.BatchNorm2d):
            self.of[node] = self.of[source]
        elif layer.groups == layer.in_channels == layer.out_channels > 1:
            self.of[node] = self.of[source]
            self.of[node].depthwise = True
        elif layer.groups > 1:
            raise refused(node, f"has {layer.groups} groups")
        else:
            self.of[source].read_by.append(node)
            made = Channels(layer.out_channels, str(node.target), fixed=node is self.closing)
            made.made_by.append(node)
            self.of[node] = made

    def _operation(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        if len(sources) == 2 and node.target in (*ADDITIONS, *PRODUCTS):
            self._join(node, sources)
        elif len(sources) == 1 and is_channelwise(node) and count_of(node) == count_of(sources[0]):
            self.of[node] = self.of[sources[0]]
        else:
            raise refused(node, "is none of the layers that can be narrowed")

    def _join(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        one, other = sources
        if count_of(one) != count_of(
            other
        ):  # one of them has a single channel, for all of the other
            self.of[node] = self.of[max(sources, key=count_of)]
            return
        if node is self.last_sum:
            assert self.closing is not None
            self.of[node] = self.of[self.closing]
            return
        fixed = [source for source in sources if self.of[source].fixed]
        if node.target in ADDITIONS and len(fixed) == 1:
            self.shortcuts[node] = fixed[0]
            self.of[node] = self.of[other if fixed[0] is one else one]
            return
        self._unite(self.of[one], self.of[other])
        self.of[node] = self.of[one]

    def _unite(self, one: Channels, other: Channels) -> None:
        if one is other:
            return
        one.fixed |= other.fixed
        one.depthwise |= other.depthwise
        one.made_by = sorted([*one.made_by, *other.made_by], key=self._order.__getitem__)
        one.read_by += other.read_by
        for node, channels in self.of.items():
            if channels is other:
                self.of[node] = one

    def kept(self, channels: Channels, ratio: float, divisor: int) -> int:
        """How many of ``channels`` a shallow phase has.

        All of those that are fixed; of an inverted residual's middle as many times its input as
        before (MobileNetV2's shallow phases keep their expansion); else ``ratio`` of them, rounded
        to a multiple of ``divisor``.

        Raises:
            ConfigError: none would be left.
        """
        if channels.fixed or channels.count == 1:
            return channels.count
        if self._is_expansion(channels):
            source = self.of[channels.made_by[0].all_input_nodes[0]]
            inputs = self.kept(source, ratio, divisor)
            return max(1, round(inputs * channels.count / source.count))
        if channels.count * ratio < 1:
            message = f"ratio {ratio:g} leaves none of the {channels.count} channels that "
            message += f"{channels.name} makes."
            raise ConfigError(message, expected=f"at least {1 / channels.count:g}.")
        return min(channels.count, make_divisible(channels.count * ratio, divisor))

    def _is_expansion(self, channels: Channels) -> bool:
        """Whether these are more than what they are made of, and than what is made of them."""
        if not (channels.depthwise and channels.made_by and channels.read_by):
            return False
        expands = channels.count > self.of[channels.made_by[0].all_input_nodes[0]].count
        return expands and all(layer_of(n).out_channels < channels.count for n in channels.read_by)


def _result(graph: fx.Graph) -> fx.Node:
    (output,) = (node for node in graph.nodes if node.op == "output")
    result = output.args[0]
    if not isinstance(result, fx.Node):
        message = f"a phase gives {type(result).__name__}."
        raise ConfigError(message, expected="one tensor.")
    return result


def _closing(result: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The 1×1 convolution that a phase ends with, and the sum with a shortcut after it."""
    if is_addition(result):
        for one, other in (result.all_input_nodes, result.all_input_nodes[::-1]):
            convolution = linear_end(one)
            if convolution is not None and depends(convolution, other):
                return convolution, result
        return None, None
    return linear_end(result), None


def _check_map(node: fx.Node) -> None:
    """Every tensor inside a phase is a feature map ``[N, C, H, W]``."""
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    if node.op == "placeholder" and (shape is None or len(shape) != 4):
        message = f"its input has the shape {list(shape or ())}."
        raise ConfigError(message, expected="a feature map, [N, C, H, W].")
    if node.op == "get_attr" or shape is None or len(shape) != 4:
        what = "no single tensor" if shape is None else f"a tensor of shape {list(shape)}"
        raise refused(node, f"gives {what}")
