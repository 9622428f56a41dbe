"""Batches: functions of (seed, phase, step), augmented, degraded, resized, normalised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from opa_trt.training.augment import Augmentation
from opa_trt.training.batches import Batches, Source
from opa_trt.training.data import Images

SIDE = 16
# Normalises to the bytes themselves, so that inputs can be compared with pixels.
BYTES = Source(size=SIDE, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)


@pytest.fixture(scope="module")
def images() -> Images:
    """20 images of random pixels; the first pixel is the image's number."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, SIDE, SIDE), np.uint8)
    pixels[:, :, 0, 0] = np.arange(20)[:, None]
    return Images(pixels, np.arange(20) % 3, ("a", "b", "c"))


@pytest.fixture
def batches(images: Images) -> Batches:
    return Batches(images, BYTES, batch_size=6, seed=1)


def numbers(inputs: torch.Tensor) -> list[int]:
    return inputs[:, 0, 0, 0].round().int().tolist()


# --- what a step reads --------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2, 3, 50])
def test_a_batch_is_a_function_of_seed_phase_and_step(images: Images, step: int) -> None:
    source = replace(BYTES, degradations=("noise", "blur"))
    drawn = Augmentation(shift=2, flip=True)
    first, second = (Batches(images, source, 6, 1, drawn) for _ in range(2))
    first.batch(0, 7, 16)  # what came before does not matter
    for found, expected in zip(first.batch(2, step, 16), second.batch(2, step, 16), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("seed", "phase", "step"), [(2, 0, 0), (1, 1, 0), (1, 0, 1), (1, 0, 3)])
def test_another_seed_phase_or_step_draws_other_images(
    images: Images, batches: Batches, seed: int, phase: int, step: int
) -> None:
    other = replace(batches, seed=seed)
    found, expected = other.batch(phase, step, 16)[0], batches.batch(0, 0, 16)[0]
    assert numbers(found) != numbers(expected)


def test_another_step_draws_another_augmentation(images: Images) -> None:
    batches = Batches(images.select([0]), BYTES, 1, 1, Augmentation(shift=4))
    drawn = [batches.batch(0, step, 16)[0] for step in range(8)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_an_epoch_reads_no_image_twice(batches: Batches) -> None:
    seen = [n for step in range(3) for n in numbers(batches.batch(0, step, 16)[0])]
    assert len(set(seen)) == 18


def test_labels_belong_to_their_images(batches: Batches) -> None:
    inputs, labels = batches.batch(0, 4, 16)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [number % 3 for number in numbers(inputs)]


def test_a_batch_larger_than_the_images_holds_them_all(batches: Batches) -> None:
    inputs, _ = replace(batches, batch_size=64).batch(0, 5, 16)
    assert sorted(numbers(inputs)) == list(range(20))


def test_inputs_have_the_resolution_asked_for(batches: Batches) -> None:
    assert batches.batch(0, 0, 24)[0].shape == (6, 3, 24, 24)


def test_without_augmentation_inputs_are_the_pixels(images: Images, batches: Batches) -> None:
    inputs, _ = batches.batch(0, 0, 16)
    expected = torch.tensor(images.pixels[numbers(inputs)]).float()
    torch.testing.assert_close(inputs, expected, atol=1e-3, rtol=1e-5)


# --- sources ------------------------------------------------------------------------------------


def test_a_source_normalises_by_channel() -> None:
    source = Source(size=4, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    inputs = source.tensor(np.full((1, 3, 4, 4), 255, np.uint8))
    expected = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(inputs, expected)


def test_a_source_without_degradations_changes_no_pixel(images: Images) -> None:
    assert BYTES.degrade(images.pixels, seed=0) is images.pixels


def test_degradations_follow_the_seed(images: Images) -> None:
    source = replace(BYTES, degradations=("contrast",), clean=0.0)
    first, again, other = (source.degrade(images.pixels, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).all()
    assert (first != images.pixels).any((1, 2, 3)).all()


def sizes(source: Source, images: Images, limit: int, batch_size: int) -> list[int]:
    return [len(batch) for batch in source.inputs(images, limit, batch_size, SIDE)]


@pytest.mark.parametrize(
    ("limit", "batch_size", "expected"), [(20, 8, [8, 8, 4]), (10, 8, [8, 2]), (99, 20, [20])]
)
def test_calibration_reads_at_most_the_limit(
    images: Images, limit: int, batch_size: int, expected: list[int]
) -> None:
    assert sizes(BYTES, images, limit, batch_size) == expected


def test_calibration_reads_no_image_twice(images: Images) -> None:
    seen = [n for batch in BYTES.inputs(images, 20, 8, SIDE) for n in numbers(batch)]
    assert sorted(seen) == list(range(20))


def test_calibration_degrades_images_anew_until_the_limit(images: Images) -> None:
    source = replace(BYTES, degradations=("noise",))
    assert sizes(source, images, 50, 20) == [20, 20, 10]


def test_calibration_leaves_out_a_last_batch_of_one_image(images: Images) -> None:
    assert sizes(BYTES, images, 17, 8) == [8, 8]


def test_calibration_keeps_batches_of_one_image_where_they_were_asked_for(images: Images) -> None:
    assert sizes(BYTES, images, 3, 1) == [1, 1, 1]


def test_calibration_keeps_an_only_image(images: Images) -> None:
    assert sizes(BYTES, images.select([0]), 5, 8) == [1]


def test_calibration_reads_the_same_every_time(images: Images) -> None:
    source: Any = replace(BYTES, degradations=("noise",))
    first, again = (torch.cat(list(source.inputs(images, 30, 8, SIDE))) for _ in range(2))
    assert torch.equal(first, again)
