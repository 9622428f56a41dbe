"""A user's own images: ``train/<class>/*.jpg`` and ``test/<class>/*.jpg`` below one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opa_trt.errors import DataError
from opa_trt.training.data import Images, Labels, Progress, Splits, draw, read_images

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
LAYOUT = 'train/<class>/*.jpg and test/<class>/*.jpg (README, "Your own images")'
LIMIT_TRAIN, LIMIT_TEST, HOLD_OUT = range(3)  # what a seed is used for


@dataclass(frozen=True)
class _Listing:
    """Files of one split, and the label of each ([N] int64)."""

    files: tuple[Path, ...]
    labels: Labels

    def take(self, rows: NDArray[np.int64]) -> _Listing:
        return _Listing(tuple(self.files[row] for row in rows), self.labels[rows])


def image_files(folder: Path | str) -> list[Path]:
    """Every picture below ``folder`` by its extension, at any depth, in a fixed order.

    Hidden files and folders are ignored. Raises ``DataError`` where ``folder`` is not a folder.
    """
    top = Path(folder)
    if not top.is_dir():
        message = f"{top} {'is not a folder' if top.exists() else 'does not exist'}."
        raise DataError(message, expected="a folder of images.", remedy="check the path.")
    found = [path for path in top.rglob("*") if _is_picture(path, top)]
    return sorted(found, key=lambda path: path.relative_to(top).as_posix())


def load_folder(
    root: Path | str,
    size: int,
    *,
    holdout: float = 0.1,
    seed: int = 0,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
    limit: int | None = None,
) -> Splits:
    """Read ``root/train/<class>/`` and ``root/test/<class>/`` (or ``val``), [N, 3, size, size].

    Classes are the folders of train, by name; a class's images may lie deeper. ``fit`` is the
    fraction ``holdout`` of each class of train, drawn with ``seed``. ``limit`` keeps at most that
    many images of each class in train (``fit`` included) and in test. ``progress(done, total)``
    counts images. Raises ``DataError`` for a layout or a number that cannot be used, and
    ``BadImageError`` for unreadable images, unless ``skip_bad_images`` (see ``Splits.skipped``).
    """
    _check_numbers(holdout, limit)
    learn_folder, test_folder = _split_folders(Path(root).expanduser())
    classes = _classes(learn_folder, test_folder)
    learn = _limited(_listing(learn_folder, classes), limit, (seed, LIMIT_TRAIN))
    test = _limited(_listing(test_folder, classes), limit, (seed, LIMIT_TEST))
    train, fit = _held_out(learn, holdout, (seed, HOLD_OUT))
    return _read((train, fit, test), classes, size, skip_bad_images, progress)


def _is_picture(path: Path, top: Path) -> bool:
    if path.suffix.lower() not in EXTENSIONS:
        return False
    hidden = any(part.startswith(".") for part in path.relative_to(top).parts)
    # A link that leads nowhere is listed, and turns out to be a bad image when it is read.
    return not hidden and (path.is_file() or path.is_symlink())


def _layout_error(received: str, remedy: str) -> DataError:
    return DataError(received, expected=LAYOUT, remedy=remedy)


def _check_numbers(holdout: float, limit: int | None) -> None:
    if not 0 < holdout <= 0.5:
        message = f"holdout {holdout:g} is out of range."
        raise DataError(message, expected="above 0 and at most 0.5 (of each class of train).")
    if limit is not None and limit < 1:
        message = f"limit {limit} is out of range."
        raise DataError(message, expected="at least 1 image of each class, or None for all.")


def _split_folders(root: Path) -> tuple[Path, Path]:
    """The folders of train and of test; ``val`` where ``test`` is missing or has no classes."""
    message = ""
    if not root.is_dir():
        message = f"{root} {'is not a folder' if root.exists() else 'does not exist'}."
    elif not (root / "train").is_dir():
        message = f"{root} has no folder 'train'."
    if message:
        raise _layout_error(message, "check the path.")
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not tests:
        message = f"{root} has neither a folder 'test' nor 'val'."
        raise _layout_error(message, "move some images of each class out of train.")
    return root / "train", next((each for each in tests if _subfolders(each)), tests[0])


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(train: Path, test: Path) -> tuple[str, ...]:
    classes = _subfolders(train)
    if len(classes) < 2:
        found = f"1 class folder ({classes[0]!r})" if classes else "no class folders"
        message = f"{train} has {found}; at least 2 are needed."
        raise _layout_error(message, "give each class a folder of its own.")
    unknown = [name for name in _subfolders(test) if name not in classes]
    if unknown:
        message = f"{test} has the class folder {unknown[0]!r}, which {train} lacks."
        raise _layout_error(message, "rename or remove it, or add it to train.")
    return tuple(classes)


def _listing(folder: Path, classes: tuple[str, ...]) -> _Listing:
    """The pictures of every class folder there is (test may lack some, but not all)."""
    names = _subfolders(folder)
    if not names:
        message = f"{folder} has no class folders."
        raise _layout_error(message, "give it class folders named like those of train.")
    files = {name: image_files(folder / name) for name in names}
    empty = [name for name in names if not files[name]]
    if empty:
        message = f"the class folder {folder / empty[0]} has no images."
        raise _layout_error(message, "add images (jpg, png, bmp, webp), or remove the folder.")
    counts = [len(files.get(name, ())) for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return _Listing(tuple(path for name in names for path in files[name]), labels)


def _limited(listing: _Listing, limit: int | None, seed: tuple[int, int]) -> _Listing:
    if limit is None:
        return listing
    quotas = [limit] * (int(listing.labels.max()) + 1)
    return listing.take(draw(listing.labels, quotas, seed))


def _held_out(
    listing: _Listing, holdout: float, seed: tuple[int, int]
) -> tuple[_Listing, _Listing]:
    """Train and fit: of every class with 2 images or more, at least 1 is in each."""
    counts = np.bincount(listing.labels)
    quotas = np.minimum(np.maximum(np.rint(counts * holdout), 1), counts - 1).astype(int)
    fit = draw(listing.labels, quotas.tolist(), seed)
    if not len(fit):
        message = f"train has {len(listing.files)} images, 1 of each class: none can be held out."
        raise _layout_error(message, "add images to train, or raise limit to 2 or more.")
    rest = np.delete(np.arange(len(listing.files)), fit)
    return listing.take(rest), listing.take(fit)


def _read(
    parts: Sequence[_Listing],
    classes: tuple[str, ...],
    size: int,
    skip_bad_images: bool,
    progress: Progress | None,
) -> Splits:
    """Decode all parts into one array, of which each split is a slice."""
    files = [path for part in parts for path in part.files]
    pixels, _, bad = read_images(files, size, skip_bad_images=skip_bad_images, progress=progress)
    images, start, gone = [], 0, set(bad)
    for part in parts:
        labels = part.labels[[path not in gone for path in part.files]]
        images.append(Images(pixels[start : start + len(labels)], labels, classes))
        start += len(labels)
    _check_what_is_left(*images)
    return Splits(images[0], images[1], images[2], skipped=tuple(bad))


def _check_what_is_left(train: Images, fit: Images, test: Images) -> None:
    for label, name in enumerate(train.classes):
        if label not in train.labels:
            message = f"no readable image of class {name!r} is left in train."
            raise _layout_error(message, "replace the unreadable images.")
    for name, images in (("train's holdout", fit), ("test", test)):
        if not len(images):
            message = f"no readable image is left in {name}."
            raise _layout_error(message, "replace the unreadable images.")
