"""The deployed network as modules: a calibrated pioneer with its exit head, and tails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opa_trt.supernet import Arch, Supernet
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.tree import FEATURES, IMAGES, Node, Tree

UNCUT = -1  # stages: not even the stem


class Pioneer(nn.Module):
    """``images`` to (``features``, ``logits``): preprocessing, first stages, exit head."""

    def __init__(self, preprocess: Preprocess, trunk: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.preprocess, self.trunk, self.head = preprocess, trunk, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(self.preprocess(images))
        return features, self.head(features)


class Exit(nn.Module):
    """Features to (``features``, ``logits``): further stages, and an exit head."""

    def __init__(self, body: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(given)
        return features, self.head(features)


@dataclass(frozen=True)
class Cut:
    """Where a network is cut: after the stem and ``stages`` stages; ``UNCUT`` before all of it."""

    supernet: Supernet
    stages: int

    def trunk(self, arch: Arch) -> nn.Sequential:
        """Stem and first stages of ``arch``, not yet calibrated."""
        return nn.Sequential(*list(self.supernet.extract(arch))[: self.stages + 1])

    def tail(self, arch: Arch) -> nn.Sequential:
        """The rest of ``arch``, not yet calibrated."""
        return nn.Sequential(*list(self.supernet.extract(arch))[self.stages + 1 :])

    def trunk_macs(self, arch: Arch) -> int:
        """MACs of the trunk for one image."""
        return self.supernet.space.macs(arch) - self.tail_macs(arch)

    def tail_macs(self, arch: Arch) -> int:
        """MACs of the tail for one image."""
        return sum(self.part_macs(arch))

    def grafted(self, pioneer: Arch, arch: Arch) -> Arch:
        """The pioneer, with the tail of ``arch``."""
        if self.stages == UNCUT:
            return arch
        return self.supernet.space.graft(pioneer, arch, self.stages)

    def part_macs(self, arch: Arch) -> list[int]:
        """MACs of every part of the tail (its stages, then what ends the network)."""
        costs = list(self.supernet.space.costs(arch).values())
        return [cost.macs for cost in costs[self.stages + 1 :]]

    def calibrated_tail(self, arch: Arch, features: list[Tensor]) -> nn.Sequential:
        """The tail of ``arch``, its batch norm calibrated on the frozen pioneer's features."""
        tail = self.tail(arch)
        calibrate(tail, features)
        return tail


@torch.no_grad()
def run_batches(module: nn.Module, batches: Iterator[Tensor] | list[Tensor]) -> list[Tensor]:
    """The module's output for every batch."""
    return [module(batch) for batch in batches]


@torch.no_grad()
def walk(
    tree: Tree, modules: Mapping[str, nn.Module], images: Tensor
) -> Iterator[tuple[Node, Tensor, dict[str, Tensor]]]:
    """``walk_with`` the segments' modules."""

    def run(node: Node, source: Tensor) -> dict[str, Tensor]:
        made = modules[node.segment](source)
        values = made if isinstance(made, tuple) else (made,)
        return dict(zip(node.outputs, values, strict=True))

    yield from walk_with(tree, run, images)


def walk_with(
    tree: Tree, run: Callable[[Node, Tensor], dict[str, Tensor]], images: Tensor
) -> Iterator[tuple[Node, Tensor, dict[str, Tensor]]]:
    """Every node of a tree whose parents come first, what it reads, and what it gives by name.

    ``run`` computes a node's segment, in memory that later runs leave alone. What several nodes
    share runs once on what they all read.
    """
    given: dict[str, dict[str, Tensor]] = {}
    known: dict[tuple[str, int], dict[str, Tensor]] = {}  # by segment, and what it reads
    for node in tree.nodes.values():
        source = images
        if node.source != IMAGES:
            source = given[tree.parents[node.name]][FEATURES]
        if (node.segment, id(source)) not in known:
            known[node.segment, id(source)] = run(node, source)
        given[node.name] = known[node.segment, id(source)]
        yield node, source, given[node.name]


def owners(tree: Tree) -> dict[str, Node]:
    """Every segment's first node, by the segment's name."""
    found: dict[str, Node] = {}
    for node in tree.nodes.values():
        found.setdefault(node.segment, node)
    return found


@torch.no_grad()
def logits_macs(head: nn.Sequential, features: Tensor) -> int:
    """MACs of an exit head for one image, counted as it runs."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            total += kernel * layer.in_channels // layer.groups * output[0].numel()
        elif isinstance(layer, nn.Linear):
            total += layer.in_features * layer.out_features

    hooks = [layer.register_forward_hook(count) for layer in head.modules()]
    try:
        head(features[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return total
