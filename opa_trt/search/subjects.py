"""What a latency table is measured from: operators, boundaries of engines, whole networks.

An operator's engine takes longer than the operator does within a network: it is called, reads a
tensor from outside and gives one back, often in another layout than it computes in. What that
costs for a tensor's shape, its *boundary*, is found with engines of one and of three equal
layers: the time of the one, less what a further layer adds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product

import torch
from torch import nn

from opa_trt.backends import Backend, Engine
from opa_trt.supernet import Arch, Space, Supernet
from opa_trt.supernet.fold import fold
from opa_trt.supernet.operators import Operator
from opa_trt.supernet.trace import content, trace, trace_bytes
from opa_trt.tree import Segment, Target, TensorSpec

INPUT, OUTPUT = "input", "output"
FEW, MANY = 1, 3  # layers of a boundary's two engines

Shape = tuple[int, ...]


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

    def load(self, backend: Backend, target: Target) -> tuple[Engine, dict[str, torch.Tensor]]:
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
    def ends(self) -> dict[str, tuple[Shape, ...]]:
        """For every operator the shapes that it exchanges with others within a network.

        A network's own images and logits are not among them.
        """
        return {
            key: tuple(shape for shape in _shapes(operator) if self._inner(shape))
            for key, operator in self.operators.items()
        }

    @cached_property
    def boundaries(self) -> tuple[Shape, ...]:
        """The distinct shapes in ``ends``, ascending."""
        return tuple(sorted({shape for shapes in self.ends.values() for shape in shapes}))

    def all(self) -> list[Subject]:
        """Operators by key, boundaries and networks as ``boundary_name``, ``network_name`` say."""
        found = [Subject(key, op.build, op.input_shape) for key, op in self.operators.items()]
        for shape in self.boundaries:
            for layers in (FEW, MANY):
                build = partial(_probe, shape[0], layers)
                found.append(Subject(boundary_name(shape, layers), build, shape))
        return found + [self.network(arch) for arch in self.archs]

    def network(self, arch: Arch) -> Subject:
        """A whole network, as extracted."""
        side = arch.resolution
        return Subject(network_name(arch), partial(self._extract, arch), (3, side, side))

    def costs(self, ms: Mapping[str, float]) -> dict[str, float]:
        """Latency of every operator within a network, from what was measured (``all``; ms).

        Half a boundary is taken off at either end, so that the call of a whole network is
        counted once: half with its first operator, half with its last.
        """
        boundary = {shape: boundary_ms(shape, ms) for shape in self.boundaries}
        return {
            key: max(0.0, ms[key] - sum(boundary[shape] for shape in shapes) / 2)
            for key, shapes in self.ends.items()
        }

    def _inner(self, shape: Shape) -> bool:
        return len(shape) == 3 and shape not in {(3, r, r) for r in self.space.resolutions}

    @cached_property
    def _supernet(self) -> Supernet:
        return Supernet(self.space)

    def _extract(self, arch: Arch) -> nn.Module:
        return self._supernet.extract(arch)


def boundary_name(shape: Shape, layers: int) -> str:
    """The name of one of a boundary's two engines."""
    return f"boundary {'x'.join(map(str, shape))}, {layers} layers"


def network_name(arch: Arch) -> str:
    """The name of a whole network."""
    return f"network {json.dumps(arch.to_dict())}"


def boundary_ms(shape: Shape, ms: Mapping[str, float]) -> float:
    """What calling, reading and giving tensors of ``shape`` costs (ms)."""
    few, many = (ms[boundary_name(shape, layers)] for layers in (FEW, MANY))
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


def _probe(channels: int, layers: int) -> nn.Module:
    """Equal layers of little work that compute in the layout that convolutions do."""
    return nn.Sequential(
        *(nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(layers))
    )
