"""Where images enter: a pioneer for each resolution, its tails, and what their nodes are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opa_trt.builder.recipe_tables import PioneerRecipe
from opa_trt.errors import RecipeError
from opa_trt.supernet import Arch, Space

PIONEER = "pioneer"


@dataclass(frozen=True)
class Shape:
    """What a pioneer is made of: how many stages, and what every block of them chooses."""

    stages: int
    depth: int
    kernel_size: int
    expand_ratio: float

    def __str__(self) -> str:
        """As people read it."""
        stages = f"{self.stages} stage{'s' if self.stages > 1 else ''}"
        return (
            f"{stages}, depth {self.depth}, kernel {self.kernel_size}, expand {self.expand_ratio:g}"
        )

    @classmethod
    def of(cls, wanted: PioneerRecipe) -> Shape:
        """What a recipe says."""
        return cls(wanted.stages, wanted.depth, wanted.kernel_size, wanted.expand_ratio)

    def arch(self, space: Space, side: int) -> Arch:
        """Its arch at a resolution; what follows its stages is the smallest.

        Raises:
            ArchError: a choice that the space lacks.
        """
        stem, later = space.stem_depths, space.stem_depths + self.stages
        options = space.depth_options
        own = [self.depth] * len(options[stem:later])
        whole = space.arch(
            resolution=side,
            depths=space.capped(
                [*(o[-1] for o in options[:stem]), *own, *(o[0] for o in options[later:])]
            ),
            kernel_sizes=self.kernel_size if space.kernel_choices else None,
            expand_ratios=self.expand_ratio,
        )
        return space.graft(whole, space.smallest(side), self.stages)


@dataclass(frozen=True)
class Entry:
    """A pioneer and the names of what belongs to it.

    Args:
        pioneer: its arch.
        mark: what its nodes' names end with: nothing, or the resolution where there are several.
    """

    pioneer: Arch
    mark: str = ""

    @property
    def side(self) -> int:
        """The resolution that the pioneer and its tails read, in pixels."""
        return self.pioneer.resolution

    @property
    def name(self) -> str:
        """``pioneer``, or ``pioneer-24``."""
        return f"{PIONEER}{self.mark}"

    def tail(self, number: int) -> str:
        """``tail1``, or ``tail1-24``."""
        return f"tail{number}{self.mark}"


@dataclass(frozen=True)
class Family:
    """An entry and the tails that were chosen for it, by ascending MACs."""

    entry: Entry
    tails: tuple[Arch, ...]

    @property
    def tail_names(self) -> list[str]:
        """Of the tails, in their order."""
        return [self.entry.tail(number) for number in range(1, len(self.tails) + 1)]

    @property
    def nodes(self) -> list[str]:
        """The pioneer's name, then the tails'."""
        return [self.entry.name, *self.tail_names]

    @property
    def by_name(self) -> dict[str, Arch]:
        """The tails by name."""
        return dict(zip(self.tail_names, self.tails, strict=True))


def make_entries(space: Space, shape: Shape, sides: Sequence[int]) -> list[Entry]:
    """An entry for each resolution, ascending; of the space's largest alone where none is named.

    Raises:
        RecipeError: a resolution that the space lacks.
        ArchError: a choice of the shape that it lacks.
    """
    check_sides(space, sides)
    if len(sides) < 2:
        return [Entry(shape.arch(space, *(sides or space.resolutions[-1:])))]
    return [Entry(shape.arch(space, side), f"-{side}") for side in sorted(sides)]


def check_sides(space: Space, sides: Sequence[int]) -> None:
    """Refuse resolutions that the space lacks.

    Raises:
        RecipeError: names them.
    """
    if unknown := [side for side in sides if side not in space.resolutions]:
        message = f"pioneer.resolutions = {unknown}."
        known = ", ".join(map(str, space.resolutions))
        raise RecipeError(message, expected=f"some of space.resolutions: {known}.")
