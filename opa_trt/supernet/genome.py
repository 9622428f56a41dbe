"""The choices of a space as small integers: one arch a row, a whole population an array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ArchError
from opa_trt.supernet.arch import Arch, Ratio

if TYPE_CHECKING:
    from opa_trt.supernet.space import Space

Kind = Literal["resolution", "depth", "width", "kernel", "expand"]
Population = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Gene:
    """One choice of an arch.

    A block's genes (kernel, expand) count only if the gene in column ``governor``, the depth of
    its stage, chooses at least index ``needs``; the others count always.
    """

    kind: Kind
    choices: tuple[Ratio, ...]
    governor: int = 0
    needs: int = 0


class Genome:
    """The genes of ``space``: resolution, depths, widths, kernels and expand ratios, in that order.

    A population is ``[P, G] int16``: for each arch the index of its choice in every gene. It is
    canonical where genes that the depth leaves out are 0, so that equal rows are equal archs.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.genes = _genes(space)
        self.counts = _column([len(gene.choices) for gene in self.genes])
        self._columns: dict[Kind, list[int]] = {}
        for column, gene in enumerate(self.genes):
            self._columns.setdefault(gene.kind, []).append(column)
        self._governors = _column([gene.governor for gene in self.genes])
        self._needs = _column([gene.needs for gene in self.genes])
        places = [(c, i) for c in self.one_hot_columns for i in range(self.counts[c])]
        self._hot_columns, self._hot_choices = _column(places).T

    def __len__(self) -> int:
        return len(self.genes)

    def index(self, kind: Kind, entry: int = 0) -> int:
        """Which column holds entry ``entry`` of ``kind``."""
        return self._columns[kind][entry]

    def columns(self, kind: Kind) -> list[int]:
        """The columns of ``kind``, in order; empty where the space has no such choice."""
        return self._columns.get(kind, [])

    # --- populations --------------------------------------------------------------------------

    def sample(self, count: int, rng: np.random.Generator) -> Population:
        """``[count, G]``, canonical: every gene drawn evenly from its choices."""
        return self.canonical(rng.integers(0, self.counts, (count, len(self)), dtype=np.int16))

    def active(self, population: Population) -> npt.NDArray[np.bool_]:
        """``[P, G] bool``: which genes count, those of blocks that the depth keeps."""
        kept: npt.NDArray[np.bool_] = population[:, self._governors] >= self._needs
        return kept

    def canonical(self, population: Population) -> Population:
        """The population with every gene that does not count set to 0."""
        return population * self.active(population)

    def one_hot(self, population: Population) -> npt.NDArray[np.float32]:
        """``[P, D] float32``: for each gene a 1 at its choice, nothing where it does not count.

        In the order of the published accuracy predictor: kernels, expand ratios, then widths and
        the stem's depth where a space has them, then the resolution. The depths of stages are
        not written: the blocks that are left out say them.
        """
        chosen = population[:, self._hot_columns] == self._hot_choices
        chosen &= self.active(population)[:, self._hot_columns]
        code: npt.NDArray[np.float32] = chosen.astype(np.float32)
        return code

    @property
    def one_hot_columns(self) -> list[int]:
        """The genes that ``one_hot`` writes, in its order."""
        stem = self.columns("depth")[: self.space.stem_depths]
        return [
            *self.columns("kernel"),
            *self.columns("expand"),
            *self.columns("width"),
            *stem,
            *self.columns("resolution"),
        ]

    # --- archs --------------------------------------------------------------------------------

    def values(self, arch: Arch) -> list[Ratio]:
        """The value of every gene in ``arch``; where one does not count, its first choice.

        The resolution is the arch's own, whether or not the space samples it.
        """
        found = [gene.choices[0] for gene in self.genes]
        found[0] = arch.resolution
        for kind, given in (("depth", arch.depths), ("width", arch.widths)):
            for column, value in zip(self.columns(kind), given, strict=True):  # type: ignore[arg-type]
                found[column] = value
        for kind, stages in (("kernel", arch.kernel_sizes), ("expand", arch.expand_ratios)):
            column = next(iter(self.columns(kind)), 0)  # type: ignore[arg-type]
            for slots, values in zip(self.space.slots, stages, strict=False):
                found[column : column + len(values)] = values
                column += slots
        return found

    def counted(self, arch: Arch) -> npt.NDArray[np.bool_]:
        """``[G] bool``: which genes count in ``arch``."""
        row = np.zeros(len(self), dtype=np.int16)
        for column, depth in zip(self.columns("depth"), arch.depths, strict=True):
            row[column] = self.genes[column].choices.index(depth)
        counted: npt.NDArray[np.bool_] = self.active(row[None])[0]
        return counted

    def row(self, arch: Arch) -> Population:
        """``[G]``: ``arch`` as indices of choices, canonical.

        Raises:
            ArchError: the arch lies outside the space, or is of a resolution not sampled in it.
        """
        self.space.validate(arch)
        row = []
        for gene, value in zip(self.genes, self.values(arch), strict=True):
            if value not in gene.choices:
                message = f"{gene.kind} {value}."
                raise ArchError(message, expected=f"one of {list(gene.choices)}.")
            row.append(gene.choices.index(value))
        return np.array(row, dtype=np.int16)

    def rows(self, archs: Sequence[Arch]) -> Population:
        """``[len(archs), G]``: ``row`` of every arch."""
        return np.stack([self.row(arch) for arch in archs])

    def arch(self, row: Population) -> Arch:
        """The arch that ``row`` (``[G]``) stands for."""
        values = [gene.choices[index] for gene, index in zip(self.genes, row, strict=True)]

        def flat(kind: Kind) -> list[Ratio]:
            return [values[column] for column in self.columns(kind)]

        return self.space.arch(
            resolution=int(values[0]),
            depths=[int(depth) for depth in flat("depth")],
            kernel_sizes=[int(kernel) for kernel in flat("kernel")],
            expand_ratios=flat("expand"),
            widths=flat("width"),
        )


def _genes(space: Space) -> tuple[Gene, ...]:
    genes = [Gene("resolution", space.resolutions)]
    genes += [Gene("depth", choices) for choices in space.depth_options]
    genes += [Gene("width", space.width_choices)] * space.width_slots
    kinds: tuple[tuple[Kind, tuple[Ratio, ...]], ...] = (
        ("kernel", space.kernel_choices),
        ("expand", space.expand_choices),
    )
    for kind, choices in kinds:
        if choices:
            genes += _block_genes(space, kind, choices)
    return tuple(genes)


def _block_genes(space: Space, kind: Kind, choices: tuple[Ratio, ...]) -> list[Gene]:
    genes = []
    for depth, slots in enumerate(space.slots, space.stem_depths):
        for block in range(slots):
            needs = sum(kept <= block for kept in space.depth_options[depth])
            genes.append(Gene(kind, choices, 1 + depth, needs))
    return genes


def _column(values: Sequence[object]) -> Population:
    return np.array(values, dtype=np.int16)
