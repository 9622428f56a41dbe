"""What every space of sub-networks has in common: choices, sampling, encodings, costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
from torch import nn

from opa_trt.errors import ArchError, ConfigError
from opa_trt.supernet import ofa_archs
from opa_trt.supernet.arch import Arch, Ratio
from opa_trt.supernet.cost import Cost
from opa_trt.supernet.genome import Genome, Kind, Population
from opa_trt.supernet.operators import Operator, Term

if TYPE_CHECKING:
    from opa_trt.supernet.net_configs import Layer

Floats = npt.NDArray[np.float32]
REGISTERED: dict[str, type[Space]] = {}
SIDE_STEP = 4  # resolutions are multiples of this, in pixels
SMALLEST_SIDE, SMALLEST_LISTED = 32, 16  # the smallest for any space, and that a space may list


class ElasticPart(nn.Module, ABC):
    """One part of a super-network: the stem, a stage, or the head.

    Parts take the arch with every call; none remembers an active sub-network.
    """

    @abstractmethod
    def extract(self, arch: Arch) -> nn.Module:
        """A copy of what ``arch`` uses of this part, in plain torch layers."""

    def sort_channels(self, level: int) -> None:
        """Sort channels by importance within the ``level`` + 1 largest widths (OFA, width)."""


@dataclass(frozen=True)
class Space(ABC):
    """The choices of a super-network. Subclasses add what they need to build it.

    Choices are ascending. A space without elastic kernels has no ``kernel_choices``; one of a
    fixed width has no ``width_choices``.
    """

    name: ClassVar[str]
    elastic_kernel: ClassVar[bool] = True
    stem_depths: ClassVar[int] = 0  # leading entries of an arch's depths that are the stem's
    stem_widths: ClassVar[int] = 0  # leading entries of its widths
    net_name: ClassVar[str] = ""  # what its net.config files have as name
    published_widths: ClassVar[tuple[float, ...]] = ()  # multipliers that weights exist for

    classes: int
    resolutions: tuple[int, ...]
    kernel_choices: tuple[int, ...]
    expand_choices: tuple[Ratio, ...]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            REGISTERED[cls.name] = cls

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        _check_types(self)
        if self.classes <= 0:
            msg = f"classes = {self.classes}."
            raise ConfigError(msg, expected="above 0.")
        for key in ("resolutions", *(f.name for f in fields(self) if f.name.endswith("_choices"))):
            if key != "kernel_choices" or self.elastic_kernel:
                _check_choices(key, getattr(self, key))
        if any(kernel % 2 == 0 for kernel in self.kernel_choices):
            msg = f"kernel_choices = {list(self.kernel_choices)}."
            raise ConfigError(msg, expected="odd kernel sizes.")
        if self.resolutions[0] < SMALLEST_LISTED or any(r % SIDE_STEP for r in self.resolutions):
            msg = f"resolutions = {list(self.resolutions)}."
            raise ConfigError(msg, expected=f"multiples of {SIDE_STEP} from {SMALLEST_LISTED} up.")

    # --- what a space defines -----------------------------------------------------------------

    @property
    @abstractmethod
    def slots(self) -> tuple[int, ...]:
        """Blocks of each stage at its deepest."""

    @property
    @abstractmethod
    def depth_options(self) -> tuple[tuple[int, ...], ...]:
        """The choices of each entry of an arch's depths, the stem's (if any) first."""

    @property
    def width_slots(self) -> int:
        """Entries of an arch's widths."""
        return 0

    @property
    def width_choices(self) -> tuple[Ratio, ...]:
        """The choices of each of them."""
        return ()

    @abstractmethod
    def elastic_parts(self) -> dict[str, ElasticPart]:
        """Freshly initialised parts in order: ``stem``, ``stage1`` …, ``head``."""

    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """What runs, in order, as functions of the genes that each piece depends on."""

    @abstractmethod
    def published_names(self) -> dict[str, str]:
        """For every tensor of the parts its key in OFA's checkpoints, in their newest style.

        The tensors are named as in the state of ``nn.ModuleDict(self.elastic_parts())``.
        """

    # --- costs --------------------------------------------------------------------------------

    def operators(self, arch: Arch) -> dict[str, list[Operator]]:
        """What every part runs, in order."""
        values = self.genome.values(arch)
        found: dict[str, list[Operator]] = {}
        for term in self.terms():
            run = term.operators(*(values[gene] for gene in term.genes))
            found.setdefault(term.part, []).extend(run)
        return found

    def costs(self, arch: Arch) -> dict[str, Cost]:
        """Cost of every part for one image at ``arch.resolution``, counted from the arch alone."""
        return {
            part: sum((operator.cost for operator in run), Cost(0, 0))
            for part, run in self.operators(arch).items()
        }

    def macs(self, arch: Arch) -> int:
        """Multiply-accumulates of one image (convolutions and linear layers; OFA, Table 1)."""
        return sum(cost.macs for cost in self.costs(arch).values())

    def params(self, arch: Arch) -> int:
        """Learnable parameters of the extracted network."""
        return sum(cost.params for cost in self.costs(arch).values())

    # --- archs --------------------------------------------------------------------------------

    @cached_property
    def genome(self) -> Genome:
        """The same choices as integers, for whole populations."""
        return Genome(self)

    def arch(
        self,
        *,
        resolution: int | None = None,
        depths: int | Sequence[int] | None = None,
        kernel_sizes: int | Sequence[int] | None = None,
        expand_ratios: Ratio | Sequence[Ratio] | None = None,
        widths: Ratio | Sequence[Ratio] | None = None,
    ) -> Arch:
        """An arch from one value for all, or from flat lists (an entry a slot, as OFA has them).

        What is left out is the largest choice. Entries that the depth leaves out are dropped. One
        depth for all is that of the stages; a stage that is never so deep takes its largest.

        Raises:
            ArchError: a list of the wrong length, or a value outside the space.
        """
        if isinstance(depths, int):
            stem = self.depth_options[: self.stem_depths]
            depths = self.capped([*(o[-1] for o in stem), *[depths] * len(self.slots)])
        deepest = [options[-1] for options in self.depth_options]
        deep = self._spread("depths", depths, deepest)
        blocks = sum(self.slots)
        kernels = self._spread("kernel_sizes", kernel_sizes, self.kernel_choices[-1:] * blocks)
        expands = self._spread("expand_ratios", expand_ratios, self.expand_choices[-1:] * blocks)
        wide = self._spread("widths", widths, self.width_choices[-1:] * self.width_slots)
        starts = np.cumsum((0, *self.slots[:-1])).tolist()
        kept = deep[self.stem_depths :]
        spans = [slice(s, s + max(d, 0)) for s, d in zip(starts, kept, strict=True)]
        arch = Arch(
            resolution=self.resolutions[-1] if resolution is None else resolution,
            depths=tuple(deep),
            kernel_sizes=tuple(tuple(kernels[s]) for s in spans) if self.kernel_choices else (),
            expand_ratios=tuple(tuple(expands[span]) for span in spans),
            widths=tuple(wide),
        )
        self.validate(arch)
        return arch

    def capped(self, depths: Sequence[Any]) -> list[Any]:
        """``depths``, each at most the largest choice of its entry, as OFA's code takes them.

        A depth that no stage has, and what is no number, is left as it is, to be refused.
        """
        deepest = max(options[-1] for options in self.depth_options)
        return [
            options[-1]
            if isinstance(depth, int | float) and options[-1] < depth <= deepest
            else depth
            for depth, options in zip(depths, self.depth_options, strict=True)
        ]

    def _spread(self, what: str, given: Any, largest: Sequence[Any]) -> list[Any]:
        if given is None:
            return list(largest)
        if isinstance(given, int | float) and largest:
            return [given] * len(largest)
        if isinstance(given, int | float) or len(given) != len(largest):
            count = "one number" if isinstance(given, int | float) else f"{len(given)} entries"
            msg = f"{what} has {count}."
            expected = f"{len(largest)} or a number." if largest else f"none in {self.name}."
            raise ArchError(msg, expected=expected)
        return list(given)

    def largest(self, resolution: int | None = None) -> Arch:
        """Every choice at its maximum."""
        return self.arch(resolution=resolution)

    def smallest(self, resolution: int | None = None) -> Arch:
        """Every choice at its minimum (the resolution too, unless given)."""
        smallest = self.genome.arch(np.zeros(len(self.genome), dtype=np.int16))
        return smallest if resolution is None else self.at(smallest, resolution)

    def at(self, arch: Arch, resolution: int) -> Arch:
        """``arch`` at another resolution; ArchError where it is none."""
        moved = replace(arch, resolution=resolution)
        self.validate(moved)
        return moved

    def validate(self, arch: Arch) -> None:
        """Check that ``arch`` lies in this space.

        A resolution may be any multiple of 4 from 32 up; ``resolutions`` are those sampled.

        Raises:
            ArchError: names the value and the choices.
        """
        side = arch.resolution
        if side not in self.resolutions and (side < SMALLEST_SIDE or side % SIDE_STEP):
            msg = f"resolution {arch.resolution}."
            raise ArchError(msg, expected=f"a multiple of {SIDE_STEP}, at least {SMALLEST_SIDE}.")
        if len(arch.widths) != self.width_slots:
            msg = f"widths {arch.widths}."
            many = f"{self.width_slots} of {list(self.width_choices)}."
            none = f"none: the width of {self.name} is fixed."
            raise ArchError(msg, expected=many if self.width_slots else none)
        for entry, width in enumerate(arch.widths):
            _check(f"width {entry + 1}", width, self.width_choices)
        if len(arch.depths) != len(self.depth_options):
            msg = f"depths has {len(arch.depths)} entries."
            raise ArchError(msg, expected=f"{len(self.depth_options)}.")
        for entry, (depth, options) in enumerate(zip(arch.depths, self.depth_options, strict=True)):
            stage = entry - self.stem_depths + 1
            _check(f"depth of stage {stage}" if stage > 0 else "depth of the stem", depth, options)
        self._validate_blocks("kernel size", arch, arch.kernel_sizes, self.kernel_choices)
        self._validate_blocks("expand ratio", arch, arch.expand_ratios, self.expand_choices)

    def _validate_blocks(
        self,
        what: str,
        arch: Arch,
        stages: Sequence[Sequence[Ratio]],
        choices: Sequence[Ratio],
    ) -> None:
        if not choices:
            if stages:
                msg = f"{what}s {stages}."
                raise ArchError(msg, expected=f"none: {self.name} has no choice of {what}.")
            return
        for stage, depth in enumerate(arch.depths[self.stem_depths :]):
            if len(stages) != len(self.slots) or len(stages[stage]) != depth:
                msg = f"stage {stage + 1} has depth {depth}, but {what}s {stages}."
                raise ArchError(msg, expected="one value a block.")
            for value in stages[stage]:
                _check(f"{what} in stage {stage + 1}", value, choices)

    @property
    def choice_counts(self) -> dict[Kind, int]:
        """How many choices there are of each kind, in the gene that has most."""
        counts: dict[Kind, int] = {}
        for gene in self.genome.genes:
            counts[gene.kind] = max(counts.get(gene.kind, 0), len(gene.choices))
        return counts

    def sample(
        self,
        rng: np.random.Generator,
        *,
        resolution: int | None = None,
        largest: Mapping[Kind, int] | None = None,
    ) -> Arch:
        """A random arch.

        Args:
            rng: draws one number a gene, kind by kind.
            resolution: drawn too where it is not given.
            largest: for a kind of choice (``depth``, ``width``, ``kernel``, ``expand``) of how
                many of its largest values to draw; of all where it is not named.
        """
        genome = self.genome
        row = np.zeros(len(genome), dtype=np.int16)
        for kind in ("resolution", "depth", "kernel", "expand", "width"):
            columns = genome.columns(kind)
            if not columns or (kind == "resolution" and resolution is not None):
                continue
            counts = genome.counts[columns].astype(np.int64)
            drawn = np.minimum(counts, (largest or {}).get(kind, counts.max()))
            row[columns] = counts - drawn + rng.integers(0, drawn)
        arch = genome.arch(row)
        return arch if resolution is None else self.at(arch, resolution)

    def sample_even(self, rng: np.random.Generator, resolution: int) -> Arch:
        """A random arch that makes one choice of depth, of kernel, … throughout: a corner."""
        genome = self.genome
        row = np.zeros(len(genome), dtype=np.int16)
        for kind in ("depth", "kernel", "expand", "width"):
            columns = genome.columns(kind)
            row[columns] = (rng.random() * genome.counts[columns]).astype(np.int16)
        return self.at(genome.arch(row), resolution)

    def graft(self, base: Arch, other: Arch, stages: int) -> Arch:
        """``base``'s resolution, stem and first ``stages`` stages, followed by ``other``'s rest."""
        deep, wide = self.stem_depths + stages, self.stem_widths + stages
        arch = Arch(
            resolution=base.resolution,
            depths=base.depths[:deep] + other.depths[deep:],
            kernel_sizes=base.kernel_sizes[:stages] + other.kernel_sizes[stages:],
            expand_ratios=base.expand_ratios[:stages] + other.expand_ratios[stages:],
            widths=base.widths[:wide] + other.widths[wide:],
        )
        self.validate(arch)
        return arch

    # --- archs as OFA writes them -------------------------------------------------------------

    def depths_from_ofa(self, given: Any) -> tuple[int, ...]:
        """An arch's depths from OFA's ``d``.

        Raises:
            ArchError: the wrong length, or a depth that is no choice.
        """
        options = self.depth_options
        listed = ofa_archs.entries("d", given, len(options))
        return tuple(int(depth) for depth in ofa_archs.chosen("d", listed, options))

    def depths_to_ofa(self, depths: Sequence[int]) -> tuple[int, ...]:
        """OFA's ``d`` for an arch's depths."""
        return tuple(depths)

    @abstractmethod
    def arch_from_layers(
        self, stem: Sequence[Layer], blocks: Sequence[Layer], resolution: int
    ) -> Arch:
        """The arch, not yet validated, of the layers of a published ``net.config``.

        Raises:
            ArchError: a layer does not say what an arch needs.
        """

    # --- encodings ----------------------------------------------------------------------------

    @property
    def encoding_size(self) -> int:
        """Length of ``encode``'s vector: 46 for the published MobileNetV3 space."""
        return len(self.genome)

    def encode(self, arch: Arch) -> Floats:
        """``[encoding_size] float32``: kernels, expand ratios, depths, … resolution (OPA, IV-C).

        Each value is divided by the largest of its gene; slots that the depth leaves out are 0.
        Widths, where a space has them, stand before the resolution.
        """
        genome = self.genome
        values = np.array(genome.values(arch), dtype=np.float64)
        values[~genome.counted(arch)] = 0.0
        return (values / self._scales)[self._order].astype(np.float32)

    def encode_rows(self, rows: Population) -> Floats:
        """``[P, encoding_size] float32``: ``encode`` of every row of a population of ``genome``."""
        values = self._scaled_choices[np.arange(len(self.genome)), rows]
        code: Floats = (values * self.genome.active(rows))[:, self._order]
        return code

    def decode(self, code: npt.ArrayLike) -> Arch:
        """The arch that ``encode`` turned into ``code``.

        Raises:
            ArchError: wrong length, or values that no arch has (to half precision).
        """
        values = np.asarray(code, dtype=np.float64)
        if values.shape != (self.encoding_size,) or not np.isfinite(values).all():
            msg = f"a code of shape {values.shape}."
            raise ArchError(msg, expected=f"({self.encoding_size},), finite.")
        found = np.empty_like(values)
        found[self._order] = values
        found *= self._scales
        nearest = [
            int(np.abs(np.array(gene.choices, dtype=np.float64) - value).argmin())
            for gene, value in zip(self.genome.genes, found, strict=True)
        ]
        arch = self.at(self.genome.arch(np.array(nearest, dtype=np.int16)), round(found[0]))
        if not np.allclose(self.encode(arch), values, rtol=0.0, atol=2e-3):
            msg = f"a code that no arch has; the nearest arch is {arch}."
            raise ArchError(msg, expected="what encode gives.")
        return arch

    @cached_property
    def _scales(self) -> npt.NDArray[np.float64]:
        scales = {
            kind: max(max(self.genome.genes[c].choices) for c in self.genome.columns(kind))
            for kind in {gene.kind for gene in self.genome.genes}
        }
        return np.array([scales[gene.kind] for gene in self.genome.genes], dtype=np.float64)

    @cached_property
    def _scaled_choices(self) -> Floats:
        """``[G, choices]``: what ``encode`` writes for every choice of every gene."""
        table = np.zeros((len(self.genome), self.genome.counts.max()))
        for row, gene in zip(table, self.genome.genes, strict=True):
            row[: len(gene.choices)] = gene.choices
        return (table / self._scales[:, None]).astype(np.float32)

    @cached_property
    def _order(self) -> list[int]:
        kinds: tuple[Kind, ...] = ("kernel", "expand", "depth", "width", "resolution")
        return [column for kind in kinds for column in self.genome.columns(kind)]

    # --- on disk ------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML; ``registry.space_from_dict`` reads them back."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"name": self.name, **plain}


def _check_types(space: Space) -> None:
    """Numbers where numbers belong: what TOML and JSON hold is not checked before."""
    hints = get_type_hints(type(space))
    for field in fields(space):
        value, wanted = getattr(space, field.name), hints[field.name]
        values = (value,)
        if get_origin(wanted) is tuple:
            values, wanted = value, get_args(wanted)[0]
        accepted: Any = {float: Ratio, bool: int}.get(wanted, wanted)
        if not isinstance(values, tuple) or not all(isinstance(v, accepted) for v in values):
            msg = f"{field.name} = {value!r}."
            raise ConfigError(msg, expected=f"{field.type}.")


def _check_choices(key: str, values: tuple[Ratio, ...]) -> None:
    if not values or list(values) != sorted(set(values)) or values[0] <= 0:
        msg = f"{key} = {list(values)}."
        raise ConfigError(msg, expected="positive values, ascending, no repeats.")


def _check(what: str, value: Ratio, choices: Sequence[Ratio]) -> None:
    if value not in choices:
        msg = f"{what} is {value}."
        raise ArchError(msg, expected=f"one of {list(choices)}.")
