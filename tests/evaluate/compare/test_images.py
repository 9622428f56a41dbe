"""Images for a comparison, and how they were split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opa_trt.bundle import ImageSpec
from opa_trt.errors import DataError
from opa_trt.evaluate.compare.images import Data, check_enough, read_data, split_facts
from opa_trt.training.data import Splits

CLASSES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes ``train`` and ``test`` of these classes."""

    def make(classes: tuple[str, ...], train: int = 10, test: int = 4) -> Path:
        draw = np.random.default_rng(0)
        for part, count in (("train", train), ("test", test)):
            for name in classes:
                place = tmp_path / "photos" / part / name
                place.mkdir(parents=True)
                for i in range(count):
                    pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{i}.png")
        return tmp_path / "photos"

    return make


def test_a_folder_is_split_as_the_build_split_it(bundle: Any, folder: Any) -> None:
    data = read_data(bundle.manifest, folder(CLASSES))
    assert [len(part) for part in (data.splits.train, data.splits.fit, data.splits.test)] == [
        45, 5, 20,
    ]  # fmt: skip
    assert data.splits.test.pixels.shape[1:] == (3, 16, 16)


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (("ant", "bee", "cat", "dog", "eel"), "'eel' unknown to the bundle and 'elk' missing"),
        (CLASSES[:3], "'dog', 'elk' missing"),
        ((*CLASSES, "fox"), "'fox' unknown to the bundle"),
    ],
)
def test_other_classes_are_refused(
    bundle: Any, folder: Any, classes: tuple[str, ...], told: str
) -> None:
    with pytest.raises(DataError, match=told) as error:
        read_data(bundle.manifest, folder(classes))
    assert "the 5 classes of the bundle: 'ant', 'bee'" in error.value.expected


def test_a_bundle_of_a_folder_needs_one(bundle: Any) -> None:
    with pytest.raises(DataError, match="none is named") as error:
        read_data(bundle.manifest, None)
    assert "--data" in error.value.remedy


def test_a_bundle_of_digits_brings_its_own(bundle: Any) -> None:
    manifest = replace(
        bundle.manifest,
        recipe={"name": "digits", "seed": 0, "data": {"source": "digits"}},
        classes=tuple("0123456789"),
        images=ImageSpec(16, "uint8", (0.0,) * 3, (1.0,) * 3),
    )
    data = read_data(manifest, None)
    assert (data.source, len(data.splits.fit), len(data.splits.test)) == ("digits", 397, 400)


def test_too_few_images_are_refused_with_how_many_are_needed(data: Data) -> None:
    with pytest.raises(DataError, match="has 60 test images") as error:
        check_enough(data, 100)
    assert "at least 100" in error.value.expected
    fit = data.splits.fit.select([0])
    with pytest.raises(DataError, match="has 1 held-out images"):
        check_enough(Data("few", replace(data.splits, fit=fit)), 8)
    check_enough(data, 60)


def test_the_split_is_told(bundle: Any, data: Data) -> None:
    facts = split_facts(data, bundle.manifest, rows=[20] * 7, largest=30)
    assert facts["trained"]["images"] == 20
    assert (facts["chosen"]["images"], facts["fitted"]["images"]) == (6, 6)
    assert facts["tested"] == {"images": 60, "digest": data.splits.test.digest(), "rows": 140}
    assert facts["overlap"] == {"trained": 0, "fitted_or_chosen": 0}
    assert facts["same_data"] is None
    assert "in groups of more than 20 some rows occur twice" in facts["lines"]


@pytest.mark.parametrize("same", [True, False])
def test_other_training_images_than_the_bundles_are_told(
    bundle: Any, data: Data, same: bool
) -> None:
    built = data.splits.train.digest() if same else "0" * 64
    manifest = replace(bundle.manifest, report={"calibrate": {"data": built}})
    facts = split_facts(data, manifest, [60], 8)
    assert facts["same_data"] is same
    assert any("other training images" in line for line in facts["lines"]) is not same


def test_images_that_occur_on_both_sides_are_counted(bundle: Any, data: Data) -> None:
    splits = data.splits
    leaky = Splits(splits.test.select([0, 1, 2]), splits.test.select([2, 3]), splits.test)
    facts = split_facts(Data("leaky", leaky), bundle.manifest, [60], 8)
    assert facts["overlap"] == {"trained": 3, "fitted_or_chosen": 2}
    assert "5 of the test images are among the others, byte for byte" in facts["lines"]
