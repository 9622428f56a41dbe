"""Groups whose content drifts, answered by several policies in turn under several deadlines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.progress import Progress
from opa_trt.runtime import Result, Session
from opa_trt.training.data import Images
from opa_trt.training.degrade import degrade, drift
from opa_trt.tree import OPA


@dataclass(frozen=True)
class StreamGroup:
    """One group: ``[N, 3, S, S] uint8``, its true labels, and what was done to its images."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    family: str
    severity: int


@dataclass(frozen=True)
class Answer:
    """What one policy made of one group."""

    accuracy: float
    in_time: bool
    ms: float
    node: str
    predicted_ms: float


@dataclass(frozen=True)
class Arm:
    """One policy under one deadline, over the whole stream."""

    policy: str
    label: str
    deadline_ms: float
    answers: tuple[Answer, ...]

    def summary(self) -> dict[str, Any]:
        """Means over groups: accuracies 0 to 1, latencies in ms, share of deadlines met."""
        ms = np.array([answer.ms for answer in self.answers])
        right = np.array([answer.accuracy for answer in self.answers])
        met = np.array([answer.in_time for answer in self.answers])
        nodes, counts = np.unique([answer.node for answer in self.answers], return_counts=True)
        return {
            "deadline_ms": self.deadline_ms,
            "policy": self.label,
            "accuracy": float(right.mean()),
            "in_time_accuracy": float((right * met).mean()),
            "deadlines_met": float(met.mean()),
            "p50_ms": float(np.quantile(ms, 0.5)),
            "p99_ms": float(np.quantile(ms, 0.99)),
            "nodes": dict(zip(nodes.tolist(), counts.tolist(), strict=True)),
        }


def make_stream(
    images: Images, families: Sequence[str], groups: int, size: int, seed: int
) -> list[StreamGroup]:
    """``groups`` groups of ``size`` images whose degradation drifts from clean to hard and back.

    Args:
        images: what groups are drawn from, without replacement where there are enough.
        families: of degradations; none means that the content does not drift.
        groups: how many.
        size: images a group.
        seed: of draws and degradations.
    """
    rng = np.random.default_rng([seed, 61])
    schedule = drift(groups, families, seed) if families else [("clean", 0)] * groups
    made = []
    for index, (family, severity) in enumerate(schedule):
        rows = rng.choice(len(images), size=size, replace=size > len(images))
        pixels = degrade(images.pixels[rows], family, severity, seed + index)
        made.append(StreamGroup(pixels, images.labels[rows], family, severity))
    return made


def run_arms(
    session: Session,
    stream: Sequence[StreamGroup],
    arms: Sequence[tuple[str, str]],
    deadlines: Sequence[float],
    progress: Progress | None = None,
) -> list[Arm]:
    """Every policy under every deadline over the stream.

    Policies take turns group by group, so that a passing load meets all of them. Each has a fork
    of the session: the same engines, and its own memory and beliefs about latency.

    Args:
        session: whose engines run.
        stream: the groups, in order.
        arms: (policy, label) pairs.
        deadlines: in ms.
        progress: hears of every group.
    """
    progress = progress or Progress()
    answers: list[list[list[Answer]]] = [[[] for _ in arms] for _ in deadlines]
    done = 0
    with ExitStack() as stack:
        forks = [stack.enter_context(session.fork()) for _ in arms]
        for under, deadline in zip(answers, deadlines, strict=True):
            for fork, (policy, _) in zip(forks, arms, strict=True):
                fork.use(policy)
            for index, group in enumerate(stream):
                for i in _turn(len(arms), index):
                    under[i].append(_answer(forks[i].infer(group.pixels, deadline), group))
                done += 1
                progress.advance(done)
    return [
        Arm(policy, label, deadline, tuple(given))
        for under, deadline in zip(answers, deadlines, strict=True)
        for (policy, label), given in zip(arms, under, strict=True)
    ]


def choose_deadlines(session: Session, batch: int, fractions: Sequence[float]) -> list[float]:
    """Deadlines in ms between the fastest and the slowest complete route, at a batch size.

    A fraction of 0 is 1.1 times the fastest route's p99, 1 is 1.2 times the slowest's median;
    they are rounded to two significant digits.
    """
    nodes = (session.tree[route.last] for route in session.tree.routes())
    ends = [node.name for node in nodes if node.system == OPA and not node.successors]
    low = 1.1 * min(session.route_ms(end, batch, 0.99) for end in ends)
    high = max(low, 1.2 * max(session.route_ms(end, batch) for end in ends))
    return [_two_digits(low + fraction * (high - low)) for fraction in fractions]


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}") if math.isfinite(value) and value > 0 else value


def _turn(count: int, index: int) -> list[int]:
    """The arms in an order that changes with the group: none is always first."""
    return [(index + i) % count for i in range(count)]


def _answer(result: Result, group: StreamGroup) -> Answer:
    names, counts = np.unique(result.nodes, return_counts=True)
    return Answer(
        accuracy=result.accuracy(group.labels),
        in_time=result.deadline_met,
        ms=result.measured_ms,
        node=str(names[int(counts.argmax())]),
        predicted_ms=result.predicted_ms,
    )
