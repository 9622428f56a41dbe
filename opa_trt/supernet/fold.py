"""Batch norm folded into the convolutions before it."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from opa_trt.errors import ParityError

TOLERANCE = 1e-4


def fold(module: nn.Module) -> nn.Module:
    """A copy of ``module`` (in evaluation mode) whose batch norms are folded away.

    Every batch norm must follow a convolution in the same ``nn.Sequential``.

    Raises:
        ParityError: a batch norm is left that no convolution could take up.
    """
    folded = copy.deepcopy(module)
    for part in folded.modules():
        if isinstance(part, nn.Sequential):
            _fold_sequence(part)
    left = [name for name, part in folded.named_modules() if isinstance(part, nn.BatchNorm2d)]
    if left:
        message = f"batch norm {left[0]} does not follow a convolution."
        raise ParityError(message, expected="convolution, then batch norm, in one Sequential.")
    return folded


def _fold_sequence(sequence: nn.Sequential) -> None:
    names = list(sequence._modules)
    for name, following in pairwise(names):
        conv, norm = sequence._modules.get(name), sequence._modules[following]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            sequence._modules[name] = fuse_conv_bn_eval(conv, norm)
            del sequence._modules[following]


@torch.no_grad()
def parity(what: str, module: nn.Module, reference: nn.Module, inputs: Tensor) -> float:
    """The largest difference of their outputs over the largest reference value (or 1).

    Raises:
        ParityError: it is above ``TOLERANCE``, or not a number.
    """
    errors = []
    for got, wanted in zip(_outputs(module(inputs)), _outputs(reference(inputs)), strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        errors.append(float((got - wanted).abs().max()) / scale)
    worst = float(np.max(errors))  # nan stays nan
    if not worst <= TOLERANCE:
        message = f"{what} differs from its reference by {worst:.1e}."
        raise ParityError(message, expected=f"at most {TOLERANCE:.0e}.")
    return worst


def _outputs(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
