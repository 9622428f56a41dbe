"""What a training run is, as values: phases, optimiser, augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opa_trt.errors import ConfigError
from opa_trt.supernet import Space
from opa_trt.supernet.genome import Kind
from opa_trt.training.augment import Augmentation

PRECISIONS = ("float32", "bfloat16")


SHARED_BOUNDS = {  # every plan's: 0 or more, below
    "momentum": 1.0,
    "label_smoothing": 1.0,
    "weight_decay": math.inf,
    "shift": math.inf,
    "cutout": math.inf,
    "colour": 1.0,
}


def check_positive(plan: Any, keys: Iterable[str], prefix: str = "") -> None:
    """Raises ``ConfigError`` unless each is above 0 and finite; ``prefix`` goes before its name."""
    for key in keys:
        if not 0 < getattr(plan, key) < math.inf:
            msg = f"{prefix}{key} = {getattr(plan, key)}."
            raise ConfigError(msg, expected="above 0.")


def check_below(plan: Any, bounds: Mapping[str, float], prefix: str = "") -> None:
    """Raises ``ConfigError`` unless each is 0 or more and below its bound."""
    for key, most in bounds.items():
        if not 0 <= getattr(plan, key) < most:
            msg = f"{prefix}{key} = {getattr(plan, key)}."
            raise ConfigError(msg, expected=f"0 or more, below {most:g}.")


def check_shared(plan: Any, prefix: str = "") -> None:
    """Raises ``ConfigError`` unless what every plan has is within its bounds."""
    check_below(plan, SHARED_BOUNDS, prefix)
    if not 0 <= plan.cutmix <= 1:
        msg = f"{prefix}cutmix = {plan.cutmix}."
        raise ConfigError(msg, expected="a share, 0 to 1.")


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of each phase of progressive shrinking (OFA, section 3).

    ``depth`` and ``width`` have one entry for each choice below the largest. ``finish`` is a last
    phase over all choices whose every step trains the largest and the smallest sub-network, too,
    and in which the largest teaches the others (the sandwich rule and in-place distillation of
    BigNAS, section 3). A phase of no steps is left out.
    """

    full: int = 10_000
    kernel: int = 5_000
    depth: tuple[int, ...] = (2_500, 5_000)
    width: tuple[int, ...] = (2_500, 5_000)
    finish: int = 0

    def __post_init__(self) -> None:
        if min(self.full, self.kernel, *self.depth, *self.width, self.finish) < 0:
            msg = f"training.steps = {self}."
            raise ConfigError(msg, expected="0 or more in every phase.")

    @property
    def total(self) -> int:
        """Steps of all phases together."""
        return self.full + self.kernel + sum(self.depth) + sum(self.width) + self.finish

    def scaled(self, total: int) -> Steps:
        """The same phases in about ``total`` steps: in each that has any, at least one."""
        factor = total / max(1, self.total)

        def scale(steps: int) -> int:
            return max(1, round(steps * factor)) if steps else 0

        return Steps(
            scale(self.full),
            scale(self.kernel),
            tuple(map(scale, self.depth)),
            tuple(map(scale, self.width)),
            scale(self.finish),
        )


@dataclass(frozen=True)
class TrainingPlan(Augmentation):
    """Everything but space and images that decides what a training run computes.

    Rates are those of SGD with Nesterov momentum on the mean loss of a step's sub-networks;
    each phase warms up over 5 % of its steps and decays along a cosine. ``precision`` is that of
    convolutions and activations, one of ``PRECISIONS``; weights and their updates are float32.
    ``blend`` is the share that the trained weights have in the result, above 0, where training went
    on from others, which have the rest (WiSE-FT, Wortsman et al. 2022).
    """

    batch_size: int = 128
    steps: Steps = Steps()
    learning_rate: float = 0.1
    elastic_learning_rate: float = 0.04
    momentum: float = 0.9
    weight_decay: float = 3e-5
    label_smoothing: float = 0.1
    distill_weight: float = 1.0
    precision: str = "float32"
    blend: float = 1.0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        positive = ("batch_size", "learning_rate", "elastic_learning_rate", "checkpoint_every")
        check_positive(self, positive, "training.")
        check_shared(self, "training.")
        check_below(self, {"distill_weight": math.inf}, "training.")
        if not 0 < self.blend <= 1:
            msg = f"training.blend = {self.blend}."
            raise ConfigError(msg, expected="a share above 0, at most 1.")
        if self.precision not in PRECISIONS:
            msg = f"training.precision = {self.precision!r}."
            raise ConfigError(msg, expected=f"one of {list(PRECISIONS)}.")


@dataclass(frozen=True)
class Phase:
    """One phase: how many sub-networks a step trains, and what they are drawn from.

    ``largest`` says for a kind of choice of how many of its largest values; of all by default.
    With ``sandwich`` two of them are always the largest and the smallest.
    """

    name: str
    steps: int
    subnets: int
    rate: float
    largest: Mapping[Kind, int] = field(default_factory=dict)
    sort_level: int | None = None
    sandwich: bool = False

    @property
    def elastic(self) -> bool:
        """Whether anything is drawn."""
        return self.name != "full"


def phases(plan: TrainingPlan, space: Space) -> Iterator[Phase]:
    """The phases of progressive shrinking in ``space`` that have steps.

    They train 1, 1, 2, 2, 4, 4 and at last 3 sub-networks a step.

    Raises:
        ConfigError: the plan has another number of depth or width phases than the space.
    """
    return (phase for phase in _phases(plan, space) if phase.steps > 0)


def _phases(plan: TrainingPlan, space: Space) -> Iterator[Phase]:
    counts = space.choice_counts
    shrinkable = max(counts.get("expand", 1), counts.get("width", 1))
    _check_count("depth", plan.steps.depth, counts.get("depth", 1))
    _check_count("width", plan.steps.width, shrinkable)
    rate = plan.elastic_learning_rate
    full: dict[Kind, int] = {"kernel": 1, "depth": 1, "expand": 1, "width": 1}
    yield Phase("full", plan.steps.full, 1, plan.learning_rate, full)
    deep_and_wide: dict[Kind, int] = {"depth": 1, "expand": 1, "width": 1}
    yield Phase("kernel", plan.steps.kernel, 1, rate, deep_and_wide)
    for level, steps in enumerate(plan.steps.depth):
        wide: dict[Kind, int] = {"depth": level + 2, "expand": 1, "width": 1}
        yield Phase(f"depth{level + 1}", steps, 2, rate, wide)
    for level, steps in enumerate(plan.steps.width):
        narrower: dict[Kind, int] = {"expand": level + 2, "width": level + 2}
        yield Phase(f"width{level + 1}", steps, 4, rate, narrower, level)
    yield Phase("finish", plan.steps.finish, 3, rate, sandwich=True)


def _check_count(what: str, steps: tuple[int, ...], choices: int) -> None:
    if len(steps) != choices - 1:
        msg = f"training.steps.{what} has {len(steps)} entries."
        raise ConfigError(
            msg,
            expected=f"{choices - 1}: one a choice below the largest of {choices}.",
        )
