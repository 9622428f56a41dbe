"""What ``infer`` answers: a frozen value that explains itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.policies import STOP, Decision
from opa_trt.runtime.explain import answered, facts, words


@dataclass(frozen=True)
class Entered:
    """Why a group entered where it did, of several entries.

    Args:
        node: where it entered.
        left_ms: the time that was left then.
        reason: half a sentence for people.
        entries: where it could have.
        promised_ms: the group's latency by the cheapest way through each.
        accuracy: the share of images expected right in time behind each (0 to 1); nan where nobody
            thought about it.
    """

    node: str
    left_ms: float
    reason: str
    entries: tuple[str, ...]
    promised_ms: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """One engine's run for one chunk of a group.

    Args:
        node: what ran.
        images: how many rows.
        predicted_ms: latency expected just before it ran.
        measured_ms: latency measured.
        predicted_accuracy: of its logits on this group (0 to 1; nan where not predicted): the
            policy's estimate for an entry, its prediction for a tail.
        measured_accuracy: of its logits on the build's fitting images.
        slowdown: as known when it was predicted.
        decision: what the policy decided after it, if it was asked.
        answers: whether it has logits, which images could stop with.
    """

    node: str
    images: int
    predicted_ms: float
    measured_ms: float
    predicted_accuracy: float
    measured_accuracy: float
    slowdown: float
    decision: Decision | None = None
    answers: bool = True

    @property
    def expected_accuracy(self) -> float | None:
        """Of the answers that its images get here or later on, 0 to 1; None where the policy did
        not say so."""
        return None if self.decision is None else self.decision.notes.get("expected_accuracy")

    @property
    def answered(self) -> int:
        """How many of its rows stopped here, so that its logits are their answer."""
        return self.images if self.decision is None else int((self.decision.choice == STOP).sum())


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """The answer for one group.

    Args:
        logits: ``[N, classes] float32``.
        labels: ``[N] int64``, the arg max of the logits.
        nodes: ``[N]`` the name of the node whose logits answer each image.
        classes: names, in the order of the logits.
        steps: every engine's run, in order.
        deadline_ms: as asked.
        predicted_ms: latency of the group as the steps predicted it.
        measured_ms: from entry to logits on the host, decisions included.
        fallback: whether nothing fitted for some images, so that a node answered early.
        entered: why the group entered where it did; None where there was one entry.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.str_]
    classes: tuple[str, ...]
    steps: tuple[Step, ...]
    deadline_ms: float
    predicted_ms: float
    measured_ms: float
    fallback: bool
    entered: Entered | None = None

    @property
    def deadline_met(self) -> bool:
        """Whether the answer was there in time."""
        return self.measured_ms <= self.deadline_ms

    @property
    def decision(self) -> Decision | None:
        """The first decision (the only one, unless the group was answered in chunks)."""
        return next((step.decision for step in self.steps if step.decision is not None), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Each image's class name."""
        return tuple(self.classes[label] for label in self.labels)

    @property
    def predicted_accuracy(self) -> float:
        """Of the answers, 0 to 1; nan where the policy predicts none.

        Where it thought of each image by itself, that is what it expected of them all; else what it
        expected of each answering node on the whole group, weighed by the images it answered.
        """
        known = [step for step in self.steps if step.expected_accuracy is not None]
        if sum(step.images for step in known) == len(self.labels):
            return sum(step.images * (step.expected_accuracy or 0.0) for step in known) / len(
                self.labels
            )
        return self._mean([step.predicted_accuracy for step in self.steps])

    @property
    def measured_accuracy(self) -> float:
        """Of the answering nodes on the build's fitting images, 0 to 1."""
        return self._mean([step.measured_accuracy for step in self.steps])

    def accuracy(self, labels: npt.ArrayLike) -> float:
        """Top-1 accuracy against ``[N]`` true labels, 0 to 1."""
        return float((self.labels == np.asarray(labels)).mean())

    def explain(self) -> str:
        """Lines that say what was seen, predicted for every route, and chosen, and why."""
        return words(self)

    def facts(self) -> dict[str, Any]:
        """What ``explain`` tells, as plain values for JSON."""
        return facts(self)

    def __repr__(self) -> str:
        by = ", ".join(f"{count} by {name}" for name, count in answered(self).items())
        state = "met" if self.deadline_met else "MISSED"
        return (
            f"<Result {len(self.labels)} images ({by}), {self.measured_ms:.2f} ms, "
            f"deadline {self.deadline_ms:g} ms {state}>"
        )

    def _mean(self, by_step: list[float]) -> float:
        answered = [step.answered for step in self.steps]
        total = sum(value * n for value, n in zip(by_step, answered, strict=True) if n)
        return total / sum(answered) if any(answered) else math.nan
