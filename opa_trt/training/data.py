"""Labelled images in memory, how they are drawn and split, and how pictures are decoded.

``digits.load_digits`` and ``folder.load_folder`` make the splits.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from opa_trt.errors import BadImageError, DataError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Progress = Callable[[int, int], None]

# What a file's content may be, whatever its name says: no decoder that runs other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MOST_BYTES = 8 * 2**30
CHUNK = 8  # images a task decodes
NAMED = 5  # bad images that a message names


@dataclass(frozen=True, eq=False)
class Images:
    """``pixels [N, 3, S, S] uint8``, ``labels [N] int64``, and the class names in label order.

    Both arrays are read-only views of what was passed (copies where that was not contiguous).
    Raises ``DataError`` where shapes, dtypes or label values do not fit together.
    """

    pixels: Pixels
    labels: Labels
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_pixels(self.pixels)
        _check_labels(self.labels, len(self.pixels), len(self.classes))
        for name in ("pixels", "labels"):
            view = np.ascontiguousarray(getattr(self, name)).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(str(length) for length in self.pixels.shape[1:])
        return f"Images({len(self)} of {shape}, {len(self.classes)} classes)"

    def select(self, indices: ArrayLike) -> Images:
        """The images at ``indices`` (``[n]`` integers or ``[N]`` bool), copied, in that order.

        Raises ``IndexError`` where an index is outside.
        """
        rows = np.asarray(indices)
        rows = rows if rows.size else rows.astype(np.int64)
        return Images(self.pixels[rows], self.labels[rows], self.classes)

    def digest(self) -> str:
        """Sha256 (64 hex digits) of shape, class names, pixels and labels, on any machine."""
        found = hashlib.sha256(json.dumps([self.pixels.shape, self.classes]).encode())
        found.update(self.pixels.data)
        found.update(self.labels.astype("<i8").data)
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint images: the supernet is trained and calibrated on ``train``, predictors are
    fitted on ``fit``, reports use ``test``. ``skipped`` are files left out as unreadable."""

    train: Images
    fit: Images
    test: Images
    skipped: tuple[Path, ...] = ()


def check_pixels(pixels: NDArray[np.generic]) -> None:
    """Raises ``DataError`` unless ``pixels`` is ``[N, 3, S, S] uint8``."""
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        message = f"pixels are {pixels.dtype} of shape {list(shape)}."
        raise DataError(message, expected="uint8 of shape [N, 3, S, S].")


def _check_labels(labels: Labels, images: int, classes: int) -> None:
    if labels.dtype != np.int64 or labels.shape != (images,):
        message = f"labels are {labels.dtype} of shape {list(labels.shape)} for {images} images."
        raise DataError(message, expected=f"int64 of shape [{images}].")
    if images and not (labels.min() >= 0 and labels.max() < classes):
        message = f"labels run from {labels.min()} to {labels.max()} for {classes} classes."
        raise DataError(message, expected=f"0 to {classes - 1}.")


def draw(labels: Labels, quotas: Sequence[int], seed: int | Sequence[int]) -> NDArray[np.int64]:
    """Indices (ascending, int64) of ``quotas[c]`` images of each class ``c``, at random.

    ``labels [N] int64``. A class with fewer images than its quota gives all it has.
    """
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(labels == c))[:q] for c, q in enumerate(quotas)]
    return np.sort(np.concatenate(members)).astype(np.int64)


def read_images(
    paths: Sequence[Path | str],
    size: int,
    *,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
) -> tuple[Pixels, list[Path], list[Path]]:
    """Decode pictures to RGB, shorter side resized to ``size`` px (bicubic), centre cropped.

    Returns ``pixels [N, 3, size, size] uint8``, the N paths kept, in order, and the bad ones.
    ``progress(done, total)`` is called in this thread. Raises ``DataError`` where the array would
    pass 8 GiB or ``size`` is not positive, and ``BadImageError`` for files that cannot be decoded
    to the end or hold too many pixels (``PIL.Image.MAX_IMAGE_PIXELS``), unless
    ``skip_bad_images``.
    """
    files = [Path(path) for path in paths]
    pixels = _allocate(len(files), size)
    bad = _decode_all(files, pixels, progress)
    if bad and not skip_bad_images:
        raise _bad_images([files[row] for row in bad], len(files))
    kept = sorted(set(range(len(files))).difference(bad))
    for place, row in enumerate(kept[: len(kept) if bad else 0]):
        pixels[place] = pixels[row]
    return pixels[: len(kept)], [files[row] for row in kept], [files[row] for row in bad]


def _allocate(count: int, size: int) -> Pixels:
    if size < 1:
        message = f"an image size of {size} px is not positive."
        raise DataError(message, expected="at least 1 px.")
    needed = count * 3 * size * size
    if needed > MOST_BYTES:
        message = f"{count} images of {size} px need {needed / 2**30:.1f} GiB of memory."
        remedy = "limit the images of each class (limit=N), or choose a smaller size."
        raise DataError(message, expected=f"at most {MOST_BYTES / 2**30:g} GiB.", remedy=remedy)
    return np.empty((count, 3, size, size), np.uint8)


def _decode_all(files: list[Path], pixels: Pixels, progress: Progress | None) -> list[int]:
    """Fill ``pixels`` in a thread pool; returns the rows whose file cannot be decoded."""
    bad: list[int] = []
    starts = range(0, len(files), CHUNK)
    workers = max(2, min(os.cpu_count() or 2, len(starts)))
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        found = pool.map(partial(_fill, files, pixels), starts)
        for start, rows in zip(starts, found, strict=True):
            bad += rows
            if progress is not None:
                progress(min(start + CHUNK, len(files)), len(files))
    return bad


def _fill(files: list[Path], pixels: Pixels, start: int) -> list[int]:
    bad = []
    for row in range(start, min(start + CHUNK, len(files))):
        try:
            pixels[row] = _decode(files[row], pixels.shape[-1])
        except Exception:  # decoders raise nearly anything; it is the file that is wrong
            bad.append(row)
    return bad


def _decode(path: Path, size: int) -> Pixels:
    with Image.open(path, formats=FORMATS) as opened:
        image = _rgb(ImageOps.exif_transpose(opened))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: the shorter side still becomes ``size``, and a thin strip stays small.
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which ``convert`` alone would clip at 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _bad_images(paths: list[Path], total: int) -> BadImageError:
    named = ", ".join(str(path) for path in paths[:NAMED])
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return BadImageError(
        f"{len(paths)} of {total} images cannot be read: {named}{more}.",
        paths=paths,
        expected="complete JPEG, PNG, BMP or WebP files.",
        remedy="replace them, or leave them out with --skip-bad-images (skip_bad_images=True).",
    )
