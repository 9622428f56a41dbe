"""What a node of a traced phase is: the layers and operations that a shallow phase can have."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from opa_trt.errors import ConfigError

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
)
CHANNELWISE: tuple[type[nn.Module], ...] = (
    *ACTIVATIONS,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
    nn.MaxPool2d,
    nn.Upsample,
)
ACTIVATE: tuple[Callable[..., Any], ...] = (
    F.elu,
    F.gelu,
    F.hardsigmoid,
    F.hardswish,
    F.hardtanh,
    F.leaky_relu,
    F.mish,
    F.relu,
    F.relu6,
    F.silu,
    torch.relu,
    torch.sigmoid,
    torch.tanh,
)
POOL: tuple[Callable[..., Any], ...] = (
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    F.avg_pool2d,
    F.dropout,
    F.interpolate,
    F.max_pool2d,
    torch.clamp,
)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
METHODS = ("clamp", "contiguous", "mean", "relu", "relu_", "sigmoid", "tanh")
CAN = "convolutions (plain or depthwise), batch norm, activations, pooling, sums and products."


def is_layer(node: fx.Node, kind: type[nn.Module]) -> bool:
    """Whether ``node`` calls a layer of exactly this class."""
    return node.op == "call_module" and type(layer_of(node)) is kind


def layer_of(node: fx.Node) -> Any:
    """The layer that ``node`` calls."""
    assert node.graph.owning_module is not None
    return node.graph.owning_module.get_submodule(str(node.target))


def is_addition(node: fx.Node) -> bool:
    """Whether ``node`` adds two tensors."""
    return node.target in ADDITIONS and len(node.all_input_nodes) == 2


def is_activation(node: fx.Node) -> bool:
    """Whether ``node`` is an activation of one tensor."""
    if node.op == "call_module":
        return type(layer_of(node)) in ACTIVATIONS
    return node.op == "call_function" and node.target in ACTIVATE


def is_pointwise(node: fx.Node) -> bool:
    """Whether ``node`` calls a 1×1 convolution without groups."""
    if not is_layer(node, nn.Conv2d):
        return False
    layer = layer_of(node)
    return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), 0)


def linear_end(node: fx.Node) -> fx.Node | None:
    """The 1×1 convolution whose result, but for a batch norm, ``node`` is: nobody else reads it."""
    if is_layer(node, nn.BatchNorm2d) and len(node.users) == 1:
        node = node.all_input_nodes[0]
    return node if is_pointwise(node) and len(node.users) == 1 else None


def depends(node: fx.Node, other: fx.Node) -> bool:
    """Whether ``other`` is needed to compute ``node``."""
    seen, left = {node}, [node]
    while left:
        for read in left.pop().all_input_nodes:
            if read not in seen:
                seen.add(read)
                left.append(read)
    return other in seen


def is_channelwise(node: fx.Node) -> bool:
    """Whether every channel of what ``node`` gives follows from the same one of its input."""
    if node.op == "call_module":
        return type(layer_of(node)) in CHANNELWISE
    if node.op == "call_function":
        return node.target in (*ACTIVATE, *POOL, *ADDITIONS, *PRODUCTS)
    return node.op == "call_method" and node.target in (*METHODS, *ADDITIONS, *PRODUCTS)


def count_of(node: fx.Node) -> int:
    """How many channels a node gives."""
    return int(node.meta["tensor_meta"].shape[1])


def refused(node: fx.Node, why: str) -> ConfigError:
    """The error of a layer or operation that no shallow phase can have a narrow copy of."""
    if node.op == "call_module":
        what = f"{node.target} ({type(layer_of(node)).__name__})"
    else:
        what = f"{node.name} ({getattr(node.target, '__name__', node.target)})"
    return ConfigError(
        f"{what} {why}: a shallow phase cannot have a narrow copy of it.",
        expected=CAN,
        remedy="name phases that leave it out.",
    )
