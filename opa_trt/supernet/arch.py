"""One choice in a space: an immutable, canonical value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opa_trt.errors import ArchError

if TYPE_CHECKING:
    from opa_trt.supernet.space import Space

Ratio = int | float


@dataclass(frozen=True)
class Arch:
    """One sub-network of a space.

    Kernel sizes and expand ratios are kept stage by stage and only for the blocks that the
    depth keeps, so two archs that compute the same are equal and hash alike.
    ``Space.arch`` builds one from flat lists, ``Space.validate`` checks one.

    Args:
        resolution: side of the square input in pixels.
        depths: blocks in each stage; the stem's choice of depth, if it has one, comes first.
        kernel_sizes: for each stage the kernel size of each of its blocks.
        expand_ratios: for each stage the expand ratio of each of its blocks.
        widths: those of the stem, then a stage each; empty for a space whose width is fixed.
    """

    resolution: int
    depths: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    expand_ratios: tuple[tuple[Ratio, ...], ...]
    widths: tuple[Ratio, ...] = ()

    def __str__(self) -> str:
        """As people write it: ``r32 d1-2 k3-35 e1-36`` (one group a stage)."""
        parts = [f"r{self.resolution}", f"d{'-'.join(map(str, self.depths))}"]
        for letter, stages in (("k", self.kernel_sizes), ("e", self.expand_ratios)):
            if stages:
                parts.append(letter + "-".join(map(_joined, stages)))
        if self.widths:
            parts.append(f"w{'-'.join(f'{width:g}' for width in self.widths)}")
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` reads them back."""
        return {
            "resolution": self.resolution,
            "depths": list(self.depths),
            "kernel_sizes": [list(stage) for stage in self.kernel_sizes],
            "expand_ratios": [list(stage) for stage in self.expand_ratios],
            "widths": list(self.widths),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Arch:
        """Read what ``to_dict`` wrote.

        Raises:
            ArchError: a key is missing, unknown or of the wrong type.
        """
        known = ("resolution", "depths", "kernel_sizes", "expand_ratios", "widths")
        if set(values) - set(known) or not set(known[:-1]) <= set(values):
            msg = f"an arch has the keys {sorted(values)}."
            raise ArchError(msg, expected=f"the keys {list(known)}.")
        try:
            return cls(
                resolution=_whole(values["resolution"]),
                depths=tuple(map(_whole, values["depths"])),
                kernel_sizes=tuple(tuple(map(_whole, stage)) for stage in values["kernel_sizes"]),
                expand_ratios=tuple(tuple(stage) for stage in values["expand_ratios"]),
                widths=tuple(values.get("widths", ())),
            )
        except (TypeError, ValueError, OverflowError) as exc:
            msg = f"an arch cannot be read: {exc}."
            raise ArchError(
                msg,
                expected="whole numbers for resolution and depths, a list a stage for the others.",
            ) from exc

    @classmethod
    def from_ofa(cls, values: Mapping[str, Any], space: Space) -> Arch:
        """Read OFA's dictionary of ``ks``, ``e``, ``d``, ``w`` and ``r``: ``ofa_archs``.

        Raises:
            ArchError: names the key, the position, the value and its choices.
        """
        from opa_trt.supernet.ofa_archs import arch_from_ofa

        return arch_from_ofa(values, space)

    def to_ofa(self, space: Space) -> dict[str, list[Ratio]]:
        """What ``from_ofa`` reads, with an entry for every slot of ``space``.

        Raises:
            ArchError: this arch lies outside ``space``.
        """
        from opa_trt.supernet.ofa_archs import arch_to_ofa

        return arch_to_ofa(self, space)


def _whole(value: Any) -> int:
    """``value`` as an integer; ValueError where that would change it."""
    if isinstance(value, str | bool) or int(value) != value:
        message = f"{value!r} is no whole number"
        raise ValueError(message)
    return int(value)


def _joined(values: tuple[Ratio, ...]) -> str:
    """``346``, or ``0.2,0.35`` where a value has more than one digit."""
    texts = [f"{value:g}" for value in values]
    return ("" if max(map(len, texts)) == 1 else ",").join(texts)
