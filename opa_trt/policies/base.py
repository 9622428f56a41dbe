"""What decides, as a protocol: pure functions of what is seen, known and remembered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from opa_trt.policies.knowledge import Floats, Knowledge
from opa_trt.tree import Tree

STOP = -1


@dataclass(frozen=True)
class View:
    """What a policy sees after a node ran.

    Args:
        node: the node that ran.
        logits: its ``[N, C] float32`` logits for the images that are pending, or None.
        successors: names of the nodes that may follow.
        batches: ascending batch sizes; the last one is N.
        latency_ms: ``[S, B]`` promised latency of the cheapest way to logits through each
            successor, at each of ``batches``, at the present slowdown.
        slowdown: the present estimate (1 is as profiled).
    """

    node: str
    logits: Floats | None
    successors: tuple[str, ...]
    batches: tuple[int, ...]
    latency_ms: npt.NDArray[np.float64]
    slowdown: float = 1.0

    @property
    def pending(self) -> int:
        """How many images wait for a decision."""
        return self.batches[-1]


@dataclass(frozen=True)
class Budget:
    """The time that is left for these images, in ms."""

    left_ms: float


@dataclass(frozen=True)
class Decision:
    """What was decided for each pending image, and what it was based on.

    Args:
        choice: ``[N] int64`` index into the successors, or ``STOP``.
        successors: what the indices mean.
        predicted_ms: promised latency of each successor for the whole group.
        predicted_accuracy: of each successor on this group (0 to 1); nan where not predicted.
        estimated_accuracy: of the node that ran, on this group; nan where not estimated.
        left_ms: the budget.
        fits: whether anything but stopping fitted.
        reason: half a sentence for people.
    """

    choice: npt.NDArray[np.int64]
    successors: tuple[str, ...]
    predicted_ms: tuple[float, ...]
    predicted_accuracy: tuple[float, ...]
    estimated_accuracy: float
    left_ms: float
    fits: bool
    reason: str
    notes: dict[str, Any] = field(default_factory=dict)


class Policy(Protocol):
    """What decides. No clock, no device, no unseeded randomness.

    Attributes:
        name: as users write it.
        entry: where every group enters; None leaves that to the session.
    """

    name: str
    entry: str | None = None

    def start(self) -> Any:
        """The state before the first group."""

    def step(self, view: View, budget: Budget, state: Any) -> tuple[Decision, Any]:
        """For each pending image stop or a successor; and the state for the next call."""


class PolicyFactory(Protocol):
    """Makes a policy for one bundle."""

    def __call__(self, tree: Tree, knowledge: Knowledge, **options: Any) -> Policy:
        """ConfigError where an option is unknown or impossible."""
