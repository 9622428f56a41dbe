"""One group of images on its way through the tree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.clock import Clock
from opa_trt.errors import ConfigError
from opa_trt.policies import STOP, Budget, Decision, Policy, View
from opa_trt.runtime.buffers import Buffer
from opa_trt.runtime.latency import LatencyModel
from opa_trt.runtime.result import Step
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Tree

Rows = npt.NDArray[np.int64]


@dataclass
class Machinery:
    """What every group of a session uses: engines, buffers, beliefs, and what decides."""

    tree: Tree
    engines: Mapping[str, Engine]
    buffers: Mapping[str, Buffer]
    latency: LatencyModel
    policy: Policy
    clock: Clock
    buckets: tuple[int, ...]
    state: Any = None


@dataclass
class Group:
    """A group in flight. ``run_chunk`` takes its images through the tree, chunk by chunk."""

    machinery: Machinery
    pixels: Tensor
    classes: int
    start_ms: float
    deadline_ms: float
    steps: list[Step] = field(default_factory=list)
    fallback: bool = False

    def __post_init__(self) -> None:
        count = len(self.pixels)
        self.logits = np.zeros((count, self.classes), dtype=np.float32)
        self.nodes = np.full(count, "", dtype=object)

    def elapsed_ms(self) -> float:
        """Since the group entered."""
        return self.machinery.clock.now_ms() - self.start_ms

    def run_chunk(self, entry: Node, rows: Rows, later: Rows, chunk: int) -> None:
        """Answer ``rows``, leaving time for the entries (and a fair share more) of ``later``.

        Args:
            entry: where they enter.
            rows: indices of this chunk's images.
            later: indices of the images of later chunks.
            chunk: the largest chunk.
        """
        latency = self.machinery.latency
        slowdown = latency.slowdown
        expected = latency.expected(entry.name, len(rows))
        pixels = (
            self.pixels if len(rows) == len(self.pixels) else self.pixels[rows[0] : rows[-1] + 1]
        )
        outputs, measured = self._execute(entry, {IMAGES: pixels})
        reading = latency.read(entry.name, len(rows), measured)
        latency.observe_entry(entry.name, len(rows), measured)
        reserved = sum(
            latency.expected(entry.name, min(chunk, len(later) - start), reading)
            for start in range(0, len(later), chunk)
        )
        free = self.deadline_ms - self.elapsed_ms() - reserved - latency.overhead_ms
        share = free * len(rows) / (len(rows) + len(later))
        self._answer(entry, rows, outputs, share, reading, Seen(expected, measured, slowdown))

    def _execute(self, node: Node, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        machinery = self.machinery
        rows = len(next(iter(inputs.values())))
        out = {}
        if node.name in machinery.buffers:
            out[FEATURES] = machinery.buffers[node.name].lease(rows).tensor()
        begun = machinery.clock.now_ms()
        outputs = machinery.engines[node.segment].run(inputs, out)
        return outputs, machinery.clock.now_ms() - begun

    def _answer(
        self,
        node: Node,
        rows: Rows,
        outputs: Mapping[str, Tensor],
        left_ms: float,
        slowdown: float,
        seen: Seen,
    ) -> None:
        """Note the node's logits, ask the policy where its images go, and send them there."""
        logits = outputs[LOGITS].numpy() if LOGITS in outputs else None
        if logits is not None:
            self.logits[rows] = logits
            self.nodes[rows] = node.name
        decision = None
        if node.successors:
            decision = self._decide(node, logits, len(rows), left_ms, slowdown)
            self.fallback |= not decision.fits and bool((decision.choice == STOP).any())
        accuracy = seen.accuracy if decision is None else decision.estimated_accuracy
        self.steps.append(
            Step(
                node.name, len(rows), seen.expected_ms, seen.measured_ms, accuracy,
                node.accuracy, seen.slowdown, decision,
            )
        )  # fmt: skip
        if decision is not None:
            self._follow(node, rows, outputs, decision, left_ms, slowdown)

    def _decide(
        self, node: Node, logits: Any, count: int, left_ms: float, slowdown: float
    ) -> Decision:
        machinery = self.machinery
        batches = (*(bucket for bucket in machinery.buckets if bucket < count), count)
        view = View(
            node=node.name,
            logits=logits,
            successors=node.successors,
            batches=batches,
            latency_ms=np.stack(
                [self._cheapest(name, batches, slowdown) for name in node.successors]
            ),
            slowdown=slowdown,
        )
        decision, machinery.state = machinery.policy.step(view, Budget(left_ms), machinery.state)
        if logits is None and bool((decision.choice == STOP).any()):
            message = f"policy {machinery.policy.name} stopped images at {node.name}."
            raise ConfigError(message, expected="a node that has logits.")
        return decision

    def _cheapest(
        self, name: str, batches: tuple[int, ...], slowdown: float
    ) -> npt.NDArray[np.float64]:
        """``[B]`` promised ms of the cheapest way to logits through ``name``."""
        latency = self.machinery.latency
        ways = [
            latency.promise(route.nodes, batches, slowdown).sum(axis=0)
            for route in self.machinery.tree.routes(name)
        ]
        cheapest: npt.NDArray[np.float64] = np.min(ways, axis=0)
        return cheapest

    def _follow(
        self,
        node: Node,
        rows: Rows,
        outputs: Mapping[str, Tensor],
        decision: Decision,
        left_ms: float,
        slowdown: float,
    ) -> None:
        """Run the chosen successors, each on its share of the images."""
        machinery, begun, engine_ms = self.machinery, self.elapsed_ms(), 0.0
        for index in np.unique(decision.choice[decision.choice != STOP]):
            child = machinery.tree[node.successors[index]]
            chosen = np.flatnonzero(decision.choice == index)
            source = outputs[FEATURES] if child.source == FEATURES else self.pixels[rows]
            inputs = source if len(chosen) == len(rows) else source[torch.from_numpy(chosen)]
            expected = machinery.latency.expected(child.name, len(chosen), slowdown)
            made, measured = self._execute(child, {child.source: inputs.contiguous()})
            machinery.latency.observe(child.name, expected, measured)
            engine_ms += measured
            seen = Seen(expected, measured, slowdown, decision.predicted_accuracy[index])
            left = left_ms - (self.elapsed_ms() - begun)
            self._answer(child, rows[chosen], made, left, slowdown, seen)
        if engine_ms:
            machinery.latency.observe_overhead(self.elapsed_ms() - begun - engine_ms)


@dataclass(frozen=True)
class Seen:
    """What was expected of a node, and what it took."""

    expected_ms: float
    measured_ms: float
    slowdown: float
    accuracy: float = math.nan
