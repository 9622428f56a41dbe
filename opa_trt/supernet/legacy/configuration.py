"""Which phases of a legacy network are replaced by their shallow alternatives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from opa_trt.errors import ConfigError


@dataclass(frozen=True)
class Configuration:
    """For each phase whether its shallow alternative runs. As text the paper's: ``{0, 2}``.

    Args:
        shallow: one value a phase, in order.
    """

    shallow: tuple[bool, ...]

    @classmethod
    def of(cls, phases: int, places: Iterable[int] = ()) -> Configuration:
        """Shallow at ``places`` (from 0) of so many phases.

        Raises:
            ConfigError: a place that is not among them.
        """
        chosen = set(places)
        if not chosen <= set(range(phases)):
            message = f"shallow phases {sorted(chosen)} of {phases}."
            raise ConfigError(message, expected=f"places 0 to {phases - 1}.")
        return cls(tuple(place in chosen for place in range(phases)))

    @classmethod
    def numbered(cls, phases: int, number: int) -> Configuration:
        """The ``number``-th of ``2 ** phases``; 0 is the legacy network, the last all shallow."""
        return cls(tuple(bool(number >> place & 1) for place in range(phases)))

    @classmethod
    def from_bits(cls, bits: Iterable[int]) -> Configuration:
        """Read what ``bits`` gave."""
        return cls(tuple(bool(bit) for bit in bits))

    @property
    def bits(self) -> list[int]:
        """1 (shallow) or 0 (legacy) a phase, for JSON."""
        return [int(each) for each in self.shallow]

    @property
    def places(self) -> tuple[int, ...]:
        """The phases whose shallow alternative runs, from 0."""
        return tuple(place for place, shallow in enumerate(self.shallow) if shallow)

    @property
    def is_legacy(self) -> bool:
        """Whether it is the original network."""
        return not any(self.shallow)

    def __str__(self) -> str:
        return "{" + ", ".join(map(str, self.places)) + "}"
