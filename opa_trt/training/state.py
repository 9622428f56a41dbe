"""Where a training run stands, on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from opa_trt import atomic
from opa_trt.device import CPU
from opa_trt.errors import CheckpointError
from opa_trt.progress import Progress
from opa_trt.supernet import Supernet
from opa_trt.training.batches import Source
from opa_trt.training.data import Images

STATE_FILE = "state.safetensors"
MOMENTUM = "momentum/"
TOLD_EVERY = 10  # steps between two losses that are read


def run_identity(
    source: Source, images: Images, plan: Any, seed: int, device: torch.device, **others: Any
) -> str:
    """A hash of everything that a run's weights depend on.

    ``plan`` is a dataclass, of which ``checkpoint_every`` does not count; ``others`` are plain.
    """
    facts = others | {
        "plan": {k: v for k, v in asdict(plan).items() if k != "checkpoint_every"},
        "source": asdict(source),
        "images": images.digest(),
        "seed": seed,
        "threads": torch.get_num_threads() if device.type == CPU else device.type,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(kw_only=True)
class RunState(ABC):
    """A module in training, its optimiser and its log.

    ``phase`` and ``step`` name the next step to run. ``identity`` says what is being computed
    (plan, network, images, threads); a state of another identity is never continued.
    """

    optimizer: torch.optim.SGD
    identity: str
    phase: int = 0
    step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The module whose parameters the optimiser has."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that must be kept beside the optimiser's momenta, by name."""

    @abstractmethod
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.trained.parameters()).device

    def save(self, folder: Path) -> None:
        """Write the state into ``folder``, atomically."""
        tensors = self.tensors() | {f"{MOMENTUM}{k}": v for k, v in self._momenta().items()}
        metadata = {
            "identity": self.identity,
            "progress": json.dumps({"phase": self.phase, "step": self.step, "log": self.log}),
        }
        plain = {key: value.contiguous() for key, value in tensors.items()}
        atomic.write_bytes(folder / STATE_FILE, save(plain, metadata=metadata))

    def restore(self, folder: Path) -> bool:
        """Take up the state in ``folder``; False where there is none.

        Raises:
            CheckpointError: the state is unreadable or of another run.
        """
        path = folder / STATE_FILE
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as exc:
            msg = f"{path} cannot be read: {exc}."
            raise CheckpointError(msg, remedy=f"delete {folder} to start again.") from exc
        if metadata.get("identity") != self.identity:
            msg = f"{folder} holds the state of another training run."
            raise CheckpointError(
                msg,
                expected="the same recipe, images and thread count.",
                remedy=f"delete {folder} to start again, or name another --out.",
            )
        self.take(tensors)
        self._take_momenta(below(MOMENTUM, tensors))
        progress = json.loads(metadata["progress"])
        self.phase, self.step = progress["phase"], progress["step"]
        self.log = progress["log"]
        return True

    def run_to(
        self,
        last: int,
        take: Callable[[int], Tensor],
        folder: Path,
        checkpoint_every: int,
        progress: Progress,
    ) -> None:
        """The steps that are left until ``last``, saved to ``folder`` after every few.

        Args:
            last: how many steps there are.
            take: does one, of the number it is given; its loss, ``[] float32``, is read seldom.
            folder: where the state is kept.
            checkpoint_every: steps between two saved states.
            progress: hears of every step.
        """
        note = ""
        for step in range(self.step, last):
            loss = take(step)
            self.step = step + 1
            if self.step % checkpoint_every == 0:
                self.save(folder)
            if self.step % TOLD_EVERY == 0 or not note:
                note = f"loss {loss.item():.3f}"  # waits for a GPU
            progress.advance(self.step, note)

    def _momenta(self) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self.trained.named_parameters():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                found[name] = buffer
        return found

    def _take_momenta(self, momenta: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained.named_parameters():
            if name in momenta:
                momentum = momenta[name].to(parameter.device)
                self.optimizer.state[parameter]["momentum_buffer"] = momentum


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names start with ``prefix``, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


@dataclass
class TrainingState(RunState):
    """A super-network in training, and its teacher."""

    supernet: Supernet
    teacher: Supernet | None = None

    @property
    def trained(self) -> Supernet:
        """The super-network."""
        return self.supernet

    def tensors(self) -> dict[str, Tensor]:
        """The weights of both."""
        found = {f"supernet/{k}": v for k, v in self.supernet.state_dict().items()}
        if self.teacher is not None:
            found |= {f"teacher/{k}": v for k, v in self.teacher.state_dict().items()}
        return found

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put them back; a teacher is made where there was one."""
        self.supernet.load_state_dict(below("supernet/", tensors))
        if teacher := below("teacher/", tensors):
            self.teacher = Supernet(self.supernet.space).to(self.device)
            self.teacher.load_state_dict(teacher)
            self.teacher.eval()
