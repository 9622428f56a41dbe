"""Little images made by numpy, a tiny space, and training runs of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opa_trt.supernet import MobileNetV3Space
from opa_trt.training import evaluation
from opa_trt.training.batches import Source
from opa_trt.training.data import Images
from opa_trt.training.plan import Steps, TrainingPlan
from opa_trt.training.shrinking import train
from opa_trt.training.state import TrainingState

MakeImages = Callable[..., Images]
Run = Callable[..., TrainingState]

SIDE = 16
SPACE = MobileNetV3Space(
    classes=2,
    resolutions=(16, 20),
    depth_choices=(1, 2),
    kernel_choices=(3, 5),
    expand_choices=(1, 2, 4),
    stem_width=8,
    stage_widths=(8, 16),
    stage_strides=(1, 2),
    stage_act=("relu", "h_swish"),
    stage_squeeze_excite=(False, True),
    head_width=24,
    feature_width=32,
)
PLAN = TrainingPlan(
    batch_size=8,
    steps=Steps(full=4, kernel=3, depth=(3,), width=(3, 3)),
    learning_rate=0.05,
    elastic_learning_rate=0.02,
    shift=2,
    flip=True,
    checkpoint_every=2,
)


@pytest.fixture(scope="session")
def stripes() -> MakeImages:
    """``count`` images of stripes that stand (class 0) or lie (class 1), with noise."""

    def make(count: int = 24, seed: int = 0) -> Images:
        draw = np.random.default_rng(seed)
        labels = np.arange(count) % 2
        phase = draw.integers(0, 4, count)[:, None, None]
        wave = np.where((np.arange(SIDE)[None, None] + phase) % 4 < 2, 190, 60)
        wave = np.repeat(wave, SIDE, axis=1)
        wave = np.where(labels[:, None, None] == 1, wave.transpose(0, 2, 1), wave)
        noise = draw.integers(-40, 41, (count, 3, SIDE, SIDE))
        pixels = (wave[:, None] + noise).astype(np.uint8)
        return Images(pixels, labels.astype(np.int64), ("standing", "lying"))

    return make


@pytest.fixture(scope="session")
def space() -> MobileNetV3Space:
    return SPACE


@pytest.fixture(scope="session")
def plan() -> TrainingPlan:
    return PLAN


@pytest.fixture(scope="session")
def run_in(stripes: MakeImages) -> Run:
    """``train`` on stripes in a folder; keywords replace its arguments.

    Sums in one order whatever the machine (a state names its thread count), and calibrates
    the log's networks on few images.
    """

    def start(folder: Path, *, threads: int = 1, **changes: Any) -> TrainingState:
        arguments: dict[str, Any] = {
            "space": SPACE,
            "source": Source(size=SIDE),
            "train_images": stripes(),
            "check_images": stripes(10, seed=1),
            "plan": PLAN,
        }
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(evaluation, "CALIBRATION_IMAGES", 24)
                return train(folder=folder, **(arguments | changes))
        finally:
            torch.set_num_threads(before)

    return start


@pytest.fixture
def run(run_in: Run, tmp_path: Path) -> Run:
    """``run_in`` the test's own folder ``run``, or another of that name."""

    def start(folder: str = "run", **changes: Any) -> TrainingState:
        return run_in(tmp_path / folder, **changes)

    return start
