"""Where a training run stands, on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from opa_trt import atomic
from opa_trt.errors import CheckpointError
from opa_trt.supernet import Supernet

STATE_FILE = "state.safetensors"


@dataclass
class TrainingState:
    """A super-network in training, its teacher, its optimiser and its log.

    ``phase`` and ``step`` name the next step to run. ``identity`` says what is being computed
    (plan, space, images, threads); a state of another identity is never continued.
    """

    supernet: Supernet
    optimizer: torch.optim.SGD
    identity: str
    teacher: Supernet | None = None
    phase: int = 0
    step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the state into ``folder``, atomically."""
        tensors = {f"supernet/{k}": v for k, v in self.supernet.state_dict().items()}
        if self.teacher is not None:
            tensors |= {f"teacher/{k}": v for k, v in self.teacher.state_dict().items()}
        tensors |= {f"momentum/{k}": v for k, v in self._momenta().items()}
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
        self._load(tensors, json.loads(metadata["progress"]))
        return True

    def _load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.supernet.load_state_dict(under("supernet/"))
        if teacher := under("teacher/"):
            self.teacher = Supernet(self.supernet.space)
            self.teacher.load_state_dict(teacher)
            self.teacher.eval()
        momenta = under("momentum/")
        for name, parameter in self.supernet.named_parameters():
            if name in momenta:
                self.optimizer.state[parameter]["momentum_buffer"] = momenta[name]
        self.phase, self.step = progress["phase"], progress["step"]
        self.log = progress["log"]

    def _momenta(self) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self.supernet.named_parameters():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                found[name] = buffer
        return found
