"""Training the shallow phases of an augmented network: all configurations, then the best (LeAF)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opa_trt.device import CPU
from opa_trt.device import device as named_device
from opa_trt.progress import Progress
from opa_trt.supernet.digest import weights_digest
from opa_trt.supernet.legacy import Augmented, Configuration
from opa_trt.training.adaptive_loss import AdaptiveLoss
from opa_trt.training.batches import Batches, Source, spread
from opa_trt.training.data import Images
from opa_trt.training.leaf_draw import candidate_configurations, draw_configurations
from opa_trt.training.leaf_measure import Measured, calibrate_shallow, front, measure
from opa_trt.training.leaf_plan import LeafPlan, Schedule
from opa_trt.training.optimizer import descend, set_rate, sgd
from opa_trt.training.state import RunState, below, run_identity

CHECK_IMAGES = 1000  # at most, that configurations are compared on
BASE, FINE = "base", "fine"
Cost = Callable[[Configuration], float]


@dataclass
class LeafState(RunState):
    """An augmented network in training, and the losses that its steps are weighed by."""

    network: Augmented
    losses: AdaptiveLoss

    @property
    def trained(self) -> nn.Module:
        """The shallow phases."""
        return self.network.shallow

    @property
    def measured(self) -> list[Measured]:
        """What the last phase found: the look-up table of configurations and their costs."""
        return [Measured.from_dict(row) for row in self.log[-1]["configurations"]]

    @property
    def front(self) -> list[Measured]:
        """Those of them that no other beats, by ascending cost."""
        return front(self.measured)

    def tensors(self) -> dict[str, Tensor]:
        """The shallow phases and the losses; the legacy network does not change."""
        found = {f"shallow/{k}": v for k, v in self.network.shallow.state_dict().items()}
        return found | {f"losses/{k}": v for k, v in self.losses.tensors().items()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put them back."""
        self.network.shallow.load_state_dict(below("shallow/", tensors))
        self.losses.take(below("losses/", tensors))


def train_leaf(
    network: Augmented,
    source: Source,
    train_images: Images,
    check_images: Images,
    plan: LeafPlan,
    folder: Path,
    *,
    seed: int = 0,
    cost: Cost | None = None,
    device: str = CPU,
    progress: Progress | None = None,
) -> LeafState:
    """Train the shallow phases: with all configurations, then with those on the Pareto front.

    After each of the two phases the shallow phases' batch norms are calibrated and the
    configurations measured; the front that is fine-tuned is that of the first. Every random draw
    follows from ``seed`` and the step's number, so a run that is stopped and called again with the
    same arguments goes on from its last checkpoint in ``folder`` and, on the CPU, ends with the
    same weights (at the same thread count).

    Args:
        network: what is trained; it is copied, and left as it is.
        source: image size, normalisation (the legacy network's) and degradations.
        train_images: what is learned from.
        check_images: what configurations are compared on (``CHECK_IMAGES`` of them).
        plan: schedules, loss, augmentation.
        folder: holds the state of the run.
        seed: of every draw.
        cost: of a configuration, for the front: latency at the batch size to come, for instance.
            MACs by default. A finished phase is not measured again.
        device: ``cpu`` or ``cuda``, where the steps are computed.
        progress: hears of phases and steps.

    Returns:
        The final state: ``network`` in evaluation mode on the CPU, ``front`` with accuracies.

    Raises:
        CheckpointError: ``folder`` holds another run.
        DataError: no images, or images of another size than ``source`` says.
        UnknownNameError: another device.
        BackendUnavailable: ``cuda`` without a GPU that torch can use.
    """
    place = torch.device(named_device(device).name)
    check_images = spread(check_images, CHECK_IMAGES)
    for images in (train_images, check_images):
        source.check(images)
    identity = run_identity(
        source,
        train_images,
        plan,
        seed,
        place,
        phases=list(network.phases),
        weights=weights_digest(network),
    )
    own = copy.deepcopy(network).to(place)
    optimizer = sgd(own.shallow, plan.base.learning_rate, plan.momentum, plan.weight_decay)
    state = LeafState(own, AdaptiveLoss(plan.window), optimizer=optimizer, identity=identity)
    state.restore(folder)
    run = _Run(
        state,
        plan,
        source,
        train_images,
        check_images,
        folder,
        seed,
        cost or _macs(network, source.size),
        progress or Progress(),
    )
    schedules = {BASE: plan.base, FINE: plan.fine}
    for index, (name, schedule) in enumerate(schedules.items()):
        if index >= state.phase:
            run.phase(name, schedule)
    own.to(CPU).eval()
    return state


