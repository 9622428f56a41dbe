"""Images are checked before anything touches the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opa_trt.bundle import ImageSpec
from opa_trt.errors import ConfigError, DeadlineError, ImageError

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = 3


def check_images(images: Any, spec: ImageSpec, layout: str | None = None) -> Tensor:
    """``images`` as a contiguous ``[N, 3, S, S]`` tensor of the spec's dtype.

    Args:
        images: torch tensor (on the CPU) or numpy array, NCHW or NHWC; uint8 0 to 255, or
            float32 0 to 1 for a bundle whose recipe says so.
        spec: what the bundle takes.
        layout: needed only where the channel count does not tell.

    Raises:
        ImageError: rank, dtype, size, an empty group, NaN or values out of range.
        ConfigError: an unknown layout.
    """
    tensor = _as_tensor(images, spec)
    shape = tuple(tensor.shape)
    if tensor.ndim != 4:
        message = f"images have shape {shape}."
        remedy = "add the batch dimension: images[None]" if tensor.ndim == 3 else ""
        raise ImageError(message, expected=_shapes(spec), remedy=remedy)
    if shape[0] == 0:
        message = f"images have shape {shape}: an empty group."
        raise ImageError(message, expected="at least one image.")
    if _layout(shape, spec, layout) == "NHWC":
        tensor = tensor.permute(0, 3, 1, 2)
    if tuple(tensor.shape[1:]) != (CHANNELS, spec.size, spec.size):
        message = f"images have shape {shape}."
        raise ImageError(
            message, expected=_shapes(spec), remedy=f"resize them to {spec.size}×{spec.size}."
        )
    if spec.dtype == "float32":
        _check_range(tensor)
    return tensor.contiguous()


def check_deadline(deadline_ms: Any, fastest: Callable[[], str]) -> float:
    """A deadline in ms; ``fastest`` tells what this machine can do, and is asked only on error.

    Raises:
        DeadlineError: not a number, or not positive. Infinity is allowed: no deadline.
    """
    try:
        value = float(deadline_ms)
    except (TypeError, ValueError, OverflowError) as exc:
        message = f"deadline {deadline_ms!r} is no number."
        raise DeadlineError(message, expected="milliseconds above 0.") from exc
    if math.isnan(value) or value <= 0:
        what = "not a number" if math.isnan(value) else "not positive"
        message = f"deadline {value:g} ms is {what}. {fastest()}"
        raise DeadlineError(message, expected="milliseconds above 0.")
    return value


def _as_tensor(images: Any, spec: ImageSpec) -> Tensor:
    if isinstance(images, np.ndarray):
        if images.dtype.name not in ("uint8", "float32", "float64", "int64", "float16", "bool"):
            message = f"images are {images.dtype}."
            raise ImageError(message, expected=spec.dtype)
        native = images.dtype.newbyteorder("=")
        tensor = torch.from_numpy(np.array(images, dtype=native, order="C"))
    elif isinstance(images, Tensor):
        here = images.device.type == "cpu" and not images.requires_grad
        tensor = images if here else images.detach().cpu()
    else:
        message = f"images are a {type(images).__name__}."
        raise ImageError(message, expected="a torch tensor or a numpy array.")
    if tensor.dtype != getattr(torch, spec.dtype):
        bounds = "0 to 255" if spec.dtype == "uint8" else "0 to 1"
        message = f"images are {str(tensor.dtype).removeprefix('torch.')}."
        raise ImageError(
            message,
            expected=f"{spec.dtype}, {bounds} (set data.float_images in the recipe for the other).",
        )
    return tensor


def _layout(shape: tuple[int, ...], spec: ImageSpec, layout: str | None) -> str:
    if layout is not None and layout not in LAYOUTS:
        message = f"layout {layout!r}."
        raise ConfigError(message, expected=f"one of {', '.join(LAYOUTS)}.")
    if layout is not None:
        return layout
    first, last = shape[1] == CHANNELS, shape[3] == CHANNELS
    if first and last:
        message = f"images have shape {shape}, which may be NCHW or NHWC."
        raise ImageError(message, expected="layout='NCHW' or layout='NHWC'.")
    if not first and not last:
        message = f"images have shape {shape}: no axis has {CHANNELS} channels."
        raise ImageError(message, expected=_shapes(spec))
    return "NCHW" if first else "NHWC"


def _check_range(tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).flatten(1).any(1).sum())
        message = f"{bad} of {len(tensor)} images have NaN or infinite values."
        raise ImageError(message, expected="values from 0 to 1.")
    low, high = float(tensor.min()), float(tensor.max())
    if low < 0 or high > 1:
        message = f"images have values from {low:g} to {high:g}."
        raise ImageError(message, expected="0 to 1.", remedy="divide 0 to 255 by 255.")


def _shapes(spec: ImageSpec) -> str:
    side = spec.size
    return f"[N, 3, {side}, {side}] or [N, {side}, {side}, 3] {spec.dtype}."
