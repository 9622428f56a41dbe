"""Where a recipe's images come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opa_trt.builder.sources import load_splits, source_of
from opa_trt.errors import BadImageError, DataError
from opa_trt.progress import Progress


class Advances(Progress):
    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def advance(self, done: int, note: str = "") -> None:
        self.seen.append((done, note))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, six images of each to train and two to test."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (20, 18, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_a_source_says_what_the_recipe_says(make_recipe: Any) -> None:
    data = make_recipe().data
    source = source_of(make_recipe())
    assert (source.size, source.mean, source.std) == (data.size, data.mean, data.std)
    assert (source.degradations, source.clean) == (data.degradations, data.clean)


def test_digits_bring_their_own_images(make_recipe: Any) -> None:
    splits = load_splits(make_recipe(), None)
    assert splits.train.pixels.shape[1:] == (3, 16, 16)
    assert splits.train.classes == tuple("0123456789")


def test_the_recipes_seed_draws_the_splits(make_recipe: Any) -> None:
    one, other = (load_splits(make_recipe(seed=seed), None).train.digest() for seed in (0, 1))
    assert one != other


def test_digits_refuse_a_folder(make_recipe: Any, photos: Path) -> None:
    with pytest.raises(DataError, match="brings its own images") as caught:
        load_splits(make_recipe(), photos)
    assert str(photos) in caught.value.received
    assert caught.value.expected


def test_a_folder_recipe_needs_a_folder(make_recipe: Any) -> None:
    with pytest.raises(DataError, match="reads an image folder") as caught:
        load_splits(make_recipe(data={"source": "folder"}), None)
    assert "train/<class>" in caught.value.expected
    assert "--data" in caught.value.remedy


def test_a_folder_is_read_at_the_recipes_size(make_recipe: Any, photos: Path) -> None:
    splits = load_splits(make_recipe(data={"source": "folder", "size": 12}), photos)
    assert splits.train.pixels.shape[1:] == (3, 12, 12)
    assert splits.train.classes == ("cat", "dog")


def test_the_recipe_says_how_many_images_are_held_out(make_recipe: Any, photos: Path) -> None:
    splits = load_splits(make_recipe(data={"source": "folder", "holdout": 0.5}), photos)
    assert (len(splits.train), len(splits.fit), len(splits.test)) == (6, 6, 4)


def test_an_image_that_cannot_be_read_is_named(make_recipe: Any, photos: Path) -> None:
    bad = photos / "train" / "cat" / "0.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(BadImageError) as caught:
        load_splits(make_recipe(data={"source": "folder"}), photos)
    assert caught.value.paths == (bad,)


def test_an_image_that_cannot_be_read_is_left_out_if_asked(make_recipe: Any, photos: Path) -> None:
    bad = photos / "train" / "cat" / "0.png"
    bad.write_bytes(b"")
    recipe = make_recipe(data={"source": "folder"})
    assert load_splits(recipe, photos, skip_bad_images=True).skipped == (bad,)


def test_progress_hears_of_images(make_recipe: Any, photos: Path) -> None:
    heard = Advances()
    load_splits(make_recipe(data={"source": "folder"}), photos, progress=heard)
    assert heard.seen[-1] == (16, "of 16 images")
