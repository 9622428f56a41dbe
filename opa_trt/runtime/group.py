"""One group of images on its way through the tree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.clock import Clock
from opa_trt.device import Device
from opa_trt.errors import ConfigError
from opa_trt.policies import STOP, Budget, Decision, Policy, View
from opa_trt.runtime.buffers import Buffer, Lease
from opa_trt.runtime.latency import LatencyModel
from opa_trt.runtime.result import Step
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Tree

Rows = npt.NDArray[np.int64]
Logits: TypeAlias = npt.NDArray[np.float32] | None


@dataclass
class Machinery:
    """What every group of a session uses: engines, buffers, beliefs, and what decides.

    ``buffers`` holds what each node gives, by its name and the output's; ``images`` the pixels,
    where the device is not the host.
    """

    tree: Tree
    engines: Mapping[str, Engine]
    device: Device
    images: Buffer | None
    buffers: Mapping[str, Mapping[str, Buffer]]
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
        self.engine_ms = 0.0
        self.leases: dict[str, Lease] = {}

    def elapsed_ms(self) -> float:
        """Since the group entered."""
        return self.machinery.clock.now_ms() - self.start_ms

    def own_ms(self) -> float:
        """Since the group entered, engines left out: what the runtime itself took."""
        return self.elapsed_ms() - self.engine_ms

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
        logits, measured = self._execute(entry, self.pixels[rows[0] : rows[-1] + 1])
        reading = latency.read(entry.name, len(rows), measured)
        latency.observe_entry(entry.name, len(rows), measured)
        reserved = sum(
            latency.expected(entry.name, min(chunk, len(later) - start), reading)
            for start in range(0, len(later), chunk)
        )
        now = self.elapsed_ms()
        free = self.deadline_ms - now - reserved - latency.overhead_ms
        until = now + free * len(rows) / (len(rows) + len(later))
        self._answer(entry, rows, logits, until, reading, Seen(expected, measured, slowdown))

    def _execute(self, node: Node, source: Tensor) -> tuple[Logits, float]:
        """Run a node on its rows: its logits on the host, if it has any, and ms until then.

        ``source`` is on the host where the node reads images, and else on the device.
        """
        machinery, rows = self.machinery, len(source)
        begun = machinery.clock.now_ms()
        if node.source == IMAGES:
            room = None if machinery.images is None else machinery.images.lease(rows).tensor()
            source = machinery.device.upload(source, room)
        leases = {key: given.lease(rows) for key, given in machinery.buffers[node.name].items()}
        out = {name: lease.tensor() for name, lease in leases.items()}
        machinery.engines[node.segment].run({node.source: source}, out)
        logits = machinery.device.download(out[LOGITS]) if LOGITS in out else None
        if logits is None:
            machinery.device.wait()
        measured = machinery.clock.now_ms() - begun
        if FEATURES in leases:
            self.leases[node.name] = leases[FEATURES]
        self.engine_ms += measured
        return logits, measured

    def _answer(
        self,
        node: Node,
        rows: Rows,
        logits: Logits,
        until_ms: float,
        slowdown: float,
        seen: Seen,
    ) -> None:
        """Note the node's logits, ask the policy where its images go, and send them there.

        ``until_ms`` is when these rows must be answered, counted from the group's entry.
        """
        if logits is not None:
            self.logits[rows] = logits
            self.nodes[rows] = node.name
        decision, begun = None, self.own_ms()
        if node.successors:
            left = until_ms - self.elapsed_ms()
            decision = self._decide(node, logits, len(rows), left, slowdown)
            self.fallback |= not decision.fits and bool((decision.choice == STOP).any())
        accuracy = seen.accuracy if decision is None else decision.estimated_accuracy
        self.steps.append(
            Step(
                node.name, len(rows), seen.expected_ms, seen.measured_ms, accuracy,
                node.accuracy, seen.slowdown, decision,
            )
        )  # fmt: skip
        if decision is not None:
            self._follow(node, rows, decision, until_ms, slowdown)
            if (decision.choice != STOP).any():
                self.machinery.latency.observe_overhead(self.own_ms() - begun)

    def _decide(
        self, node: Node, logits: Logits, count: int, left_ms: float, slowdown: float
    ) -> Decision:
        machinery = self.machinery
        batches = (*(bucket for bucket in machinery.buckets if bucket < count), count)
        view = View(
            node=node.name,
            logits=logits,
            successors=node.successors,
            batches=batches,
            latency_ms=machinery.latency.cheapest(node.successors, batches, slowdown),
            slowdown=slowdown,
        )
        decision, machinery.state = machinery.policy.step(view, Budget(left_ms), machinery.state)
        if logits is None and bool((decision.choice == STOP).any()):
            message = f"policy {machinery.policy.name} stopped images at {node.name}."
            raise ConfigError(message, expected="a node that has logits.")
        return decision

    def _follow(
        self,
        node: Node,
        rows: Rows,
        decision: Decision,
        until_ms: float,
        slowdown: float,
    ) -> None:
        """Run the chosen successors, each on its share of the images."""
        machinery = self.machinery
        for index in np.unique(decision.choice[decision.choice != STOP]):
            child = machinery.tree[node.successors[index]]
            chosen = np.flatnonzero(decision.choice == index)
            features = child.source == FEATURES
            source = self.leases[node.name].tensor() if features else self.pixels[rows]
            if len(chosen) < len(rows):
                source = source[torch.from_numpy(chosen).to(source.device)]
            expected = machinery.latency.expected(child.name, len(chosen), slowdown)
            made, measured = self._execute(child, source.contiguous())
            machinery.latency.observe(child.name, expected, measured)
            seen = Seen(expected, measured, slowdown, decision.predicted_accuracy[index])
            self._answer(child, rows[chosen], made, until_ms, slowdown, seen)


@dataclass(frozen=True)
class Seen:
    """What was expected of a node, and what it took."""

    expected_ms: float
    measured_ms: float
    slowdown: float
    accuracy: float = math.nan
