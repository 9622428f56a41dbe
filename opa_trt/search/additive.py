"""Costs that are sums over a network's operators, as one table lookup for a whole population."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from itertools import product

import numpy as np
import numpy.typing as npt

from opa_trt.supernet import Genome, Population
from opa_trt.supernet.operators import Operator

Costs = npt.NDArray[np.float64]
OperatorCost = Callable[[Operator, int], float]
FLOAT32_EXACT = 2**24  # float32 holds whole numbers up to here


@dataclass(frozen=True)
class Factor:
    """A cost that depends on some genes only: ``table`` has one axis for each of ``genes``."""

    genes: tuple[int, ...]
    table: Costs


class AdditiveCost:
    """The cost of every arch of a genome: the sum of its operators' costs.

    Every term of a space depends on the resolution first of all.

    Args:
        genome: the choices.
        cost: of one operator (ms, MACs, parameters) in a network for images of a resolution.
            Whatever it raises is passed on.
        scale, offset: a network costs ``offset + scale * sum``.
    """

    def __init__(
        self, genome: Genome, cost: OperatorCost, *, scale: float = 1.0, offset: float = 0.0
    ) -> None:
        self.genome = genome
        self._scale, self._bias = scale, offset
        self.factors = tuple(_factors(genome, cost))
        sizes = [factor.table.size for factor in self.factors]
        self._offsets = np.cumsum(sizes) - sizes
        self._table = np.concatenate([factor.table.ravel() for factor in self.factors])
        # The product finds places in the table: exact in either, and many times faster than of
        # integers.
        exact = np.float32 if sum(sizes) <= FLOAT32_EXACT else np.float64
        self._strides = np.zeros((len(genome), len(sizes)), dtype=exact)
        for column, factor in enumerate(self.factors):
            strides = np.array(factor.table.strides) // factor.table.itemsize
            self._strides[list(factor.genes), column] = strides

    def __call__(self, population: Population) -> Costs:
        """``[P] float64``: the cost of each arch of ``population`` (``[P, G]``)."""
        places = (population.astype(self._strides.dtype) @ self._strides).astype(np.intp)
        costs: Costs = self._table[places + self._offsets].sum(axis=1)
        return self._bias + self._scale * costs

    @cached_property
    def smallest(self) -> tuple[float, Population]:
        """The least cost of any arch, exactly, and the arch (``[G]``, canonical) that has it."""
        row = _minimiser(self.factors, len(self.genome))
        row = self.genome.canonical(row[None])[0]
        return float(self(row[None])[0]), row

    @cached_property
    def largest(self) -> tuple[float, Population]:
        """The greatest cost of any arch, exactly, and the arch (``[G]``, canonical)."""
        negated = [Factor(factor.genes, -factor.table) for factor in self.factors]
        row = self.genome.canonical(_minimiser(negated, len(self.genome))[None])[0]
        return float(self(row[None])[0]), row


def _factors(genome: Genome, cost: OperatorCost) -> Iterable[Factor]:
    once = cache(cost)
    for term in genome.space.terms():
        choices = [genome.genes[gene].choices for gene in term.genes]
        costs = [
            sum(once(operator, int(values[0])) for operator in term.operators(*values))
            for values in product(*choices)
        ]
        shape = [len(values) for values in choices]
        yield Factor(term.genes, np.array(costs, dtype=np.float64).reshape(shape))


# --- the exact minimum ----------------------------------------------------------------------------


def _minimiser(factors: Sequence[Factor], genes: int) -> Population:
    """The row with the least sum of ``factors``: genes are eliminated one after the other.

    Each step takes the gene whose elimination leaves the smallest table, minimises over it, and
    remembers the best choice for every value of the genes that it depends on.
    """
    left = list(factors)
    steps: list[tuple[int, tuple[int, ...], npt.NDArray[np.intp]]] = []
    while open_genes := {gene for factor in left for gene in factor.genes}:
        gene = min(open_genes, key=lambda g: (_size_without(left, g), g))
        joined = _join([factor for factor in left if gene in factor.genes])
        left = [factor for factor in left if gene not in factor.genes]
        axis = joined.genes.index(gene)
        others = joined.genes[:axis] + joined.genes[axis + 1 :]
        steps.append((gene, others, joined.table.argmin(axis=axis)))
        left.append(Factor(others, joined.table.min(axis=axis)))
    row = np.zeros(genes, dtype=np.int16)
    for gene, others, best in reversed(steps):
        row[gene] = best[tuple(row[list(others)])]
    return row


def _size_without(factors: Sequence[Factor], gene: int) -> int:
    sizes = {
        other: length
        for factor in factors
        if gene in factor.genes
        for other, length in zip(factor.genes, factor.table.shape, strict=True)
    }
    return math.prod(length for other, length in sizes.items() if other != gene)


def _join(factors: Sequence[Factor]) -> Factor:
    """Their sum, over all the genes that any of them depends on (ascending)."""
    genes = tuple(sorted({gene for factor in factors for gene in factor.genes}))
    return Factor(genes, reduce(np.add, (_spread(factor, genes) for factor in factors)))


def _spread(factor: Factor, genes: Sequence[int]) -> Costs:
    """The factor's table with an axis for each of ``genes``, of length 1 where it has none."""
    axes = sorted(factor.genes)
    table = factor.table.transpose([factor.genes.index(gene) for gene in axes])
    lengths = iter(table.shape)
    return table.reshape([next(lengths) if gene in axes else 1 for gene in genes])
