"""In which precision a training step computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from opa_trt.device import CPU
from opa_trt.training.depthwise import QuickDepthwise


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Within, layers compute in ``precision``, one of ``plan.PRECISIONS``; weights stay float32."""
    if precision == "float32":
        yield
        return
    quick = QuickDepthwise() if device.type == CPU else nullcontext()
    with torch.autocast(device.type, torch.bfloat16), quick:
        yield
