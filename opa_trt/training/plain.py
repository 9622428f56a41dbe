"""Training a network of any make from labels alone: a legacy network, where there is none yet."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opa_trt.device import CPU
from opa_trt.device import device as named_device
from opa_trt.progress import Progress
from opa_trt.supernet.digest import weights_digest
from opa_trt.training.batches import Batches, Source
from opa_trt.training.data import Images
from opa_trt.training.evaluation import batches, share_right
from opa_trt.training.optimizer import descend, set_rate, sgd, warm_cosine
from opa_trt.training.plan import TrainingPlan
from opa_trt.training.precision import computing
from opa_trt.training.state import RunState, below, run_identity

FULL = "full"


@dataclass
class PlainState(RunState):
    """A network in training."""

    network: nn.Module

    @property
    def trained(self) -> nn.Module:
        """All of it."""
        return self.network

    def tensors(self) -> dict[str, Tensor]:
        """Its weights and statistics."""
        return {f"network/{k}": v for k, v in self.network.state_dict().items()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put them back."""
        self.network.load_state_dict(below("network/", tensors))


def train_plain(
    network: nn.Module,
    source: Source,
    train_images: Images,
    check_images: Images,
    plan: TrainingPlan,
    folder: Path,
    *,
    seed: int = 0,
    device: str = CPU,
    progress: Progress | None = None,
) -> PlainState:
    """Train a network as the full phase of progressive shrinking does.

    Every random draw follows from ``seed`` and the step's number, so a run that is stopped and
    called again with the same arguments goes on from its last checkpoint in ``folder``.

    Args:
        network: with the weights to begin with; it is copied, and left as it is.
        source: image size, normalisation and degradations.
        train_images: what is learned from.
        check_images: what the log's accuracy is measured on.
        plan: of which the full phase counts.
        folder: holds the state of the run.
        seed: of every draw.
        device: ``cpu`` or ``cuda``, where the steps are computed.
        progress: hears of the steps.

    Returns:
        The final state: ``network`` in evaluation mode on the CPU.

    Raises:
        CheckpointError: ``folder`` holds another run.
        DataError: no images, or images of another size than ``source`` says.
        UnknownNameError: another device.
        BackendUnavailable: ``cuda`` without a GPU that torch can use.
    """
    place = torch.device(named_device(device).name)
    for images in (train_images, check_images):
        source.check(images)
    own: nn.Module = copy.deepcopy(network).requires_grad_(True)
    own = own.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = sgd(own, plan.learning_rate, plan.momentum, plan.weight_decay)
    weights = weights_digest(network)
    identity = run_identity(source, train_images, plan, seed, place, weights=weights)
    state, told = PlainState(own, optimizer=optimizer, identity=identity), progress or Progress()
    state.restore(folder)
    if not state.log:
        given = Batches(train_images, source, plan.batch_size, seed, plan, place)
        _steps(state, plan, given, folder, seed, told)
        own.to(CPU).eval()
        accuracy = share_right(own, batches(source, check_images, source.size))
        state.log.append({"phase": FULL, "steps": plan.steps.full, "accuracy": accuracy})
        state.save(folder)
        told.finish(FULL, f"{accuracy:.1%} of {len(check_images):,} held-out images")
    own.to(CPU).eval()
    return state


def _steps(
    state: PlainState,
    plan: TrainingPlan,
    given: Batches,
    folder: Path,
    seed: int,
    progress: Progress,
) -> None:
    """All that are left."""
    count = plan.steps.full
    progress.start(FULL, count)
    state.network.train()

    def take(step: int) -> Tensor:
        draw = np.random.default_rng([seed, 0, step, 4])
        images, labels = given.batch(0, step, given.source.size)
        images = images.contiguous(memory_format=torch.channels_last)
        set_rate(state.optimizer, warm_cosine(plan.learning_rate, count, step))
        torch.manual_seed(int(draw.integers(2**31)))  # dropout
        state.optimizer.zero_grad(set_to_none=True)
        with computing(plan.precision, state.device):
            logits = state.network(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=plan.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        descend(state.network, state.optimizer)
        return loss.detach()

    state.run_to(count, take, folder, plan.checkpoint_every, progress)