@dataclass(frozen=True)
class _Run:
    """What the steps of one training share."""

    state: LeafState
    plan: LeafPlan
    source: Source
    train_images: Images
    check_images: Images
    folder: Path
    seed: int
    cost: Cost
    progress: Progress

    @cached_property
    def batches(self) -> Batches:
        """What is learned from, step by step."""
        plan, place = self.plan, self.state.device
        return Batches(self.train_images, self.source, plan.batch_size, self.seed, plan, place)

    def phase(self, name: str, schedule: Schedule) -> None:
        """One phase, from the state's step on, and what it found."""
        state, count = self.state, len(self.state.network.phases)
        candidates = candidate_configurations(count, self.seed)
        if state.log:
            candidates = [each.configuration for each in state.front]
        pool = None if name == BASE and len(candidates) < 2**count else candidates
        trained = [each for each in candidates if not each.is_legacy]
        if state.step == 0:
            state.optimizer.state.clear()
        self.progress.start(name, schedule.steps)
        for step in range(state.step, schedule.steps if trained else 0):
            loss = self._step(schedule, step, pool)
            state.step = step + 1
            if state.step % self.plan.checkpoint_every == 0:
                state.save(self.folder)
            self.progress.advance(state.step, f"loss {loss:.3f}")
        self._close(name, schedule, candidates, trained)

    def _step(self, schedule: Schedule, step: int, pool: Sequence[Configuration] | None) -> float:
        """One optimiser step; the mean loss of its configurations."""
        state = self.state
        draw = np.random.default_rng([self.seed, state.phase, step, 3])
        images, labels = self.batches.batch(state.phase, step, self.source.size)
        images = images.contiguous(memory_format=torch.channels_last)
        chosen = draw_configurations(
            len(state.network.phases), self.plan.configurations, draw, pool
        )
        set_rate(state.optimizer, schedule.rate(step))
        torch.manual_seed(int(draw.integers(2**31)))  # dropout
        state.network.train()
        state.optimizer.zero_grad(set_to_none=True)
        logits = state.network.forward_many(images, chosen)
        each = F.cross_entropy(
            logits.flatten(0, 1),
            torch.cat([labels] * len(chosen)),
            reduction="none",
            label_smoothing=self.plan.label_smoothing,
        )
        losses = each.view(len(chosen), -1).mean(1)
        state.losses(losses, chosen).backward()  # type: ignore[no-untyped-call]
        descend(state.network.shallow, state.optimizer)
        return float(losses.detach().mean())

    def _close(
        self,
        name: str,
        schedule: Schedule,
        candidates: Sequence[Configuration],
        trained: Sequence[Configuration],
    ) -> None:
        """Calibrate, measure, and go on to the next phase."""
        state, network = self.state, self.state.network
        place = state.device
        network.to(CPU).eval()
        if trained:
            calibrate_shallow(network, trained, self.source, self.train_images)
        shares = measure(network, candidates, self.source, self.check_images)
        rows = [
            Measured(configuration, accuracy, self.cost(configuration))
            for configuration, accuracy in zip(candidates, shares, strict=True)
        ]
        best = {row.configuration for row in front(rows)}
        state.log.append(
            {
                "phase": name,
                "steps": schedule.steps,
                "configurations": [row.to_dict(row.configuration in best) for row in rows],
            }
        )
        network.to(place)
        state.phase, state.step = state.phase + 1, 0
        state.save(self.folder)
        self.progress.finish(name, describe(state.log[-1]))


def describe(entry: Mapping[str, Any]) -> str:
    """One line of the log: ``6 of 16 on the front · {} 76.1 % · … · {0, 1, 2, 3} 64.8 %``."""
    rows = entry["configurations"]
    best = [Measured.from_dict(row) for row in rows if row["front"]]
    best.sort(key=lambda row: row.cost)
    ends = [f"{row.configuration} {100 * row.accuracy:.1f} %" for row in best]
    return " · ".join([f"{len(best)} of {len(rows)} on the front", *ends])


def _macs(network: Augmented, side: int) -> Cost:
    costs = network.costs(side)
    return lambda configuration: costs.of(configuration).macs
