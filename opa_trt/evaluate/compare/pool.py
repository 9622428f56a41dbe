"""The rows that groups are drawn from: test images, each in several conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.training.data import Images
from opa_trt.training.degrade import CLEAN, LEVELS, degrade, drift

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
MOST_BYTES = 2**30


@dataclass(frozen=True)
class Condition:
    """What was done to an image: a family of degradations and its severity (0: nothing)."""

    family: str = CLEAN
    severity: int = 0

    @property
    def pair(self) -> tuple[str, int]:
        """Family and severity."""
        return self.family, self.severity


@dataclass(frozen=True)
class Pool:
    """N images in some condition each.

    Args:
        pixels: ``[N, 3, S, S] uint8``.
        labels: ``[N] int64``.
        source: ``[N] int64``, the row among the test images.
        condition: ``[N] int64``, a place in ``conditions``.
        conditions: clean first.
        scaled: whether the bundle takes float32 from 0 to 1.
    """

    pixels: Pixels
    labels: Ints
    source: Ints
    condition: Ints
    conditions: tuple[Condition, ...]
    scaled: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Ints) -> npt.NDArray[Any]:
        """The images at ``rows [n]`` as the bundle takes them."""
        pixels = self.pixels[rows]
        return pixels.astype(np.float32) / np.float32(255) if self.scaled else pixels

    @property
    def rows(self) -> list[int]:
        """How many there are in each condition."""
        return [len(members) for members in self.members.values()]

    @cached_property
    def members(self) -> dict[tuple[str, int], Ints]:
        """Rows of each condition."""
        return {
            condition.pair: np.flatnonzero(self.condition == place)
            for place, condition in enumerate(self.conditions)
        }


@dataclass(frozen=True)
class Draw:
    """A group: rows of the pool, and the condition that they are in."""

    rows: Ints
    family: str
    severity: int


def make_pool(
    images: Images,
    families: Sequence[str],
    limit: int,
    seed: int,
    *,
    mostly_clean: bool = False,
    scaled: bool = False,
) -> Pool:
    """As many of ``images`` in every condition, ``limit`` rows (and 1 GiB) at most.

    Args:
        images: to be tested on.
        families: of degradations; the conditions are clean, and each family at each severity.
        limit: of rows; one image a condition at least.
        seed: of the draw and of the degradations.
        mostly_clean: give half of the rows to clean images, as far as there are so many.
        scaled: whether the bundle takes float32 from 0 to 1.
    """
    conditions = (
        Condition(),
        *(Condition(family, level) for family in families for level in LEVELS),
    )
    room = min(limit, MOST_BYTES // max(1, images.pixels[0].nbytes))
    clean = room // (2 if mostly_clean and families else len(conditions))
    hard = (room - clean) // max(1, len(conditions) - 1)
    counts = [max(1, min(len(images), wanted)) for wanted in (clean, *[hard] * len(conditions[1:]))]
    draw = np.random.default_rng([seed, 81])
    pixels, source = [], []
    for place, (condition, count) in enumerate(zip(conditions, counts, strict=True)):
        rows = np.sort(draw.permutation(len(images))[:count])
        pixels.append(degrade(images.pixels[rows], *condition.pair, seed + place))
        source.append(rows)
    chosen = np.concatenate(source)
    return Pool(
        pixels=np.concatenate(pixels),
        labels=images.labels[chosen],
        source=chosen.astype(np.int64),
        condition=np.repeat(np.arange(len(conditions)), counts),
        conditions=conditions,
        scaled=scaled,
    )


def draw_groups(
    pool: Pool, families: Sequence[str], groups: int, size: int, seed: int
) -> list[Draw]:
    """Groups whose content drifts from clean to hard and back, as ``degrade.drift`` says.

    Rows are drawn without replacement within a group, as far as a condition has enough.

    Args:
        pool: what they are drawn from.
        families: that the content drifts through; none for clean images alone.
        groups: how many.
        size: images a group.
        seed: of the draws.
    """
    draw = np.random.default_rng([seed, 82, size])
    schedule = drift(groups, families, seed) if families else [Condition().pair] * groups
    found = []
    for family, severity in schedule:
        members = pool.members[family, severity]
        rows = draw.choice(members, size=size, replace=size > len(members))
        found.append(Draw(rows.astype(np.int64), family, severity))
    return found
