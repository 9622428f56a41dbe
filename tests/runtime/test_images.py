"""Images and deadlines are checked before anything touches the device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.bundle import ImageSpec
from opa_trt.errors import ConfigError, DeadlineError, ImageError
from opa_trt.runtime.images import check_deadline, check_images

BYTES = ImageSpec(16, "uint8", (0.0,) * 3, (1.0,) * 3)
FLOATS = ImageSpec(16, "float32", (0.0,) * 3, (1.0,) * 3)


def pixels(count: int = 2, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


def floats(count: int = 2, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((count, 3, 16, 16), dtype=np.float32)


def check(images: Any, spec: ImageSpec = BYTES, layout: str | None = None) -> Any:
    return check_images(images, spec, layout).numpy()


# --- what is taken ------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "spec"), [(pixels(), BYTES), (floats(), FLOATS)])
def test_right_images_come_back_as_they_are(images: Any, spec: ImageSpec) -> None:
    given = check_images(images, spec)
    assert given.is_contiguous()
    np.testing.assert_array_equal(given.numpy(), images)


def test_one_image_is_a_group() -> None:
    assert check(pixels(1)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("layout", [None, "NHWC"])
def test_nhwc_equals_nchw(layout: str | None) -> None:
    np.testing.assert_array_equal(check(pixels().transpose(0, 2, 3, 1), layout=layout), pixels())


def test_nhwc_in_its_own_memory_comes_back_contiguous() -> None:
    images = np.ascontiguousarray(pixels().transpose(0, 2, 3, 1))
    given = check_images(images, BYTES)
    assert given.is_contiguous()
    np.testing.assert_array_equal(given.numpy(), pixels())


def test_numpy_equals_torch() -> None:
    np.testing.assert_array_equal(check(torch.from_numpy(pixels())), check(pixels()))
    np.testing.assert_array_equal(check(torch.from_numpy(floats()), FLOATS), floats())


def test_a_tensor_that_is_being_trained_is_taken() -> None:
    np.testing.assert_array_equal(
        check(torch.from_numpy(floats()).requires_grad_(), FLOATS), floats()
    )


def test_images_that_are_not_contiguous_are_taken() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 32), dtype=np.uint8)
    for view in (wide[::2, ..., ::2], wide[1::2, :, ::-1, :16]):
        np.testing.assert_array_equal(check(view), np.ascontiguousarray(view))
    view = torch.from_numpy(wide)[::2, ..., ::2]
    np.testing.assert_array_equal(check(view), view.contiguous().numpy())


def test_read_only_images_are_taken() -> None:
    images = pixels()
    images.flags.writeable = False
    np.testing.assert_array_equal(check(images), images)


def test_another_byte_order_is_taken() -> None:
    np.testing.assert_array_equal(check(floats().astype(">f4"), FLOATS), floats())


@pytest.mark.parametrize("layout", [None, "NCHW"])
def test_the_input_is_not_changed(layout: str | None) -> None:
    images = pixels()
    before = images.copy()
    check(images, layout=layout)
    np.testing.assert_array_equal(images, before)


def test_the_ends_of_the_range_are_within() -> None:
    images = floats()
    images[0, 0, 0, :2] = 0.0, 1.0
    np.testing.assert_array_equal(check(images, FLOATS), images)


@given(count=st.integers(1, 5), seed=st.integers(0, 1000), flipped=st.booleans())
def test_layout_and_library_never_matter(count: int, seed: int, flipped: bool) -> None:
    images = pixels(count, seed)
    other = np.moveaxis(images, 1, 3) if flipped else images
    np.testing.assert_array_equal(check(torch.from_numpy(np.array(other))), images)


# --- what is not --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (pixels()[0], r"shape \(3, 16, 16\)"),
        (pixels()[None], r"shape \(1, 2, 3, 16, 16\)"),
        (pixels()[0, 0, 0], r"shape \(16,\)"),
        (np.zeros((), np.uint8), r"shape \(\)"),
        (pixels()[:0], "an empty group"),
        (pixels()[:, :, :15], r"shape \(2, 3, 15, 16\)"),
        (pixels()[..., :8, :8], "resize them to 16×16"),
        (pixels()[:, :1], "no axis has 3 channels"),
        (np.zeros((2, 4, 16, 16), np.uint8), "no axis has 3 channels"),
        (np.zeros((2, 16, 3, 16), np.uint8), "no axis has 3 channels"),
        (pixels().astype(np.float32), "images are float32"),
        (pixels().astype(np.int64), "images are int64"),
        (pixels().astype(bool), "images are bool"),
        (pixels().astype(np.int32), "images are int32"),
        (pixels().astype(object), "images are object"),
        (pixels().astype(str), "images are <U"),
        (pixels().astype(np.complex64), "images are complex64"),
        (torch.from_numpy(pixels()).half(), "images are float16"),
        (pixels().tolist(), "images are a list"),
        (None, "images are a NoneType"),
        ("cat.jpg", "images are a str"),
    ],
)
def test_bad_images_are_refused(images: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        check(images)
    assert caught.value.expected
    assert isinstance(caught.value, ValueError)


def test_a_single_image_is_told_to_add_the_batch() -> None:
    with pytest.raises(ImageError, match=r"images\[None\]"):
        check(pixels()[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_counted(value: float) -> None:
    images = floats(3)
    images[1, 2, 3, 4] = value
    with pytest.raises(ImageError, match="1 of 3 images have NaN or infinite values"):
        check(images, FLOATS)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
def test_values_out_of_range_are_refused(value: float) -> None:
    images = floats()
    images[0, 0, 0, 0] = value
    with pytest.raises(ImageError, match="divide 0 to 255 by 255"):
        check(images, FLOATS)


def test_bytes_for_a_bundle_of_floats_are_refused() -> None:
    with pytest.raises(ImageError, match="images are uint8"):
        check(pixels(), FLOATS)


@pytest.mark.parametrize("shape", [(2, 3, 16, 3), (2, 3, 3, 3)])
def test_an_ambiguous_layout_is_asked_for(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="layout='NCHW' or layout='NHWC'"):
        check(np.zeros(shape, np.uint8))


def test_a_layout_that_is_given_settles_it() -> None:
    tiny = ImageSpec(3, "uint8", (0.0,) * 3, (1.0,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    np.testing.assert_array_equal(check(images, tiny, "NCHW"), images)
    np.testing.assert_array_equal(check(images, tiny, "NHWC"), images.transpose(0, 3, 1, 2))


def test_a_layout_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ImageError, match=r"shape \(2, 3, 16, 16\)"):
        check(pixels(), layout="NHWC")


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of NCHW, NHWC"):
        check(pixels(), layout="CHWN")


# --- deadlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [20, 20.0, np.float32(20), torch.tensor(20.0), math.inf, 1e-9])
def test_a_number_above_0_is_a_deadline(value: Any) -> None:
    assert check_deadline(value, lambda: "") == float(value)


@pytest.mark.parametrize("value", [0, -1, -math.inf, math.nan, np.float64("nan"), -0.0])
def test_a_number_that_is_no_deadline_is_refused_and_what_is_possible_told(value: float) -> None:
    with pytest.raises(DeadlineError, match=r"The fastest route takes 3 ms"):
        check_deadline(value, lambda: "The fastest route takes 3 ms.")


@pytest.mark.parametrize("value", ["soon", None, [], object(), 1j, 10**400])
def test_what_is_no_number_is_no_deadline(value: Any) -> None:
    with pytest.raises(DeadlineError, match="is no number"):
        check_deadline(value, lambda: "")
