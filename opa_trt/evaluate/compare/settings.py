"""What a comparison runs: how many groups, under which loads, deadlines and contents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from opa_trt.errors import ConfigError, UnknownNameError
from opa_trt.training.degrade import FAMILIES, KIND

LOADS = (0, 1, 2)
GROUP_SIZES = (1, 2, 50, 100, 150, 200, 500)
CONTENT = ("low_light", "blur", "noise")  # dark, blurred and noisy stretches
CONFIDENCE = 0.95
DRAWS = 2000
LEAST_GROUPS = 2


@dataclass(frozen=True)
class Settings:
    """How much is run.

    Args:
        groups: counted ones under each load and deadline.
        group_size: images a group.
        warm_up: groups before them that are not counted: beliefs about latency settle.
        trials: groups of fitting images that every static route is timed on under each load.
        loads: numbers of background applications, ascending.
        group_sizes: for the comparison of group sizes.
        deadlines: ms for every load; None chooses them by what the trials say.
        families: of degradations that the content drifts through; none for clean images alone.
        images: rows in the pool that groups are drawn from, at most.
        seed: of every draw.
        draws: of the bootstrap.

    Raises:
        ConfigError: a number that cannot be.
        UnknownNameError: no such family.
    """

    groups: int = 200
    group_size: int = 100
    warm_up: int = 10
    trials: int = 100
    loads: tuple[int, ...] = LOADS
    group_sizes: tuple[int, ...] = GROUP_SIZES
    deadlines: tuple[float, ...] | None = None
    families: tuple[str, ...] = ()
    images: int = 4000
    seed: int = 0
    draws: int = DRAWS

    def __post_init__(self) -> None:
        _check("groups", [self.groups], LEAST_GROUPS)
        _check("group size", [self.group_size], 2)
        _check("group size", self.group_sizes, 1)
        _check("warm-up", [self.warm_up], 0)
        _check("trials", [self.trials], 2)
        _check("load", self.loads, 0)
        _check("images", [self.images], 1)
        for family in self.families:
            if family not in FAMILIES:
                raise UnknownNameError(KIND, family, FAMILIES)
        if not self.loads:
            message = "no load to run under."
            raise ConfigError(message, expected="at least one number of applications; 0 for none.")
        given = self.deadlines
        if given is not None and not (given and all(0 < ms < math.inf for ms in given)):
            message = f"deadlines {', '.join(f'{ms:g}' for ms in given) or '(none)'} ms."
            raise ConfigError(message, expected="one or more, above 0 and finite.")
        object.__setattr__(self, "loads", tuple(sorted(set(self.loads))))
        object.__setattr__(self, "group_sizes", tuple(sorted(set(self.group_sizes))))
        if given is not None:
            object.__setattr__(self, "deadlines", tuple(sorted(set(given))))

    @property
    def least_load(self) -> int:
        """The load under which group sizes and finer deadlines are compared."""
        return self.loads[0]

    def groups_of(self, size: int) -> int:
        """How many groups of another size: about a quarter of the images, 40 groups at least,
        five times as many as usual at most."""
        wanted = self.groups * self.group_size // (4 * size)
        return min(max(wanted, min(40, self.groups)), 5 * self.groups)

    def trials_of(self, size: int) -> int:
        """Trials at another group size: fewer where groups are large."""
        return max(2, min(self.trials // 4, self.trials * self.group_size // (4 * size)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "confidence": CONFIDENCE}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Read what ``to_dict`` made; KeyError, TypeError or ConfigError where it is not that."""
        plain: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
        }
        del plain["confidence"]
        return cls(**plain)


def _check(what: str, values: Sequence[int], least: int) -> None:
    for value in values:
        if value < least:
            message = f"{what} {value}."
            raise ConfigError(message, expected=f"at least {least}.")
