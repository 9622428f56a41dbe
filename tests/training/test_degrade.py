"""Degradations are seeded, leave their input alone, and treat every image by itself."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opa_trt.errors import ConfigError, DataError, UnknownNameError
from opa_trt.training.degrade import CLEAN, FAMILIES, LEVELS, RAMP, degrade, drift, mixed

Pixels = npt.NDArray[np.uint8]
some_families = st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=5, unique=True)
seeds = st.integers(0, 2**31)


def pictures(count: int, size: int = 32, seed: int = 5) -> Pixels:
    """Smooth random pictures ``[count, 3, size, size] uint8`` that use the whole range."""
    coarse = np.random.default_rng(seed).random((count, 3, 4, 4))
    fine = coarse.repeat(-(-size // 4), 2).repeat(-(-size // 4), 3)[..., :size, :size]
    return (fine * 255).astype(np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 7, 32])
def test_every_family_keeps_shape_and_input(family: str, size: int) -> None:
    pixels = pictures(3, size)
    before = pixels.copy()
    pixels.flags.writeable = False
    result = degrade(pixels, family, 2, seed=1)
    assert result.dtype == np.uint8
    assert result.shape == pixels.shape
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_images(family: str) -> None:
    pixels = pictures(4)
    first = degrade(pixels, family, 3, seed=7)
    np.testing.assert_array_equal(first, degrade(pixels, family, 3, seed=7))
    assert (first != degrade(pixels, family, 3, seed=8)).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_higher_severity_is_further_from_the_clean_image(family: str) -> None:
    pixels = pictures(40)
    distances = [
        np.abs(degrade(pixels, family, severity, 0).astype(float) - pixels).mean()
        for severity in (0, *LEVELS)
    ]
    assert distances[0] == 0
    assert distances == sorted(set(distances))


def test_severity_0_is_an_unchanged_copy() -> None:
    pixels = pictures(2)
    for family in (CLEAN, *FAMILIES):
        result = degrade(pixels, family, 0, seed=0)
        np.testing.assert_array_equal(result, pixels)
        assert not np.shares_memory(result, pixels)


def test_noise_has_the_deviation_of_the_table() -> None:
    grey = np.full((50, 3, 32, 32), 128, np.uint8)
    assert degrade(grey, "noise", 1, 0).std() == pytest.approx(LEVELS[1].noise, rel=0.05)


def test_blur_scales_with_the_image() -> None:
    small, large = np.zeros((1, 3, 32, 32), np.uint8), np.zeros((1, 3, 96, 96), np.uint8)
    small[..., 16:], large[..., 48:] = 255, 255
    blurred = degrade(small, "blur", 3, 0).mean((0, 1, 2))
    shrunk = degrade(large, "blur", 3, 0).mean((0, 1, 2)).reshape(32, 3).mean(1)
    np.testing.assert_allclose(blurred, shrunk, atol=12)


def test_occlusion_covers_the_share_of_the_table() -> None:
    black = np.zeros((400, 3, 32, 32), np.uint8)
    covered = (degrade(black, "occlusion", 3, 0) > 0).mean()
    assert covered == pytest.approx(0.45, abs=0.03)


def test_low_light_and_contrast_leave_little_of_the_range() -> None:
    pixels = pictures(20)
    assert degrade(pixels, "low_light", 3, 0).mean() < 0.12 * pixels.mean()
    spread = degrade(pixels, "contrast", 3, 0).std((1, 2, 3)).mean()
    assert spread < 0.3 * pixels.std((1, 2, 3)).mean()


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 80), families=some_families, seed=seeds, clean=st.floats(0, 1))
def test_mixed_is_degrade_of_each_image(
    count: int, families: list[str], seed: int, clean: float
) -> None:
    pixels = pictures(count, size=8)
    result, index, severity = mixed(pixels, families, seed, clean=clean)
    np.testing.assert_array_equal(index < 0, severity == 0)
    for row in range(0, count, 9):
        family = families[index[row]] if index[row] >= 0 else CLEAN
        alone = degrade(pixels, family, int(severity[row]), seed)
        np.testing.assert_array_equal(result[row], alone[row])


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 90), seed=seeds, data=st.data())
def test_an_image_does_not_depend_on_its_neighbours(
    count: int, seed: int, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, count - 1))
    pixels = pictures(count, size=8)
    others = 255 - pixels
    others[row] = pixels[row]
    whole = mixed(pixels, FAMILIES, seed)
    part = mixed(others[: row + 1], FAMILIES, seed)
    np.testing.assert_array_equal(whole[0][row], part[0][row])
    assert (whole[1][row], whole[2][row]) == (part[1][row], part[2][row])


def test_mixed_draws_families_severities_and_clean_images_evenly() -> None:
    _, index, severity = mixed(pictures(4000, size=4), FAMILIES, 3, clean=0.25)
    assert (index < 0).mean() == pytest.approx(0.25, abs=0.03)
    for kind in range(len(FAMILIES)):
        assert (index == kind).mean() == pytest.approx(0.15, abs=0.03)
    for level in LEVELS:
        assert (severity == level).mean() == pytest.approx(0.25, abs=0.03)
    assert index.dtype == severity.dtype == np.int64


def test_the_clean_share_can_be_none_or_all() -> None:
    pixels = pictures(60, size=8)
    assert (mixed(pixels, ["blur"], 0, clean=0)[1] == 0).all()
    np.testing.assert_array_equal(mixed(pixels, ["blur"], 0, clean=1)[0], pixels)


@settings(max_examples=60, deadline=None)
@given(extra=st.integers(0, 300), families=some_families, seed=seeds)
def test_drift_never_jumps(extra: int, families: list[str], seed: int) -> None:
    length = 1 + 6 * len(families) + extra
    schedule = drift(length, families, seed)
    assert len(schedule) == length
    assert schedule[0] == schedule[-1] == (CLEAN, 0)
    for (before, low), (after, high) in pairwise(schedule):
        assert abs(low - high) <= 1
        assert before == after or 0 in (low, high)
    assert {name for name, _ in schedule} == {CLEAN, *families}


@settings(max_examples=40, deadline=None)
@given(length=st.integers(0, 40), families=some_families, seed=seeds)
def test_drift_is_a_function_of_its_arguments(length: int, families: list[str], seed: int) -> None:
    schedule = drift(length, families, seed)
    assert len(schedule) == length
    assert schedule == drift(length, families, seed)


def test_drift_ramps_each_family_up_and_down() -> None:
    schedule = drift(31, FAMILIES, seed=2)
    counts = Counter(schedule)
    for family in FAMILIES:
        assert [severity for name, severity in schedule if name == family] == list(RAMP)
    assert counts[(CLEAN, 0)] == 6
    assert len({tuple(drift(31, FAMILIES, seed)) for seed in range(9)}) > 1


def test_every_step_of_a_drift_can_be_applied() -> None:
    pixels = pictures(1, size=4)
    for family, severity in drift(31, FAMILIES, seed=0):
        assert degrade(pixels, family, severity, 0).shape == pixels.shape


def test_an_unknown_family_names_the_nearest() -> None:
    pixels = pictures(1)
    with pytest.raises(UnknownNameError, match=r"(?s)'nois'.*did you mean 'noise'"):
        degrade(pixels, "nois", 1, 0)
    with pytest.raises(UnknownNameError, match=r"(?s)'lowlight'.*did you mean 'low_light'"):
        mixed(pixels, ["blur", "lowlight"], 0)
    with pytest.raises(UnknownNameError, match="'fog'"):
        drift(9, ["fog"], 0)


@pytest.mark.parametrize(("family", "severity"), [("blur", 4), ("blur", -1), (CLEAN, 1)])
def test_an_unknown_severity_is_refused(family: str, severity: int) -> None:
    with pytest.raises(ConfigError, match=f"{family} has no severity {severity}"):
        degrade(pictures(1), family, severity, 0)


def test_other_bad_choices_are_refused() -> None:
    pixels = pictures(1)
    with pytest.raises(ConfigError, match="not a list of names"):
        mixed(pixels, [], 0)
    with pytest.raises(ConfigError, match="not a list of names"):
        drift(5, "blur", 0)
    with pytest.raises(ConfigError, match="clean share"):
        mixed(pixels, FAMILIES, 0, clean=1.5)
    with pytest.raises(ConfigError, match="-1 groups"):
        drift(-1, FAMILIES, 0)


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 8), (3, 8, 8)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"(?s)pixels are uint8 of shape.*N, 3, S, S"):
        degrade(np.zeros(shape, np.uint8), "blur", 1, 0)


def test_pixels_of_another_type_are_refused() -> None:
    with pytest.raises(DataError, match="pixels are int64"):
        mixed(np.zeros((1, 3, 8, 8), np.int64), FAMILIES, 0)
