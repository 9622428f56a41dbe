"""Named, seeded degradations: what makes images hard, and a stream's content drift.

What happens to image ``i`` depends on (seed, i, its pixels) alone: not on the images beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opa_trt.errors import ConfigError, UnknownNameError
from opa_trt.training.data import Pixels, check_pixels

Floats = NDArray[np.float32]
Draws = list[np.random.Generator]  # one an image


@dataclass(frozen=True)
class Level:
    """What each family does at one severity; grey levels are of 0..255."""

    noise: float  # standard deviation, in grey levels
    blur: float  # standard deviation of the Gaussian, in px of a 32 px image
    light: float  # share of the light that is left
    shot: float  # shot noise: its variance, for each grey level of light
    read: float  # read noise: its standard deviation, in grey levels
    contrast: float  # share of the range that is left
    grain: float  # noise after blur and contrast: standard deviation, in grey levels
    rectangles: int  # that cover the image
    area: float  # share of the image that one of them covers


LEVELS = {
    # noise, blur, light, shot, read, contrast, grain
    1: Level(30, 1.0, 0.35, 0.5, 3.0, 0.40, 4.0, rectangles=1, area=0.15),
    2: Level(60, 2.2, 0.15, 0.7, 5.0, 0.20, 7.0, rectangles=2, area=0.18),
    3: Level(90, 3.5, 0.08, 1.0, 8.0, 0.10, 11.0, rectangles=3, area=0.21),
}
MID_GREYS = (64.0, 192.0)  # around which contrast is squeezed
ASPECTS = (0.5, 2.0)  # height over width of a rectangle
CELLS = 8  # coarse cells of noise along a side: a stroke cannot average them out
RAMP = (1, 2, 3, 2, 1)  # severities of one family as content drifts
CLEAN = "clean"
KIND = "degradation family"  # what an error calls it
BLOCK = 64  # images worked on at once, so that floats stay few


def degrade(pixels: Pixels, family: str, severity: int, seed: int) -> Pixels:
    """A degraded copy of ``pixels [N, 3, S, S] uint8``, of the same shape and dtype.

    ``severity`` is 1 to 3, or 0 for an unchanged copy; ``"clean"`` has severity 0 alone. Raises
    ``UnknownNameError`` (family), ``ConfigError`` (severity), ``DataError`` (pixels).
    """
    check_pixels(pixels)
    _check(family, severity)
    result = pixels.copy()
    _apply(result, np.arange(len(pixels)), family, severity, seed)
    return result


def mixed(
    pixels: Pixels, families: Sequence[str], seed: int, *, clean: float = 0.25
) -> tuple[Pixels, NDArray[np.int64], NDArray[np.int64]]:
    """Give each image of ``pixels [N, 3, S, S] uint8`` a family and a severity of its own.

    Returns the degraded copy, the index into ``families [N] int64`` (-1 where clean) and the
    severity ``[N] int64`` (0 where clean); ``clean`` is the expected share of clean images. Image
    ``i`` equals image ``i`` of ``degrade`` with its family, its severity and ``seed``. Raises
    ``UnknownNameError`` (a family), ``ConfigError`` (no family, ``clean``), ``DataError``.
    """
    check_pixels(pixels)
    _check_families(families)
    if not 0 <= clean <= 1:
        message = f"a clean share of {clean:g} is out of range."
        raise ConfigError(message, expected="0 to 1.")
    chance = np.random.default_rng((seed, 0)).random((len(pixels), 3))
    index = np.where(chance[:, 0] < clean, -1, (chance[:, 1] * len(families)).astype(np.int64))
    severity = np.where(index < 0, 0, 1 + (chance[:, 2] * len(LEVELS)).astype(np.int64))
    result = pixels.copy()
    for kind, family in enumerate(families):
        for level in LEVELS:
            rows = np.flatnonzero((index == kind) & (severity == level))
            _apply(result, rows, family, level, seed)
    return result, index, severity


def drift(length: int, families: Sequence[str], seed: int) -> list[tuple[str, int]]:
    """(family, severity) of each of ``length`` groups: clean, each family up and down, clean.

    One pass stretched over the stream, the families in an order that ``seed`` draws, clean
    between them. Where ``length`` is less than ``1 + 6 * len(families)``, steps are left out
    evenly. Raises ``UnknownNameError`` (a family), ``ConfigError`` (no family, negative length).
    """
    _check_families(families)
    if length < 0:
        message = f"a stream of {length} groups is not possible."
        raise ConfigError(message, expected="0 groups or more.")
    steps = [(CLEAN, 0)]
    for kind in np.random.default_rng(seed).permutation(len(families)):
        steps += [(families[kind], severity) for severity in RAMP]
        steps.append((CLEAN, 0))
    places = np.rint(np.linspace(0, len(steps) - 1, length)).astype(int)
    return [steps[place] for place in places]


def _check(family: str, severity: int) -> None:
    if family not in (CLEAN, *FAMILIES):
        raise UnknownNameError(KIND, family, (CLEAN, *FAMILIES))
    if severity not in ((0,) if family == CLEAN else (0, *LEVELS)):
        message = f"{family} has no severity {severity}."
        raise ConfigError(message, expected="0." if family == CLEAN else "0 (clean), 1, 2 or 3.")


def _check_families(families: Sequence[str]) -> None:
    if isinstance(families, str) or not families:
        message = f"families {families!r} is not a list of names."
        raise ConfigError(message, expected=f"one or more of {', '.join(FAMILIES)}.")
    for family in families:
        if family not in FAMILIES:
            raise UnknownNameError(KIND, family, FAMILIES)


def _apply(pixels: Pixels, rows: NDArray[np.int64], family: str, severity: int, seed: int) -> None:
    """Degrade ``rows`` of ``pixels`` in place."""
    if severity == 0:
        return
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        draws = [np.random.default_rng((seed, 1, int(row))) for row in block]
        images = _FUNCTIONS[family](pixels[block].astype(np.float32), LEVELS[severity], draws)
        pixels[block] = np.rint(images.clip(0, 255)).astype(np.uint8)


def _grain(images: Floats, draws: Draws) -> Floats:
    """Grey noise of standard deviation 1 ``[n, 1, S, S]``, half of its variance in coarse cells."""
    side = images.shape[-1]
    cell = max(1, round(side / CELLS))
    coarse = _normals(len(images), -(-side // cell), draws).repeat(cell, 2).repeat(cell, 3)
    fine = _normals(len(images), side, draws)
    return (fine + coarse[..., :side, :side]) * np.float32(0.5**0.5)


def _normals(count: int, side: int, draws: Draws) -> Floats:
    normals = np.empty((count, 1, side, side), np.float32)
    for draw, out in zip(draws, normals, strict=True):
        draw.standard_normal(out=out, dtype=np.float32)
    return normals


def _noise(images: Floats, level: Level, draws: Draws) -> Floats:
    return images + np.float32(level.noise) * _grain(images, draws)


def _blur(images: Floats, level: Level, draws: Draws) -> Floats:
    """A Gaussian along both axes, as two matrix products, cut off at the edges; then grain."""
    side = images.shape[-1]
    place = np.arange(side)
    distance = (place[:, None] - place) / (level.blur * side / 32)
    weights = np.exp(-0.5 * distance**2)
    kernel = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    blurred: Floats = kernel @ images @ kernel.T
    return blurred + np.float32(level.grain) * _grain(images, draws)


def _low_light(images: Floats, level: Level, draws: Draws) -> Floats:
    """Little light, its shot noise (Gaussian approximation), and the sensor's read noise."""
    dim: Floats = images * np.float32(level.light)
    deviation: Floats = np.sqrt(np.float32(level.shot) * dim + np.float32(level.read**2))
    return dim + deviation * _grain(images, draws)


