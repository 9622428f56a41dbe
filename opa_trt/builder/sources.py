"""A recipe's images: loaded and split, and how they become inputs."""

from __future__ import annotations

from pathlib import Path

from opa_trt.builder.recipe import Recipe
from opa_trt.errors import DataError
from opa_trt.progress import Progress
from opa_trt.training.batches import Source
from opa_trt.training.data import Splits
from opa_trt.training.digits import load_digits
from opa_trt.training.folder import LAYOUT, load_folder


def source_of(recipe: Recipe) -> Source:
    """Size, normalisation and degradations of a recipe's images."""
    data = recipe.data
    return Source(data.size, data.mean, data.std, data.degradations, data.clean)


def load_splits(
    recipe: Recipe,
    folder: Path | None,
    *,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
) -> Splits:
    """The recipe's images, split into train, fit and test.

    Args:
        recipe: says where they come from.
        folder: the image folder, for ``data.source = "folder"``.
        skip_bad_images: leave out images that cannot be decoded, rather than refuse.
        progress: hears of images decoded.

    Raises:
        DataError: no folder where one is needed, or one that cannot be used.
    """
    progress = progress or Progress()
    if recipe.data.source == "digits":
        if folder is not None:
            message = f"recipe {recipe.name} brings its own images, and --data is {folder}."
            raise DataError(message, expected='data.source = "folder" in the recipe.')
        return load_digits(recipe.data.size, recipe.seed)
    if folder is None:
        message = f"recipe {recipe.name} reads an image folder, and none is named."
        raise DataError(message, expected=LAYOUT, remedy="add --data FOLDER.")
    return load_folder(
        folder,
        recipe.data.size,
        holdout=recipe.data.holdout,
        seed=recipe.seed,
        skip_bad_images=skip_bad_images,
        progress=lambda done, total: progress.advance(done, f"of {total} images"),
    )
