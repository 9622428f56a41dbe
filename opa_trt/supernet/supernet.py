"""A space with weights."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from opa_trt.supernet.arch import Arch
from opa_trt.supernet.space import ElasticPart, Space


class Supernet(nn.Module):
    """The weights of every sub-network of ``space``.

    There is no active sub-network: ``forward`` takes the arch, ``extract`` copies it out.

    Args:
        space: what can be chosen.
        seed: seeds the initial weights; the global generator is left as it was.
    """

    def __init__(self, space: Space, *, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.parts = nn.ModuleDict(space.elastic_parts())

    def forward(self, images: Tensor, arch: Arch) -> Tensor:
        """``[N, 3, H, W] float32`` (normalised, already at the arch's resolution) to logits.

        Returns:
            ``[N, classes] float32``.
        """
        out = images
        for part in self.parts.values():
            out = part(out, arch)
        return out

    def extract(self, arch: Arch) -> nn.Sequential:
        """The sub-network ``arch`` as a module of plain torch layers named by part.

        A pure function: nothing is shared with this super-network, which is left unchanged.
        The module is in evaluation mode; its batch-norm statistics are wrong until calibrated.

        Raises:
            ArchError: ``arch`` lies outside the space.
        """
        self.space.validate(arch)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        with torch.random.fork_rng(devices=[]):  # new layers draw weights, overwritten at once
            for name, part in self.parts.items():
                assert isinstance(part, ElasticPart)
                parts[name] = part.extract(arch)
        module = nn.Sequential(parts).eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        return module

    def sort_channels(self, level: int) -> None:
        """Order every block's middle channels by importance, as a width phase begins (OFA)."""
        for part in self.parts.values():
            assert isinstance(part, ElasticPart)
            part.sort_channels(level)
