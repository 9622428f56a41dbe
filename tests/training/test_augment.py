"""Augmentation: each change is the one it says, image by image, and drawn anew each step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opa_trt.training.augment import UNCHANGED, Augmentation
from opa_trt.training.batches import Batches, Source
from opa_trt.training.data import Images

SIDE = 16
COUNT = 20
MEAN = (0.2, 0.4, 0.6)
CLASSES = ("a", "b", "c")
# Normalises to the bytes themselves, so that inputs can be compared with pixels.
BYTES = Source(size=SIDE, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)


def pixels_of(seed: int = 0) -> Tensor:
    drawn = np.random.default_rng(seed).integers(0, 256, (COUNT, 3, SIDE, SIDE), np.uint8)
    return torch.from_numpy(drawn)


def changed(augmentation: Augmentation, pixels: Tensor, seed: int = 1) -> Tensor:
    return augmentation.change(pixels, np.random.default_rng(seed), MEAN)


def mixed(cutmix: float, pixels: Tensor, labels: Tensor, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = np.random.default_rng(seed)
    return Augmentation(cutmix=cutmix).mix(pixels, labels, len(CLASSES), draw)


# --- changes of one image -----------------------------------------------------------------------


def test_by_default_nothing_is_changed() -> None:
    pixels, labels = pixels_of(), torch.arange(COUNT) % 3
    assert changed(UNCHANGED, pixels) is pixels
    assert mixed(0.0, pixels, labels) == (pixels, labels)


def test_a_flip_mirrors_some_images_and_leaves_the_others() -> None:
    pixels = pixels_of()
    found = changed(Augmentation(flip=True), pixels)
    kept = (found == pixels).all(3).all(2).all(1)
    mirrored = (found == pixels.flip(3)).all(3).all(2).all(1)
    assert (kept ^ mirrored).all()
    assert 3 < mirrored.sum() < 17


def test_a_shift_moves_each_image_and_repeats_its_edges() -> None:
    margin, pixels = 2, pixels_of()
    found = changed(Augmentation(shift=margin), pixels).numpy()
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (margin,) * 2, (margin,) * 2), mode="edge")
    offsets = set()
    for image, wide in zip(found, padded, strict=True):
        places = [
            (top, left)
            for top in range(2 * margin + 1)
            for left in range(2 * margin + 1)
            if (wide[:, top : top + SIDE, left : left + SIDE] == image).all()
        ]
        assert len(places) == 1
        offsets.update(places)
    assert len(offsets) > 8


def test_cutout_gives_each_image_one_square_of_the_mean_colour() -> None:
    pixels = pixels_of()
    found = changed(Augmentation(cutout=6), pixels)
    sizes = set()
    for image, where in zip(found, (found != pixels).any(1), strict=True):
        rows, columns = where.any(1).nonzero().squeeze(1), where.any(0).nonzero().squeeze(1)
        box = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == torch.tensor([51, 102, 153], dtype=torch.uint8)[:, None, None]).all()
        sizes.add(tuple(box.shape[1:]))
    assert (6, 6) in sizes
    assert all(max(size) <= 6 for size in sizes)
    assert len(sizes) > 1  # some reach beyond the edge


def test_colours_are_scaled_by_no_more_than_is_said() -> None:
    grey = torch.full((COUNT, 3, 4, 4), 100, dtype=torch.uint8)  # no saturation, no contrast
    found = changed(Augmentation(colour=0.2), grey)
    assert (found == found[:, :1, :1, :1]).all()
    levels = found[:, 0, 0, 0]
    assert levels.min() >= 80
    assert levels.max() <= 120
    assert len(levels.unique()) > 8  # each image by itself


def test_less_saturation_brings_channels_together_and_less_contrast_pixels() -> None:
    pixels = pixels_of() // 4 + 96
    found = changed(Augmentation(colour=0.5), pixels).float()
    ratio = (found.std(1).mean((1, 2)) / pixels.float().std(1).mean((1, 2))).numpy()
    assert 0.5**3 - 0.1 < ratio.min() < 0.8 < 1.2 < ratio.max() < 1.5**3 + 0.1


def test_colours_stay_within_bytes() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(COUNT, 3, 4, 2)
    found = changed(Augmentation(colour=0.9), pixels)
    assert found.dtype == torch.uint8
    dark, bright = found[..., ::2].float(), found[..., 1::2].float()
    assert (dark <= bright).all()


# --- images mixed with each other ---------------------------------------------------------------


@given(seed=st.integers(0, 2**32), cutmix=st.floats(0.01, 1))
def test_labels_are_shared_by_the_area_that_each_image_has(seed: int, cutmix: float) -> None:
    labels = torch.arange(COUNT) % 3
    flat = labels.byte()[:, None, None, None].repeat(1, 3, SIDE, SIDE)  # each pixel says its class
    pixels, shares = mixed(cutmix, flat, labels, seed)
    for label in range(3):
        area = (pixels[:, 0] == label).float().mean((1, 2))
        torch.testing.assert_close(shares[:, label], area)


def test_what_is_mixed_in_is_a_rectangle_at_the_same_place_of_one_other() -> None:
    pixels, labels = pixels_of(), torch.arange(COUNT) % 3
    found, _ = mixed(1.0, pixels, labels)
    different = (found != pixels).any(1)
    assert different.any(2).any(1).sum() > COUNT / 2
    for image, where in zip(found, different, strict=True):
        if not where.any():  # mixed with itself, or less than a pixel
            continue
        rows, columns = where.any(1).nonzero().squeeze(1), where.any(0).nonzero().squeeze(1)
        box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        sources = [(other[box] == image[box]).all() for other in pixels]
        assert sum(sources) == 1


@pytest.mark.parametrize(("cutmix", "least", "most"), [(0.2, 20, 60), (0.8, 120, 180)])
def test_so_large_a_share_of_images_is_mixed(cutmix: float, least: int, most: int) -> None:
    labels = torch.arange(COUNT) % 3
    found = [mixed(cutmix, pixels_of(), labels, seed)[0] for seed in range(10)]
    count = sum(int((one != pixels_of()).flatten(1).any(1).sum()) for one in found)
    assert least <= count <= most


# --- in batches ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> Images:
    return Images(pixels_of().numpy(), np.arange(COUNT) % 3, CLASSES)


FULLY = Augmentation(shift=3, flip=True, cutout=4, colour=0.3, cutmix=0.5)


def test_augmentation_leaves_the_images_alone(images: Images) -> None:
    before = images.digest()
    Batches(images, BYTES, COUNT, 1, FULLY).batch(0, 0, 16)
    assert images.digest() == before


def test_a_batch_is_augmented_the_same_each_time_and_another_step_differently(
    images: Images,
) -> None:
    first, second = (Batches(images, BYTES, COUNT, 1, FULLY) for _ in range(2))
    first.batch(0, 3, 16)  # what came before does not matter
    for found, expected in zip(first.batch(0, 7, 16), second.batch(0, 7, 16), strict=True):
        assert torch.equal(found, expected)
    assert not torch.equal(first.batch(0, 8, 16)[0], first.batch(0, 7, 16)[0])


@pytest.mark.parametrize(("cutmix", "shape"), [(0.0, (COUNT,)), (0.5, (COUNT, 3))])
def test_labels_become_shares_where_images_are_mixed(
    images: Images, cutmix: float, shape: tuple[int, ...]
) -> None:
    _, labels = Batches(images, BYTES, COUNT, 1, Augmentation(cutmix=cutmix)).batch(0, 0, 16)
    assert labels.shape == shape


def test_images_are_degraded_before_they_are_mixed(images: Images) -> None:
    source = replace(BYTES, degradations=("noise",), clean=0.0)
    batches = Batches(images, source, COUNT, 1, Augmentation(cutmix=1.0))
    inputs, _ = batches.batch(0, 0, 16)
    degraded, _ = replace(batches, augmentation=UNCHANGED).batch(0, 0, 16)
    assert not torch.equal(inputs, degraded)
    found = (inputs[:, None] == degraded[None]).all(2)  # [image, other, row, column]
    assert found.any(1).all()
