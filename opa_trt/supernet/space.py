"""What every space of sub-networks has in common: choices, sampling, encodings, costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
from torch import nn

from opa_trt.errors import ArchError, ConfigError, UnknownNameError
from opa_trt.supernet.arch import Arch, Ratio

Floats = npt.NDArray[np.float32]
_SPACES: dict[str, type[Space]] = {}
SMALLEST_SIDE, SIDE_STEP = 16, 4  # of resolutions, in pixels


@dataclass(frozen=True)
class Cost:
    """MACs of one image and parameters; costs add up over parts."""

    macs: int
    params: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params)


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

    ``slots`` are the blocks that each stage has at its deepest. Choices are ascending.
    """

    name: ClassVar[str]

    classes: int
    resolutions: tuple[int, ...]
    slots: tuple[int, ...]
    depth_choices: tuple[int, ...]
    kernel_choices: tuple[int, ...]
    expand_choices: tuple[Ratio, ...]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _SPACES[cls.name] = cls

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        _check_types(self)
        for key in ("resolutions", "depth_choices", "kernel_choices", "expand_choices"):
            values = getattr(self, key)
            if not values or list(values) != sorted(set(values)) or values[0] <= 0:
                msg = f"{key} = {list(values)}."
                raise ConfigError(msg, expected="positive values, ascending, no repeats.")
        if any(kernel % 2 == 0 for kernel in self.kernel_choices):
            msg = f"kernel_choices = {list(self.kernel_choices)}."
            raise ConfigError(msg, expected="odd kernel sizes.")
        if not all(map(_is_side, self.resolutions)):
            msg = f"resolutions = {list(self.resolutions)}."
            raise ConfigError(msg, expected=f"multiples of {SIDE_STEP}, at least {SMALLEST_SIDE}.")

    # --- what a space defines -----------------------------------------------------------------

    @abstractmethod
    def elastic_parts(self) -> dict[str, ElasticPart]:
        """Freshly initialised parts in order: ``stem``, ``stage1`` …, ``head``."""

    @abstractmethod
    def costs(self, arch: Arch) -> dict[str, Cost]:
        """Cost of every part for one image at ``arch.resolution``, counted from the arch alone."""

    # --- costs --------------------------------------------------------------------------------

    def macs(self, arch: Arch) -> int:
        """Multiply-accumulates of one image (convolutions and linear layers; OFA, Table 1)."""
        return sum(cost.macs for cost in self.costs(arch).values())

    def params(self, arch: Arch) -> int:
        """Learnable parameters of the extracted network."""
        return sum(cost.params for cost in self.costs(arch).values())

    # --- archs --------------------------------------------------------------------------------

    def arch(
        self,
        *,
        resolution: int | None = None,
        depths: int | Sequence[int] | None = None,
        kernel_sizes: int | Sequence[int] | None = None,
        expand_ratios: Ratio | Sequence[Ratio] | None = None,
    ) -> Arch:
        """An arch from one value for all, or from flat lists (an entry a slot, as OFA has them).

        What is left out is the largest choice. Entries that the depth leaves out are dropped.

        Raises:
            ArchError: a list of the wrong length, or a value outside the space.
        """
        deep = self._spread("depths", depths, self.depth_choices[-1], len(self.slots))
        kernels = self._spread(
            "kernel_sizes", kernel_sizes, self.kernel_choices[-1], sum(self.slots)
        )
        expands = self._spread(
            "expand_ratios", expand_ratios, self.expand_choices[-1], sum(self.slots)
        )
        starts = np.cumsum((0, *self.slots[:-1])).tolist()
        spans = [slice(s, s + max(d, 0)) for s, d in zip(starts, deep, strict=True)]
        arch = Arch(
            resolution=self.resolutions[-1] if resolution is None else resolution,
            depths=tuple(deep),
            kernel_sizes=tuple(tuple(kernels[span]) for span in spans),
            expand_ratios=tuple(tuple(expands[span]) for span in spans),
        )
        self.validate(arch)
        return arch

    def _spread(self, what: str, given: Any, default: Any, length: int) -> list[Any]:
        value = default if given is None else given
        if isinstance(value, int | float):
            return [value] * length
        if len(value) != length:
            msg = f"{what} has {len(value)} entries."
            raise ArchError(msg, expected=f"{length} or a number.")
        return list(value)

    def largest(self, resolution: int | None = None) -> Arch:
        """Every choice at its maximum."""
        return self.arch(resolution=resolution)

    def smallest(self, resolution: int | None = None) -> Arch:
        """Every choice at its minimum (the resolution too, unless given)."""
        return self.arch(
            resolution=self.resolutions[0] if resolution is None else resolution,
            depths=self.depth_choices[0],
            kernel_sizes=self.kernel_choices[0],
            expand_ratios=self.expand_choices[0],
        )

    def validate(self, arch: Arch) -> None:
        """Check that ``arch`` lies in this space.

        A resolution may be any multiple of 4 from 16 up; ``resolutions`` are those sampled.

        Raises:
            ArchError: names the value and the choices.
        """
        if not _is_side(arch.resolution):
            msg = f"resolution {arch.resolution}."
            raise ArchError(msg, expected=f"a multiple of {SIDE_STEP}, at least {SMALLEST_SIDE}.")
        if arch.widths:
            msg = f"widths {arch.widths}."
            raise ArchError(msg, expected=f"none: the width of {self.name} is fixed.")
        if len(arch.depths) != len(self.slots):
            msg = f"depths has {len(arch.depths)} entries."
            raise ArchError(msg, expected=f"{len(self.slots)} stages.")
        for stage, depth in enumerate(arch.depths):
            _check(f"depth of stage {stage + 1}", depth, self.depth_choices)
            for what, values, choices in (
                ("kernel size", arch.kernel_sizes, self.kernel_choices),
                ("expand ratio", arch.expand_ratios, self.expand_choices),
            ):
                if len(values) != len(self.slots) or len(values[stage]) != depth:
                    msg = f"stage {stage + 1} has depth {depth}, but {what}s {values}."
                    raise ArchError(
                        msg,
                        expected="one value a block.",
                    )
                for value in values[stage]:
                    _check(f"{what} in stage {stage + 1}", value, choices)

    def sample(
        self,
        rng: np.random.Generator,
        *,
        resolution: int | None = None,
        depths: Sequence[int] | None = None,
        kernels: Sequence[int] | None = None,
        expands: Sequence[Ratio] | None = None,
    ) -> Arch:
        """A random arch; ``depths``, ``kernels``, ``expands`` narrow the choices drawn from."""
        count = sum(self.slots)
        return self.arch(
            resolution=int(rng.choice(self.resolutions)) if resolution is None else resolution,
            depths=[int(d) for d in rng.choice(depths or self.depth_choices, len(self.slots))],
            kernel_sizes=[int(k) for k in rng.choice(kernels or self.kernel_choices, count)],
            expand_ratios=[e.item() for e in rng.choice(expands or self.expand_choices, count)],
        )

    def graft(self, base: Arch, other: Arch, stages: int) -> Arch:
        """``base``'s resolution and first ``stages`` stages, followed by ``other``'s rest."""
        arch = Arch(
            resolution=base.resolution,
            depths=base.depths[:stages] + other.depths[stages:],
            kernel_sizes=base.kernel_sizes[:stages] + other.kernel_sizes[stages:],
            expand_ratios=base.expand_ratios[:stages] + other.expand_ratios[stages:],
            widths=base.widths,
        )
        self.validate(arch)
        return arch

    # --- encodings ----------------------------------------------------------------------------

    @property
    def encoding_size(self) -> int:
        """Length of ``encode``'s vector: 46 for the published MobileNetV3 space."""
        return 2 * sum(self.slots) + len(self.slots) + 1

    def encode(self, arch: Arch) -> Floats:
        """``[encoding_size] float32``: kernels, expand ratios, depths, resolution (OPA, IV-C).

        Each value is divided by the largest of its kind; slots that the depth leaves out are 0.
        """
        kernels = self._slotted(arch.kernel_sizes, self.kernel_choices[-1])
        expands = self._slotted(arch.expand_ratios, self.expand_choices[-1])
        depths = [depth / self.depth_choices[-1] for depth in arch.depths]
        side = [arch.resolution / self.resolutions[-1]]
        return np.array([*kernels, *expands, *depths, *side], dtype=np.float32)

    def decode(self, code: npt.ArrayLike) -> Arch:
        """The arch that ``encode`` turned into ``code``.

        Raises:
            ArchError: wrong length, or values that no arch has (to half precision).
        """
        values = np.asarray(code, dtype=np.float64)
        if values.shape != (self.encoding_size,) or not np.isfinite(values).all():
            msg = f"a code of shape {values.shape}."
            raise ArchError(msg, expected=f"({self.encoding_size},), finite.")
        arch = self._nearest_arch(values)
        if not np.allclose(self.encode(arch), values, rtol=0.0, atol=2e-3):
            msg = f"a code that no arch has; the nearest arch is {arch}."
            raise ArchError(msg, expected="what encode gives.")
        return arch

    def _nearest_arch(self, values: npt.NDArray[np.float64]) -> Arch:
        count = sum(self.slots)
        depths = np.rint(values[2 * count : -1] * self.depth_choices[-1]).astype(int).tolist()
        return self.arch(
            resolution=round(float(values[-1]) * self.resolutions[-1]),
            depths=depths,
            kernel_sizes=_nearest(values[:count] * self.kernel_choices[-1], self.kernel_choices),
            expand_ratios=_nearest(
                values[count : 2 * count] * self.expand_choices[-1], self.expand_choices
            ),
        )

    def _slotted(self, stages: Sequence[Sequence[Ratio]], scale: Ratio) -> Iterator[float]:
        for slots, values in zip(self.slots, stages, strict=True):
            yield from (value / scale for value in values)
            yield from [0.0] * (slots - len(values))

    # --- on disk ------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML; ``space_from_dict`` reads them back."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"name": self.name, **plain}


