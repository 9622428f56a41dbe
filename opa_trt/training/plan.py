"""What a training run is, as values: phases, optimiser, augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from opa_trt.errors import ConfigError
from opa_trt.supernet import Space
from opa_trt.supernet.arch import Ratio


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of each phase of progressive shrinking (OFA, section 3).

    ``depth`` and ``width`` have one entry for each choice below the largest.
    """

    full: int = 10_000
    kernel: int = 5_000
    depth: tuple[int, ...] = (2_500, 5_000)
    width: tuple[int, ...] = (2_500, 5_000)

    def __post_init__(self) -> None:
        if min(self.full, self.kernel, *self.depth, *self.width) < 0:
            msg = f"training.steps = {self}."
            raise ConfigError(msg, expected="0 or more in every phase.")

    @property
    def total(self) -> int:
        """Steps of all phases together."""
        return self.full + self.kernel + sum(self.depth) + sum(self.width)

    def scaled(self, total: int) -> Steps:
        """The same phases in about ``total`` steps, at least one step each."""
        factor = total / self.total

        def scale(steps: int) -> int:
            return max(1, round(steps * factor))

        return Steps(
            scale(self.full),
            scale(self.kernel),
            tuple(map(scale, self.depth)),
            tuple(map(scale, self.width)),
        )


@dataclass(frozen=True)
class TrainingPlan:
    """Everything but space and images that decides what a training run computes.

    Rates are those of SGD with Nesterov momentum on the mean loss of a step's sub-networks;
    each phase warms up over 5 % of its steps and decays along a cosine.
    """

    batch_size: int = 128
    steps: Steps = Steps()
    learning_rate: float = 0.1
    elastic_learning_rate: float = 0.04
    momentum: float = 0.9
    weight_decay: float = 3e-5
    label_smoothing: float = 0.1
    distill_weight: float = 1.0
    shift: int = 0
    flip: bool = False
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for key in ("batch_size", "learning_rate", "elastic_learning_rate", "checkpoint_every"):
            if not 0 < getattr(self, key) < math.inf:
                msg = f"training.{key} = {getattr(self, key)}."
                raise ConfigError(msg, expected="above 0.")
        for key, most in (
            ("momentum", 1.0),
            ("label_smoothing", 1.0),
            ("weight_decay", math.inf),
            ("distill_weight", math.inf),
            ("shift", math.inf),
        ):
            if not 0 <= getattr(self, key) < most:
                msg = f"training.{key} = {getattr(self, key)}."
                raise ConfigError(msg, expected=f"0 or more, below {most:g}.")


@dataclass(frozen=True)
class Phase:
    """One phase: which choices it draws from, and how many sub-networks a step trains."""

    name: str
    steps: int
    subnets: int
    rate: float
    kernels: tuple[int, ...]
    depths: tuple[int, ...]
    expands: tuple[Ratio, ...]
    sort_level: int | None = None

    @property
    def elastic(self) -> bool:
        """Whether anything is drawn, and so distilled from the full network."""
        return self.name != "full"


def phases(plan: TrainingPlan, space: Space) -> Iterator[Phase]:
    """The phases of progressive shrinking in ``space``: 1, 1, 2, 2, 4, 4 sub-networks a step.

    Raises:
        ConfigError: the plan has another number of depth or width phases than the space.
    """
    _check_count("depth", plan.steps.depth, space.depth_choices)
    _check_count("width", plan.steps.width, space.expand_choices)
    deepest, widest = space.depth_choices[-1:], space.expand_choices[-1:]
    rate = plan.elastic_learning_rate
    kernels = space.kernel_choices
    yield Phase("full", plan.steps.full, 1, plan.learning_rate, kernels[-1:], deepest, widest)
    yield Phase("kernel", plan.steps.kernel, 1, rate, kernels, deepest, widest)
    for level, steps in enumerate(plan.steps.depth):
        depths = space.depth_choices[-level - 2 :]
        yield Phase(f"depth{level + 1}", steps, 2, rate, kernels, depths, widest)
    for level, steps in enumerate(plan.steps.width):
        ratios = space.expand_choices[-level - 2 :]
        yield Phase(
            f"width{level + 1}", steps, 4, rate, kernels, space.depth_choices, ratios, level
        )


def _check_count(what: str, steps: tuple[int, ...], choices: tuple[Ratio, ...]) -> None:
    if len(steps) != len(choices) - 1:
        msg = f"training.steps.{what} has {len(steps)} entries."
        raise ConfigError(
            msg,
            expected=f"{len(choices) - 1}: one a choice below the largest of {list(choices)}.",
        )
