"""Batch norm of networks of any make is folded away, and the network gives the same."""

from __future__ import annotations

import torch
from torch import nn

from opa_trt.supernet.fold import parity
from opa_trt.supernet.legacy.folding import fold_traced
from tests.supernet.legacy.small_networks import images, scrambled, small, small_augmented


def norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


def test_a_network_without_batch_norm_gives_the_same() -> None:
    module = small()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    folded = fold_traced(module)
    assert norms(folded) == 0 < norms(module)
    assert parity("small", folded, module, images(3, 16)) < 1e-4
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_shallow_phases_can_be_folded() -> None:
    network = small_augmented()
    given = network.links[0](images(2, 16))
    folded = fold_traced(network.shallow[0])
    assert norms(folded) == 0
    assert parity("shallow", folded, network.shallow[0], given) < 1e-4
    assert not any(parameter.requires_grad for parameter in folded.parameters())


class Shared(nn.Module):
    """What a convolution gives is read twice, and another runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.one(self.norms[0](x))
        second = self.norms[1](first) + first
        return self.norms[2](self.two(second)) + self.norms[3](self.two(x))


def test_a_batch_norm_that_no_convolution_can_take_up_stays() -> None:
    module = scrambled(Shared())
    folded = fold_traced(module)
    assert norms(folded) == 4
    assert parity("shared", folded, module, images(2, 8)) < 1e-6
