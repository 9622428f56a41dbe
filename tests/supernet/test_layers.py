"""The rules that plain layers follow: rounding of channels, squeeze-and-excitation, sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from opa_trt.errors import ConfigError
from opa_trt.supernet.cost import Cost, linear_cost, squeeze_excite_cost
from opa_trt.supernet.layers import (
    GlobalPool,
    Residual,
    SqueezeExcite,
    activation,
    convolution,
    make_divisible,
    out_size,
)

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("channels", "rounded"),
    [
        (1, 8),  # never less than the divisor
        (8, 8),
        (11, 16),  # 8 would lose more than 10 %
        (12, 16),
        (18, 24),  # 16 would lose more than 10 %
        (19.2, 24),
        (28.8, 32),
        (35, 32),  # 32 loses less than 10 %
        (36, 40),
        (134.4, 136),
        (1152, 1152),
    ],
)
def test_channels_round_as_ofa_rounds_them(channels: float, rounded: int) -> None:
    assert make_divisible(channels) == rounded


@PROPERTY
@given(channels=st.floats(1, 3000), divisor=st.sampled_from([4, 8, 16]))
def test_rounding_loses_at_most_a_tenth(channels: float, divisor: int) -> None:
    rounded = make_divisible(channels, divisor)
    assert rounded % divisor == 0
    assert rounded >= 0.9 * channels
    assert rounded - channels <= divisor


@pytest.mark.parametrize(
    ("channels", "middle"), [(16, 8), (72, 24), (120, 32), (240, 64), (480, 120), (960, 240)]
)
def test_squeeze_and_excitation_reduces_to_a_rounded_quarter(channels: int, middle: int) -> None:
    layer = SqueezeExcite(channels)
    assert layer.reduce.out_channels == layer.expand.in_channels == middle


def test_squeeze_and_excitation_gates_by_a_hard_sigmoid() -> None:
    torch.manual_seed(0)
    layer, x = SqueezeExcite(16), torch.randn(2, 16, 3, 3)
    pooled = x.mean((2, 3))
    hidden = (pooled @ layer.reduce.weight.flatten(1).T + layer.reduce.bias).clamp(min=0)
    gate = hidden @ layer.expand.weight.flatten(1).T + layer.expand.bias
    expected = x * ((gate + 3).clamp(0, 6) / 6)[:, :, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_squeeze_and_excitation_costs_both_layers_with_biases() -> None:
    layer = SqueezeExcite(72)
    params = sum(p.numel() for p in layer.parameters())
    assert squeeze_excite_cost(72) == Cost(2 * 72 * 24, params)


def test_a_linear_layer_costs_its_weights_and_its_bias() -> None:
    assert linear_cost(10, 3) == Cost(30, 33)


@PROPERTY
@given(size=st.integers(1, 40), kernel=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3))
def test_the_output_size_is_the_convolutions(size: int, kernel: int, stride: int) -> None:
    out = convolution(1, 1, kernel, stride)(torch.zeros(1, 1, size, size))
    assert out.shape[-1] == out_size(size, stride)


def test_a_residual_adds_its_input() -> None:
    x = torch.arange(4.0).view(1, 1, 2, 2)
    torch.testing.assert_close(Residual(nn.Identity())(x), 2 * x)


def test_pooling_means_over_the_image() -> None:
    x = torch.arange(8.0).view(1, 2, 2, 2)
    torch.testing.assert_close(GlobalPool()(x), torch.tensor([1.5, 5.5]).view(1, 2, 1, 1))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match="'gelu'"):
        activation("gelu")