def _contrast(images: Floats, level: Level, draws: Draws) -> Floats:
    greys = np.array([draw.uniform(*MID_GREYS) for draw in draws], np.float32)
    squeezed: Floats = greys[:, None, None, None] + (images - 127.5) * np.float32(level.contrast)
    return squeezed + np.float32(level.grain) * _grain(images, draws)


def _occlusion(images: Floats, level: Level, draws: Draws) -> Floats:
    side = images.shape[-1]
    for image, draw in zip(images, draws, strict=True):
        for _ in range(level.rectangles):
            aspect = np.exp(draw.uniform(*np.log(ASPECTS)))
            lengths = side * np.sqrt(level.area) * np.array([aspect**0.5, aspect**-0.5])
            height, width = np.clip(np.rint(lengths), 1, side).astype(int)
            top, left = draw.integers(0, (side - height + 1, side - width + 1))
            image[:, top : top + height, left : left + width] = draw.uniform(0, 255)
    return images


_FUNCTIONS: dict[str, Callable[[Floats, Level, Draws], Floats]] = {
    "noise": _noise,
    "blur": _blur,
    "low_light": _low_light,
    "contrast": _contrast,
    "occlusion": _occlusion,
}
FAMILIES: tuple[str, ...] = tuple(_FUNCTIONS)
