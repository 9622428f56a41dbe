"""Depthwise convolutions in bfloat16 whose gradients are quick on a CPU.

oneDNN has quick bfloat16 kernels for depthwise convolutions of 3×3. Two gradients lack one and run
ten times slower or worse: that of the input where there is a stride, and that of the weights of
larger kernels. Here the first is computed in float32, the second in tiles of 3×3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

TILE = 3  # side of the largest kernel whose weights have a quick gradient


class QuickDepthwise(TorchFunctionMode):
    """Within it, calls of ``F.conv2d`` on bfloat16 with as many groups as channels are quick."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.conv2d and args[0].dtype == torch.bfloat16:
            x, weight = args[:2]
            if len(args) == 2 and given.get("groups") == x.shape[1] == len(weight) > 1:
                stride, padding = given.get("stride", 1), given.get("padding", 0)
                return _Depthwise.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
        return func(*args, **given)


class _Depthwise(torch.autograd.Function):
    """``x [N, C, H, H] bfloat16`` and ``weight [C, 1, K, K]`` of any dtype, K odd, to bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        rounded = weight.to(x.dtype)
        ctx.save_for_backward(x, rounded)
        ctx.stride, ctx.padding, ctx.dtype = stride, padding, weight.dtype
        return torch.conv2d(x, rounded, stride=stride, padding=padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x = _of_input(grad, x, weight, ctx.stride, ctx.padding)
        of_weight = _of_weight(grad, x, weight, ctx.stride, ctx.padding)
        return of_x, of_weight.to(ctx.dtype), None, None


def _of_input(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of ``x``, in float32 inside where there is a stride."""
    if stride > 1:
        wide = torch.empty_like(x, dtype=torch.float32)  # only its shape is read
        return _gradients(grad.float(), wide, weight.float(), stride, padding)[0].to(x.dtype)
    return _gradients(grad, x, weight, stride, padding)[0]


def _of_weight(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of ``weight``: each tile is that of a 3×3 convolution of a shifted ``x``."""
    side = weight.shape[-1]
    if side <= TILE:
        return _gradients(grad, x, weight, stride, padding, of_weight=True)[1]
    found = torch.empty_like(weight)
    padded = F.pad(x, (padding,) * 4)
    reach = (grad.shape[-1] - 1) * stride + TILE  # pixels of ``padded`` that a tile reads
    starts = [*range(0, side - TILE, TILE), side - TILE]
    for top in starts:
        for left in starts:
            read = padded[:, :, top : top + reach, left : left + reach]
            read = read.contiguous(memory_format=torch.channels_last)
            tile = (slice(None), slice(None), slice(top, top + TILE), slice(left, left + TILE))
            part = weight[tile].contiguous()  # only its shape is read
            found[tile] = _gradients(grad, read, part, stride, 0, of_weight=True)[1]
    return found


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, *, of_weight: bool = False
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weights of a depthwise convolution, of which one is computed."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        [stride, stride],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        len(weight),
        [not of_weight, of_weight, False],
    )
    return found[:2]
