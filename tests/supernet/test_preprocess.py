"""From camera bytes to normalised inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from opa_trt.supernet.preprocess import Preprocess

MEAN, STD = (0.5, 0.25, 0.75), (0.5, 0.25, 0.2)


@pytest.fixture
def pixels() -> Tensor:
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(0, 256, (2, 3, 8, 8), np.uint8))


def test_bytes_are_scaled_and_normalised_by_channel(pixels: Tensor) -> None:
    found = Preprocess(8, 8, MEAN, STD)(pixels)
    for channel in range(3):
        expected = (pixels[:, channel] / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(found[:, channel], expected, atol=1e-5, rtol=1e-5)


def test_floats_from_0_to_1_give_what_bytes_give(pixels: Tensor) -> None:
    from_floats = Preprocess(8, 12, MEAN, STD, bytes_in=False)(pixels.float() / 255)
    torch.testing.assert_close(
        from_floats, Preprocess(8, 12, MEAN, STD)(pixels), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("resolution", [4, 8, 12])
def test_the_output_has_the_resolution_that_the_network_reads(
    pixels: Tensor, resolution: int
) -> None:
    found = Preprocess(8, resolution, MEAN, STD)(pixels)
    assert found.shape == (2, 3, resolution, resolution)
    assert found.dtype == torch.float32


def test_halving_averages_pairs(pixels: Tensor) -> None:
    found = Preprocess(8, 4, (0, 0, 0), (1 / 255,) * 3)(pixels)
    expected = pixels.float().view(2, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_a_plain_image_stays_plain_at_any_resolution() -> None:
    found = Preprocess(8, 12, MEAN, STD)(torch.full((1, 3, 8, 8), 51, dtype=torch.uint8))
    expected = torch.tensor([(0.2 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(found, expected.view(1, 3, 1, 1).expand(1, 3, 12, 12))


def test_what_it_normalises_by_moves_with_the_module() -> None:
    assert set(Preprocess(8, 8, MEAN, STD).state_dict()) == {"mean", "std"}
