"""What a module costs, counted as it runs on a shape alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from opa_trt.supernet.cost import Cost
from opa_trt.supernet.legacy.configuration import Configuration


@dataclass(frozen=True)
class PhaseCosts:
    """MACs of one image and parameters of every part of an augmented network.

    Args:
        links: of what lies before, between and after the phases.
        legacy: of each original phase.
        shallow: of each shallow alternative.
    """

    links: tuple[Cost, ...]
    legacy: tuple[Cost, ...]
    shallow: tuple[Cost, ...]

    def of(self, configuration: Configuration) -> Cost:
        """What one configuration runs."""
        total = sum(self.links, Cost(0, 0))
        for place, shallow in enumerate(configuration.shallow):
            total += (self.shallow if shallow else self.legacy)[place]
        return total

    @property
    def added_params(self) -> int:
        """Parameters that the shallow alternatives add to the legacy network's."""
        return sum(cost.params for cost in self.shallow)


@torch.no_grad()
def measured_cost(module: nn.Module, given: Tensor) -> tuple[Cost, Tensor]:
    """Cost of ``module`` on a tensor of the meta device, and what it gives there.

    MACs are those of one image in convolutions and linear layers.
    """
    macs = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            macs += kernel * layer.in_channels // layer.groups * output[0].numel()
        elif isinstance(layer, nn.Linear):
            macs += layer.in_features * output[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    empty = {key: value.to("meta") for key, value in module.state_dict(keep_vars=True).items()}
    try:
        found: Tensor = functional_call(module, empty, (given,))
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(macs, sum(parameter.numel() for parameter in module.parameters())), found
