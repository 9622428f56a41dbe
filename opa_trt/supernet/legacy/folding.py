"""Batch norm folded into the convolutions before it, in networks of any make."""

from __future__ import annotations

import copy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from opa_trt.supernet.legacy.cutting import traced
from opa_trt.supernet.legacy.nodes import is_layer, layer_of


def fold_traced(module: nn.Module) -> nn.Module:
    """A copy of ``module`` (in evaluation mode) whose batch norms are folded away.

    Unlike ``supernet.fold.fold`` it follows what runs, not how layers are nested. A batch norm
    that does not follow a convolution alone stays.

    Raises:
        ConfigError: torch.fx cannot trace it.
    """
    folded = fx.GraphModule(module, traced(fx.Tracer(), module), "Folded")
    for node in [*folded.graph.nodes]:
        if not is_layer(node, nn.BatchNorm2d):
            continue
        before = node.args[0]
        if isinstance(before, fx.Node) and is_layer(before, nn.Conv2d) and _alone(before):
            _replace(folded, before, fuse_conv_bn_eval(layer_of(before), layer_of(node)))
            node.replace_all_uses_with(before)
            folded.graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.recompile()
    return copy.deepcopy(folded).eval().requires_grad_(False)


def _alone(convolution: fx.Node) -> bool:
    """Whether its layer runs once, and one node reads what it gives."""
    calls = [n for n in convolution.graph.nodes if n.target == convolution.target]
    return len(convolution.users) == 1 and len(calls) == 1


def _replace(module: fx.GraphModule, node: fx.Node, layer: nn.Module) -> None:
    parent, _, name = str(node.target).rpartition(".")
    setattr(module.get_submodule(parent), name, layer)
