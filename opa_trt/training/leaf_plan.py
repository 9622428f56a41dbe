"""What the training of shallow phases is, as values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opa_trt.errors import ConfigError
from opa_trt.training.augment import Augmentation
from opa_trt.training.plan import check_positive, check_shared


@dataclass(frozen=True)
class Schedule:
    """Optimiser steps, and a learning rate that falls in steps (LeAF, Table 1).

    The rate is multiplied by ``decay`` every ``decay_every`` steps; 0 keeps it.
    """

    steps: int
    learning_rate: float
    decay: float = 0.1
    decay_every: int = 0

    def __post_init__(self) -> None:
        for key, least in (("steps", 0), ("decay_every", 0)):
            if getattr(self, key) < least:
                msg = f"{key} = {getattr(self, key)}."
                raise ConfigError(msg, expected=f"{least} or more.")
        check_positive(self, ("learning_rate", "decay"))

    def rate(self, step: int) -> float:
        """The learning rate of one step."""
        drops = step // self.decay_every if self.decay_every else 0
        return float(self.learning_rate * self.decay**drops)

    def scaled(self, factor: float) -> Schedule:
        """The same in ``factor`` times as many steps, at least one where there are any."""

        def scale(steps: int) -> int:
            return max(1, round(steps * factor)) if steps else 0

        return replace(self, steps=scale(self.steps), decay_every=scale(self.decay_every))


@dataclass(frozen=True)
class LeafPlan(Augmentation):
    """Everything but network and images that decides what a training of shallow phases computes.

    In the paper an epoch of ImageNet has 40,036 steps of 32 images. ResNet50: 60 epochs of base
    training and of fine-tuning, each with a rate of 0.1 that falls to a tenth every 10 epochs.
    MobileNetV2: 80 epochs at 4.5e-3, times 0.96 after each, then 100 at 4.5e-4, times 0.97,
    with a weight decay of 4e-6.

    Args:
        base: with all configurations, or a sample of them.
        fine: with those on the Pareto front.
        batch_size: images a step.
        configurations: at most so many a step, drawn anew for each where there are more.
        window: of the adaptive loss: the steps whose mean a configuration's loss is divided by.
        momentum: of SGD (Nesterov).
        weight_decay: of the shallow phases' convolutions.
        label_smoothing: of the loss.
        checkpoint_every: steps between two saved states.
    """

    base: Schedule = Schedule(6_000, 0.1, decay_every=2_000)
    fine: Schedule = Schedule(3_000, 0.01, decay_every=1_000)
    batch_size: int = 32
    configurations: int = 32
    window: int = 100
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for key in ("batch_size", "configurations", "window", "checkpoint_every"):
            if getattr(self, key) < 1:
                msg = f"{key} = {getattr(self, key)}."
                raise ConfigError(msg, expected="at least 1.")
        check_shared(self)

    def scaled(self, total: int) -> LeafPlan:
        """The same plan in about ``total`` steps."""
        factor = total / max(1, self.base.steps + self.fine.steps)
        return replace(self, base=self.base.scaled(factor), fine=self.fine.scaled(factor))
