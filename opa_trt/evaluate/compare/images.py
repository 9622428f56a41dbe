"""The images that a bundle is compared on: which were fitted, chosen and tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opa_trt.bundle import Manifest
from opa_trt.errors import DataError
from opa_trt.progress import Progress
from opa_trt.training.data import Images, Splits
from opa_trt.training.digits import load_digits
from opa_trt.training.folder import LAYOUT, load_folder

DIGITS = "digits"
LEAST_FIT = 2  # half of the held-out images choose, half fit


@dataclass(frozen=True)
class Data:
    """A bundle's images, split as its build split them.

    Args:
        source: ``digits``, or the folder.
        splits: train, fit and test.
    """

    source: str
    splits: Splits


def read_data(
    manifest: Manifest,
    folder: Path | None,
    *,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
) -> Data:
    """The images of ``folder``, or those that the bundle's recipe brings itself.

    Args:
        manifest: says which classes, which size and which seed.
        folder: ``train/<class>/*`` and ``test/<class>/*``; None for a bundle of digits.
        skip_bad_images: leave out images that cannot be decoded, rather than refuse.
        progress: hears of images decoded.

    Raises:
        DataError: no folder where one is needed, one that cannot be used, or other classes than
            the bundle's.
    """
    told = progress or Progress()
    recipe = manifest.recipe
    data: Mapping[str, Any] = recipe.get("data", {})
    seed, size = int(recipe.get("seed", 0)), manifest.images.size
    if folder is None:
        if data.get("source") != DIGITS:
            message = f"bundle {manifest.name} was built from an image folder, and none is named."
            raise DataError(message, expected=LAYOUT, remedy="add --data FOLDER.")
        found = Data(DIGITS, load_digits(size, seed))
    else:
        splits = load_folder(
            folder,
            size,
            holdout=float(data.get("holdout", 0.1)),
            seed=seed,
            skip_bad_images=skip_bad_images,
            progress=lambda done, total: told.advance(done, f"of {total} images"),
        )
        found = Data(str(folder), splits)
    _check_classes(manifest.classes, found)
    return found


def check_enough(data: Data, group_size: int) -> None:
    """Refuse images that are too few for the split.

    Raises:
        DataError: says how many are needed.
    """
    for what, images, least in (
        ("held-out images of train (fit)", data.splits.fit, LEAST_FIT),
        ("test images", data.splits.test, group_size),
    ):
        if len(images) < least:
            message = f"{data.source} has {len(images)} {what}."
            raise DataError(
                message,
                expected=f"at least {least}: {LEAST_FIT} to fit and choose on, and as many to test "
                f"on as a group has ({group_size}).",
                remedy="add images, or make the groups smaller (--group-size).",
            )


def split_facts(
    data: Data, manifest: Manifest, rows: Sequence[int], largest: int
) -> dict[str, Any]:
    """What was trained, chosen, fitted and tested on which images, for JSON and for people.

    Args:
        data: the images.
        manifest: of the bundle, which tells what its training images were.
        rows: of the pool, in each of its conditions: clean test images first, then degraded ones.
        largest: images of the largest group.
    """
    splits = data.splits
    digest = splits.train.digest()
    built = manifest.report.get("calibrate", {}).get("data")
    same = None if built is None else bool(built == digest)
    chosen, fitted = -(-len(splits.fit) // 2), len(splits.fit) // 2
    recipe = manifest.recipe
    if not recipe.get("data", {}).get("degradations"):  # else each is degraded in several ways
        chosen = min(chosen, recipe.get("tails", {}).get("images", chosen))
    tested = _keys(splits.test)
    overlap = {
        "trained": _shared(tested, splits.train),
        "fitted_or_chosen": _shared(tested, splits.fit),
    }
    lines = [
        f"{len(splits.train):,} images trained and calibrated the networks",
        f"{chosen:,} images chose the tails",
        f"{fitted:,} images fitted what policies know, and chose static_best",
        f"{len(splits.test):,} images are tested on, in {sum(rows):,} rows: {rows[0]:,} clean"
        + (f", {rows[1]:,} in each of {len(rows) - 1} other conditions" if rows[1:] else ""),
    ]
    lines.append(
        "groups are drawn from these rows: intervals say what other groups of them would give, and "
        "not what other images would"
    )
    if largest > min(rows):
        lines.append(f"in groups of more than {min(rows):,} some rows occur twice")
    if same is False:
        lines.append("the bundle was built with other training images than these")
    if shared := sum(overlap.values()):
        lines.append(f"{shared} of the test images are among the others, byte for byte")
    return {
        "source": data.source,
        "classes": len(splits.test.classes),
        "trained": {"images": len(splits.train), "digest": digest},
        "chosen": {"images": chosen},
        "fitted": {"images": fitted},
        "tested": {"images": len(splits.test), "digest": splits.test.digest(), "rows": sum(rows)},
        "overlap": overlap,
        "same_data": same,
        "lines": lines,
    }


def _check_classes(wanted: tuple[str, ...], data: Data) -> None:
    given = data.splits.test.classes
    if given == wanted:
        return
    unknown = [name for name in given if name not in wanted]
    missing = [name for name in wanted if name not in given]
    parts = [f"{_some(unknown)} unknown to the bundle"] if unknown else []
    parts += [f"{_some(missing)} missing"] if missing else []
    message = f"{data.source} has {len(given)} classes: {' and '.join(parts) or 'another order'}."
    raise DataError(
        message,
        expected=f"the {len(wanted)} classes of the bundle: {_some(wanted)}.",
        remedy="compare on images of the kind that the bundle was built from.",
    )


def _some(names: list[str] | tuple[str, ...], most: int = 5) -> str:
    more = f", … ({len(names)})" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def _keys(images: Images) -> list[bytes]:
    """A digest of each image's pixels."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.pixels]


def _shared(tested: list[bytes], others: Images) -> int:
    known = set(_keys(others))
    return sum(key in known for key in tested)
