"""A shallow alternative of a phase: its layers with a part of their channels."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from opa_trt.errors import ConfigError
from opa_trt.supernet.legacy.channels import Channels, Flow
from opa_trt.supernet.legacy.cutting import traced
from opa_trt.supernet.legacy.nodes import (
    depends,
    is_activation,
    is_addition,
    layer_of,
    linear_end,
)


@dataclass(frozen=True)
class Narrowing:
    """How a shallow phase is made.

    Args:
        ratio: the share of the channels that stay.
        divisor: what their number is a multiple of.
        seed: of which they are.
    """

    ratio: float = 0.25
    divisor: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            message = f"ratio = {self.ratio:g}."
            raise ConfigError(message, expected="above 0, below 1.")
        if self.divisor < 1:
            message = f"divisor = {self.divisor}."
            raise ConfigError(message, expected="at least 1.")


def shallow_phase(phase: nn.Module, example: Tensor, how: Narrowing, place: int) -> nn.Module:
    """The shallow alternative of ``phase``, trainable, which is left as it is.

    It has as many layers, of a part of the channels each, and ends in a 1×1 convolution to the
    phase's own number of channels: its last one, where nothing but a sum with a shortcut follows
    that, else one more, with the phase's last activation. Shortcuts are projected where the
    numbers of channels differ, and are plain where they do not. Weights and statistics are
    samples of the original ones; of channels that were sampled, every layer has the same.

    Args:
        phase: in evaluation mode.
        example: an input of it, ``[N, C, H, W] float32``.
        how: how many channels stay, and the seed.
        place: of the phase in its network: every one draws its own sample.

    Raises:
        ConfigError: a phase that cannot be narrowed, or is not made cheaper.
    """
    with torch.random.fork_rng(devices=[]):  # new layers draw weights, overwritten at once
        return _Surgery(phase, example, how, place).operate()


class _Surgery:
    """A phase's graph on its way to the shallow one."""

    def __init__(self, phase: nn.Module, example: Tensor, how: Narrowing, place: int) -> None:
        self.module = fx.GraphModule(phase, traced(fx.Tracer(), phase), "Shallow")
        self.flow = Flow(self.module, example)
        self._how = how
        self._draw = torch.Generator().manual_seed(how.seed * 1009 + place)
        self._samples: dict[int, Tensor] = {}
        self._norm = layer_of(self.flow.norms[-1]) if self.flow.norms else None

    def operate(self) -> nn.Module:
        graph, flow = self.module.graph, self.flow
        samples = {node: self._sample(channels) for node, channels in flow.of.items()}
        if all(len(samples[node]) == flow.of[node].count for node in samples):
            message = (
                f"ratio {self._how.ratio:g} in multiples of {self._how.divisor} leaves it every "
            )
            message += "channel that it has."
            raise ConfigError(message, expected="something to narrow.", remedy="a smaller divisor.")
        end = None if flow.closing is not None else self._closing_layers(samples)
        self._narrow(samples)
        for node in [node for node in graph.nodes if is_addition(node)]:
            self._shorten(node, samples)
        if end is not None:
            self._append(end)
        graph.lint()
        self.module.delete_all_unused_submodules()
        self.module.recompile()
        shallow = copy.deepcopy(self.module)
        return shallow.requires_grad_(True)

    def _sample(self, channels: Channels) -> Tensor:
        """Which of the channels stay, ascending."""
        known = self._samples.get(id(channels))
        if known is None:
            kept = self.flow.kept(channels, self._how.ratio, self._how.divisor)
            known = _drawn(channels.count, kept, self._draw)
            self._samples[id(channels)] = known
        return known

    def _narrow(self, samples: dict[fx.Node, Tensor]) -> None:
        """Put a narrow layer in the place of every convolution and batch norm."""
        for node in self.module.graph.nodes:
            if node.op != "call_module":
                continue
            layer, (source,) = layer_of(node), node.all_input_nodes
            if isinstance(layer, nn.Conv2d):
                self._replace(node, _narrow_convolution(layer, samples[node], samples[source]))
            elif isinstance(layer, nn.BatchNorm2d):
                self._replace(node, _narrow_norm(layer, samples[node]))

    def _replace(self, node: fx.Node, layer: nn.Module) -> None:
        parent, _, name = str(node.target).rpartition(".")
        setattr(self.module.get_submodule(parent), name, layer)

    def _shorten(self, node: fx.Node, samples: dict[fx.Node, Tensor]) -> None:
        """Make a sum's shortcut fit: none, a projection, or no longer one."""
        flow, graph = self.flow, self.module.graph
        if node is flow.last_sum:
            one, other = node.all_input_nodes
            ends = one if linear_end(one) is flow.closing else other
            shortcut = other if ends is one else one
            if len(samples[shortcut]) != flow.of[node].count:
                node.replace_all_uses_with(ends)
                graph.erase_node(node)
            return
        if node in flow.shortcuts and len(samples[node]) < len(samples[flow.shortcuts[node]]):
            shortcut = flow.shortcuts[node]
            name = f"projection_{node.name}"
            self.module.add_submodule(name, self._projection(len(samples[shortcut]), samples[node]))
            with graph.inserting_before(node):
                node.replace_input_with(shortcut, graph.call_module(name, (shortcut,)))
            return
        self._simplify(node, samples)

    def _simplify(self, node: fx.Node, samples: dict[fx.Node, Tensor]) -> None:
        """Leave out a shortcut's projection that no longer changes the shape."""
        for one, other in (node.all_input_nodes, node.all_input_nodes[::-1]):
            convolution = linear_end(one)
            if convolution is None or len(one.users) > 1:
                continue
            (source,), layer = convolution.all_input_nodes, layer_of(convolution)
            changed = self.flow.of[source].count != self.flow.of[convolution].count
            same = len(samples[source]) == len(samples[convolution])
            if changed and same and layer.stride == (1, 1) and depends(other, source):
                node.replace_input_with(one, source)
                self.module.graph.eliminate_dead_code()
                return

    def _projection(self, inputs: int, chosen: Tensor) -> nn.Sequential:
        """A 1×1 convolution, and norm, that picks the chosen ones of so many channels."""
        convolution = nn.Conv2d(inputs, len(chosen), 1, bias=False)
        weight = torch.zeros(len(chosen), inputs)
        weight[torch.arange(len(chosen)), chosen] = 1
        _fill(convolution.weight, weight[:, :, None, None])
        return nn.Sequential(convolution, *self._fresh_norm(len(chosen)))

    def _fresh_norm(self, channels: int) -> list[nn.Module]:
        if self._norm is None:
            return []
        norm = nn.BatchNorm2d(channels, self._norm.eps, self._norm.momentum)
        return [norm.eval()]

    def _closing_layers(self, samples: dict[fx.Node, Tensor]) -> nn.Sequential:
        """A 1×1 convolution, and norm, back to the phase's channels: a sample of the last layer
        that makes so many."""
        channels = self.flow.of[self.flow.result]
        inputs, outputs = len(samples[self.flow.result]), channels.count
        closing = nn.Conv2d(inputs, outputs, 1, bias=self._norm is None)
        norm = self._fresh_norm(outputs)
        if channels.made_by:
            last = max(channels.made_by, key=[*self.flow.of].index)
            weight = layer_of(last).weight.sum((2, 3), keepdim=True)
            count = weight.shape[1]
            columns = torch.arange(inputs) % count
            if inputs < count:
                columns = _drawn(count, inputs, self._draw)
            _fill(closing.weight, weight[:, columns])
            if closing.bias is not None:
                _fill(closing.bias, torch.zeros(outputs))
            norms = [node for node in last.users if node in self.flow.norms]
            if norm and norms:
                norm = [_narrow_norm(layer_of(norms[0]), torch.arange(outputs))]
        return nn.Sequential(closing, *norm)

    def _append(self, closing: nn.Sequential) -> None:
        """End in ``closing`` and the activation, if any, that the phase ends with."""
        graph, result = self.module.graph, self.flow.result
        self.module.add_submodule("closing", closing)
        (output,) = (node for node in graph.nodes if node.op == "output")
        with graph.inserting_before(output):
            end = graph.call_module("closing", (result,))
            if is_activation(result):
                end = graph.node_copy(result, lambda _: end)
        output.replace_input_with(result, end)


def _drawn(count: int, kept: int, draw: torch.Generator) -> Tensor:
    """``kept`` of ``count`` places, ascending."""
    return torch.randperm(count, generator=draw)[:kept].sort().values


def _narrow_convolution(layer: nn.Conv2d, outputs: Tensor, inputs: Tensor) -> nn.Conv2d:
    depthwise = layer.groups > 1
    narrow = nn.Conv2d(
        len(inputs),
        len(outputs),
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        groups=len(inputs) if depthwise else 1,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )
    weight = layer.weight[outputs]
    _fill(narrow.weight, weight if depthwise else weight[:, inputs])
    if layer.bias is not None and narrow.bias is not None:
        _fill(narrow.bias, layer.bias[outputs])
    return narrow.eval()


def _narrow_norm(layer: nn.BatchNorm2d, kept: Tensor) -> nn.BatchNorm2d:
    narrow = nn.BatchNorm2d(len(kept), layer.eps, layer.momentum, affine=layer.affine)
    state = {
        key: value[kept] if value.ndim else value.clone()
        for key, value in layer.state_dict().items()
    }
    narrow.load_state_dict(state)
    return narrow.eval()


@torch.no_grad()
def _fill(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values)
