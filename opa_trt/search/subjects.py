"""What a latency table is measured from: operators, boundaries of engines, whole networks.

An operator's engine takes longer than the operator does within a network: it is called, reads a
tensor from outside and gives one back, often in another layout than it computes in. What that
costs for a tensor's shape, its *boundary*, is found with engines of one and of three equal
layers: the time of the one, less what a further layer adds. The boundary has two sides, and they
differ (a channel of 96x96 floats takes up whole pages, and writing such channels one beside the
other costs OpenVINO ten times what reading them does). So a second pair of engines gives the mean
of every layer's pixels, instead of a tensor of that shape: what remains of it is the *entry*.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from opa_trt.backends import Backend, Engine
from opa_trt.supernet import Arch, Space, Supernet
from opa_trt.supernet.fold import fold
from opa_trt.supernet.operators import Operator
from opa_trt.supernet.trace import content, trace, trace_bytes
from opa_trt.tree import Segment, Target, TensorSpec

INPUT, OUTPUT = "input", "output"
FEW, MANY = 1, 3  # layers of a pair of engines

Shape = tuple[int, ...]
Side = Literal["entry", "boundary"]
SIDES: tuple[Side, ...] = ("entry", "boundary")


@dataclass(frozen=True)
class Subject:
    """One thing to be timed.

    Args:
        name: unique, the same in every run.
        build: the module, in plain layers.
        input_shape: of one row, without the batch.
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: Shape

    def load(self, backend: Backend, target: Target) -> tuple[Engine, dict[str, Tensor]]:
        """Its engine, and one row of input.

        Raises:
            ParityError: a batch norm cannot be folded.
            CompileError, EngineError: the vendor refuses it.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            module = fold(self.build().eval())
            example = torch.randn(1, *self.input_shape)
            after = tuple(module(example).shape[1:])
            traced = trace(module, example)
        segment = Segment(
            name=self.name,
            inputs=(TensorSpec(INPUT, self.input_shape),),
            outputs=(TensorSpec(OUTPUT, after),),
            forms={"torchscript": trace_bytes(traced)},
            content=content(traced),
        )
        return backend.load(backend.compile(segment, target), segment, target), {INPUT: example}


@dataclass(frozen=True)
class Subjects:
    """Everything that a table of ``space`` (at its resolutions) is measured from.

    Args:
        space: the choices.
        archs: the whole networks.
    """

    space: Space
    archs: tuple[Arch, ...]

    @cached_property
    def operators(self) -> dict[str, Operator]:
        """Every operator that an arch of the space can run, by key."""
        return {operator.key: operator for operator in _operators(self.space)}

    @cached_property
    def ends(self) -> dict[str, tuple[Shape | None, Shape | None]]:
        """For every operator the shapes that it takes from others and gives to others.

        None where it reads a network's images, or gives its logits.
        """
        return {key: self._ends(operator) for key, operator in self.operators.items()}

    @cached_property
    def boundaries(self) -> tuple[Shape, ...]:
        """The distinct shapes in ``ends``, ascending."""
        return tuple(sorted({shape for ends in self.ends.values() for shape in ends if shape}))

    def all(self) -> list[Subject]:
        """Operators by key, probes and networks as ``probe_name`` and ``network_name`` say."""
        found = [Subject(key, op.build, op.input_shape) for key, op in self.operators.items()]
        for shape, side, layers in product(self.boundaries, SIDES, (FEW, MANY)):
            build = partial(_Probe, shape[0], layers, pooled=side == "entry")
            found.append(Subject(probe_name(side, shape, layers), build, shape))
        return found + [self.network(arch) for arch in self.archs]

    def network(self, arch: Arch) -> Subject:
        """A whole network, as extracted."""
        side = arch.resolution
        return Subject(network_name(arch), partial(self._extract, arch), (3, side, side))

    def costs(self, ms: Mapping[str, float]) -> dict[str, float]:
        """Latency of every operator within a network, from what was measured (``all``; ms).

        The call of an engine is part of its entry, so that a whole network's is counted once:
        with its first operator.
        """
        sides = {shape: sides_ms(shape, ms) for shape in self.boundaries}
        return {
            key: max(
                0.0,
                ms[key]
                - (sides[before][0] if before else 0.0)
                - (sides[after][1] if after else 0.0),
            )
            for key, (before, after) in self.ends.items()
        }

    def _ends(self, operator: Operator) -> tuple[Shape | None, Shape | None]:
        before, after = _shapes(operator)
        images = {(3, side, side) for side in self.space.resolutions}
        return (None if before in images else before), (after if len(after) == 3 else None)

    @cached_property
    def _supernet(self) -> Supernet:
        return Supernet(self.space)

    def _extract(self, arch: Arch) -> nn.Module:
        return self._supernet.extract(arch)


def probe_name(side: Side, shape: Shape, layers: int) -> str:
    """The name of one of the two engines that ``side`` is found with."""
    return f"{side} {'x'.join(map(str, shape))}, {layers} layers"


def network_name(arch: Arch) -> str:
    """The name of a whole network."""
    return f"network {json.dumps(arch.to_dict())}"


def sides_ms(shape: Shape, ms: Mapping[str, float]) -> tuple[float, float]:
    """What calling and reading a tensor of ``shape`` costs, and what giving one does (ms)."""
    entry, both = (_without_layers(side, shape, ms) for side in SIDES)
    return entry, max(0.0, both - entry)


def _without_layers(side: Side, shape: Shape, ms: Mapping[str, float]) -> float:
    few, many = (ms[probe_name(side, shape, layers)] for layers in (FEW, MANY))
    return max(0.0, few - (many - few) * FEW / (MANY - FEW))


def _operators(space: Space) -> Iterable[Operator]:
    for term in space.terms():
        choices = [space.genome.genes[gene].choices for gene in term.genes]
        for values in product(*choices):
            yield from term.operators(*values)


def _shapes(operator: Operator) -> tuple[Shape, Shape]:
    """Of what it reads and gives, for one image; nothing is computed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = operator.build().eval().to("meta")
        after = module(torch.empty(1, *operator.input_shape, device="meta"))
    return tuple(operator.input_shape), tuple(after.shape[1:])


class _Probe(nn.Module):
    """Equal layers of little work that compute in the layout that convolutions do.

    It gives the last one's output, or (``pooled``) the sum of the means of each.
    """

    def __init__(self, channels: int, layers: int, *, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        means = []
        for layer in self.layers:
            x = layer(x)
            means.append(x.mean((2, 3), keepdim=True))
        return sum(means[1:], means[0]) if self.pooled else x