def space_from_dict(values: Mapping[str, Any]) -> Space:
    """The space that ``values`` describes; what is left out has the published value.

    Raises:
        UnknownNameError: the space, or one of its parameters, does not exist.
        ConfigError: a parameter has an impossible value.
    """
    import opa_trt.supernet.spaces  # noqa: F401 - registers the spaces

    given = dict(values)
    name = given.pop("name", None)
    if not isinstance(name, str) or name not in _SPACES:
        msg = "space"
        raise UnknownNameError(msg, str(name), _SPACES)
    space = _SPACES[name]
    known = [field.name for field in fields(space)]
    for key in given:
        if key not in known:
            msg = f"parameter of space {name}"
            raise UnknownNameError(msg, key, known)
    return space(**given)


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


def _is_side(resolution: int) -> bool:
    return resolution >= SMALLEST_SIDE and resolution % SIDE_STEP == 0


def _check(what: str, value: Ratio, choices: Sequence[Ratio]) -> None:
    if value not in choices:
        msg = f"{what} is {value}."
        raise ArchError(msg, expected=f"one of {list(choices)}.")


def _nearest(values: npt.NDArray[np.float64], choices: Sequence[Any]) -> list[Any]:
    table = np.asarray(choices, dtype=np.float64)
    return [choices[int(i)] for i in np.abs(values[:, None] - table[None]).argmin(axis=1)]
