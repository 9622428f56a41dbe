"""Accuracy of sub-networks, always with calibrated batch norm."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from opa_trt.supernet import Arch, Supernet
from opa_trt.supernet.calibration import calibrate
from opa_trt.training.batches import Source
from opa_trt.training.data import Images

CALIBRATION_IMAGES = 1000
CALIBRATION_BATCH = 200


@torch.no_grad()
def accuracy(
    module: nn.Module, source: Source, images: Images, resolution: int, *, seed: int = 0
) -> float:
    """Top-1 accuracy (0 to 1) of ``module`` on the degraded ``images``."""
    right = 0
    for start in range(0, len(images), CALIBRATION_BATCH):
        rows = np.arange(start, min(start + CALIBRATION_BATCH, len(images)))
        inputs, labels = source.batch(images, rows, seed=seed + start, resolution=resolution)
        right += int((module(inputs).argmax(1) == labels).sum())
    return right / len(images)


def calibrated_accuracy(
    supernet: Supernet, arch: Arch, source: Source, train_images: Images, check_images: Images
) -> float:
    """Extract ``arch``, calibrate it on ``train_images``, and measure it on ``check_images``."""
    module = supernet.extract(arch)
    calibrate(
        module,
        source.inputs(train_images, CALIBRATION_IMAGES, CALIBRATION_BATCH, arch.resolution),
    )
    return accuracy(module, source, check_images, arch.resolution)
