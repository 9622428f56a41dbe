"""Depthwise convolutions in bfloat16: the values and gradients of float32, within rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from opa_trt.training.depthwise import QuickDepthwise

CHANNELS = 8
ROUNDING = 2**-8  # of bfloat16; some processors' kernels round once for each row of the weights


def images(side: int) -> Tensor:
    """``[3, CHANNELS, side, side]``, exact in bfloat16."""
    drawn = torch.randn(3, CHANNELS, side, side, generator=torch.Generator().manual_seed(0))
    return drawn.bfloat16().contiguous(memory_format=torch.channels_last)


def weights(kernel: int) -> Tensor:
    drawn = torch.randn(CHANNELS, 1, kernel, kernel, generator=torch.Generator().manual_seed(1))
    return drawn.bfloat16().float()


def computed(x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the gradients of ``x`` and ``weight`` for a gradient that varies."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=CHANNELS)
    slope = torch.linspace(-1, 1, out.numel()).view(out.shape).bfloat16().to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, (x, weight), slope)


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_values_and_gradients_are_those_of_float32(kernel: int, stride: int, side: int) -> None:
    x, weight = images(side), weights(kernel)
    with QuickDepthwise():
        found = computed(x, weight, stride)
    for value, expected in zip(found, computed(x.float(), weight, stride), strict=True):
        assert value.shape == expected.shape
        error = (value.float() - expected).abs().max() / expected.abs().max()
        assert error < kernel * ROUNDING


def test_gradients_have_the_dtypes_of_what_they_belong_to() -> None:
    with QuickDepthwise():
        out, of_x, of_weight = computed(images(8), weights(5), 1)
    assert (out.dtype, of_x.dtype, of_weight.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )


def test_other_convolutions_are_left_alone() -> None:
    x = images(8)
    for weight, groups in ((x[:2, :, :1, :1], 1), (x[:, :2, :1, :1].repeat(4, 1, 1, 1), 4)):
        with QuickDepthwise():
            found = F.conv2d(x, weight, groups=groups)
        assert torch.equal(found, F.conv2d(x, weight, groups=groups))


def test_float32_is_left_alone() -> None:
    x, weight = images(8).float(), weights(5)
    with QuickDepthwise():
        found = computed(x, weight, 2)
    for value, expected in zip(found, computed(x, weight, 2), strict=True):
        assert torch.equal(value, expected)
