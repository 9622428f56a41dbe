"""Pools of images: as many of each condition, seeded, labels beside their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from opa_trt.builder import pooling
from opa_trt.builder.recipe import Recipe
from opa_trt.training.batches import Source
from opa_trt.training.data import Images

CLASSES = ("a", "b", "c")
PLAIN = Source(size=16)
DEGRADED = Source(size=16, degradations=("noise", "contrast"))


@pytest.fixture(scope="module")
def images() -> Images:
    """Thirty images; every pixel of the i-th is i × 8, and so its label is found again."""
    pixels = np.repeat(np.arange(30, dtype=np.uint8) * 8, 3 * 16 * 16).reshape(30, 3, 16, 16)
    return Images(pixels, np.arange(30, dtype=np.int64) % 3, CLASSES)


def rows_of(pixels: np.ndarray[Any, Any]) -> list[int]:
    """Which images these are, where nothing was done to them."""
    return [int(value) // 8 for value in pixels[:, 0, 0, 0]]


# --- conditions ---------------------------------------------------------------------------------


def test_conditions_are_clean_and_every_family_at_every_severity() -> None:
    found = pooling.conditions(DEGRADED)
    assert found[0] == ("clean", 0)
    assert len(found) == len(set(found)) == 1 + 2 * 3


def test_without_degradations_there_is_one_condition() -> None:
    assert pooling.conditions(PLAIN) == [("clean", 0)]


# --- draw, with degradations --------------------------------------------------------------------


def test_every_condition_has_as_many_images(images: Images) -> None:
    _, _, condition = pooling.draw(images, DEGRADED, 70, seed=0)
    assert np.bincount(condition).tolist() == [10] * 7


def test_a_pool_has_pixels_labels_and_conditions_of_one_length(images: Images) -> None:
    pixels, labels, condition = pooling.draw(images, DEGRADED, 70, seed=0)
    assert (pixels.shape, pixels.dtype) == ((70, 3, 16, 16), np.uint8)
    assert (labels.shape, labels.dtype) == ((70,), np.int64)
    assert (condition.shape, condition.dtype) == ((70,), np.int64)


def test_clean_images_are_as_they_were_beside_their_labels(images: Images) -> None:
    pixels, labels, condition = pooling.draw(images, DEGRADED, 70, seed=0)
    rows = rows_of(pixels[condition == 0])
    assert np.array_equal(pixels[condition == 0], images.pixels[rows])
    assert labels[condition == 0].tolist() == images.labels[rows].tolist()


def test_degraded_images_are_changed(images: Images) -> None:
    pixels, _, condition = pooling.draw(images, DEGRADED, 70, seed=0)
    flat = pixels.reshape(70, -1)
    assert (flat[condition > 0].std(axis=1) > 0).all()


def test_a_condition_repeats_no_image_where_there_are_enough(images: Images) -> None:
    pixels, _, condition = pooling.draw(images, DEGRADED, 7 * 30, seed=0)
    assert sorted(rows_of(pixels[condition == 0])) == list(range(30))


def test_a_condition_repeats_images_where_there_are_not(images: Images) -> None:
    pixels, _, _ = pooling.draw(images, DEGRADED, 7 * 50, seed=0)
    assert len(pixels) == 350


def test_every_condition_has_at_least_one_image(images: Images) -> None:
    _, _, condition = pooling.draw(images, DEGRADED, 1, seed=0)
    assert condition.tolist() == list(range(7))


@pytest.mark.parametrize("source", [PLAIN, DEGRADED], ids=["plain", "degraded"])
def test_a_seed_draws_the_same_pool(images: Images, source: Source) -> None:
    one, two, other = (pooling.draw(images, source, 28, seed=s)[0] for s in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


# --- draw, without ------------------------------------------------------------------------------


def test_without_degradations_no_image_is_drawn_twice(images: Images) -> None:
    pixels, labels, _ = pooling.draw(images, PLAIN, 20, seed=0)
    rows = rows_of(pixels)
    assert len(set(rows)) == 20
    assert labels.tolist() == images.labels[rows].tolist()


def test_without_degradations_there_are_at_most_all_images(images: Images) -> None:
    assert sorted(rows_of(pooling.draw(images, PLAIN, 500, seed=0)[0])) == list(range(30))


def test_without_degradations_the_condition_is_the_class(images: Images) -> None:
    _, labels, condition = pooling.draw(images, PLAIN, 20, seed=0)
    assert np.array_equal(condition, labels)
    assert condition is not labels


# --- what the exit head learns from -------------------------------------------------------------


def head_recipe(make_recipe: Any, count: int) -> Recipe:
    recipe: Recipe = make_recipe(pioneer={"images": count})
    return recipe


@pytest.mark.parametrize("count", [10, 30, 75])
def test_the_head_sees_as_many_degraded_images_as_asked(
    images: Images, make_recipe: Any, count: int
) -> None:
    batches, labels = pooling.head_images(images, DEGRADED, head_recipe(make_recipe, count))
    assert sum(map(len, batches)) == len(labels) == count


def test_without_degradations_the_head_sees_every_image_at_most_once(
    images: Images, make_recipe: Any
) -> None:
    batches, labels = pooling.head_images(images, PLAIN, head_recipe(make_recipe, 75))
    rows = rows_of(np.concatenate(batches))
    assert sorted(rows) == list(range(30))
    assert labels.tolist() == images.labels[rows].tolist()


def test_the_head_sees_every_image_before_any_again(images: Images, make_recipe: Any) -> None:
    _, labels = pooling.head_images(images, DEGRADED, head_recipe(make_recipe, 60))
    assert torch.bincount(labels).tolist() == [20, 20, 20]


def test_the_heads_images_come_in_batches(
    images: Images, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "BATCH", 8)
    batches, _ = pooling.head_images(images, DEGRADED, head_recipe(make_recipe, 20))
    assert [len(batch) for batch in batches] == [8, 8, 4]


# --- as a bundle reads them ---------------------------------------------------------------------


def test_bytes_stay_bytes(images: Images) -> None:
    found = pooling.as_input(images.pixels.copy(), floats=False)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), images.pixels)


def test_floats_run_from_0_to_1() -> None:
    pixels = np.array([0, 51, 255], dtype=np.uint8)
    found = pooling.as_input(pixels, floats=True)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([0.0, 0.2, 1.0])
