"""Accuracy of sub-networks, always with calibrated batch norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from opa_trt.supernet import Arch, Supernet
from opa_trt.supernet.calibration import calibrate
from opa_trt.training.batches import Source
from opa_trt.training.data import Images

CALIBRATION_IMAGES = 1000
CALIBRATION_BATCH = 200

Batch = tuple[Tensor, Tensor]  # inputs [N, 3, R, R] float32 and labels [N] int64


def batches(source: Source, images: Images, resolution: int) -> Iterator[Batch]:
    """All ``images`` in order, degraded the same way every time."""
    for start in range(0, len(images), CALIBRATION_BATCH):
        rows = np.arange(start, min(start + CALIBRATION_BATCH, len(images)))
        yield source.batch(images, rows, seed=start, resolution=resolution)


@torch.no_grad()
def share_right(module: nn.Module, labelled: Iterable[Batch]) -> float:
    """Top-1 accuracy (0 to 1) of ``module`` on batches of inputs and labels."""
    right = total = 0
    for inputs, labels in labelled:
        right += int((module(inputs).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def measured_accuracy(
    supernet: Supernet, arch: Arch, calibration: Iterable[Tensor], labelled: Iterable[Batch]
) -> float:
    """Extract ``arch``, calibrate it, and measure it: inputs of its resolution, made before.

    Raises:
        ConfigError: nothing to calibrate with.
    """
    module = supernet.extract(arch)
    calibrate(module, calibration)
    return share_right(module, labelled)


def calibrated_accuracy(
    supernet: Supernet, arch: Arch, source: Source, train_images: Images, check_images: Images
) -> float:
    """Extract ``arch``, calibrate it on ``train_images``, and measure it on ``check_images``."""
    side = arch.resolution
    calibration = source.inputs(train_images, CALIBRATION_IMAGES, CALIBRATION_BATCH, side)
    return measured_accuracy(supernet, arch, calibration, batches(source, check_images, side))
