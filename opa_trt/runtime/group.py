"""One group of images on its way through the tree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.clock import Clock
from opa_trt.device import Device
from opa_trt.errors import ConfigError
from opa_trt.policies import STOP, Budget, Decision, Policy, Promise, View, unreadable
from opa_trt.runtime.buffers import Buffer, Lease
from opa_trt.runtime.latency import LatencyModel
from opa_trt.runtime.listener import Listener
from opa_trt.runtime.overheads import Kind
from opa_trt.runtime.result import Step
from opa_trt.runtime.tries import TriesByDeadline
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Tree

Indices: TypeAlias = npt.NDArray[np.int64]
Rows: TypeAlias = slice | Indices  # of a group: a chunk's, or some of them
Logits: TypeAlias = npt.NDArray[np.float32] | None
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass
class Machinery:
    """What every group of a session uses: engines, buffers, beliefs, and what decides.

    ``buffers`` holds what each node gives, by its name and the output's; ``parts`` those rows of a
    node's features that go on without the others; ``images`` the pixels, where the device is not
    the host.
    """

    tree: Tree
    engines: Mapping[str, Engine]
    device: Device
    images: Buffer | None
    buffers: Mapping[str, Mapping[str, Buffer]]
    parts: Mapping[str, Buffer]
    latency: LatencyModel
    policy: Policy
    clock: Clock
    buckets: tuple[int, ...]
    listener: Listener = field(default_factory=Listener)
    tries: TriesByDeadline = field(default_factory=TriesByDeadline)
    _batches: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = np.array([*self.tree.nodes])
        self.places = {name: place for place, name in enumerate(self.tree.nodes)}
        self.follow(self.policy)

    def follow(self, policy: Policy) -> None:
        """Let a policy decide from now on; its memory starts empty."""
        own = self.tree.entries_of(policy.system)
        beside = (entry for entry in self.tree.entries if entry.system in policy.beside)
        self.entries = (*own, *beside)
        self.policy, self.state = policy, policy.start()
        # the best accuracy of an entry and of all answers below it, as the build measured them
        self.reach = {
            entry.name: max(self.tree[way.last].accuracy for way in self.tree.routes(entry.name))
            for entry in self.entries
        }

    def view(
        self,
        node: Node,
        batches: tuple[int, ...],
        every: Floats,
        promise: Promise,
        slowdown: float,
        logits: Logits = None,
    ) -> View:
        """What a policy sees after ``node``.

        Args:
            node: that ran.
            batches: as ``batches`` gave them.
            every: ms to expect of every node at these.
            promise: of what comes after the node.
            slowdown: as believed.
            logits: of the images that are pending, if the node gives some.
        """
        latency = self.latency
        return View(
            node=node.name,
            logits=logits,
            successors=node.successors,
            batches=batches,
            latency_ms=latency.cheapest(node.successors, every, promise),
            slowdown=slowdown,
            split_ms=latency.overheads.beyond_ms(),
            overhead_ms=latency.overheads.ms(Kind.WHOLE),
            each_ms=every,
            promise=promise,
        )

    def batches(self, count: int) -> tuple[int, ...]:
        """The sizes that a policy may think of for ``count`` images, ascending to ``count``."""
        found = self._batches.get(count)
        if found is None:
            below = (bucket for bucket in self.buckets if bucket < count)
            found = self._batches[count] = (*below, count)
        return found


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
        count = self.pixels.shape[0]
        self.logits = np.empty((count, self.classes), dtype=np.float32)
        self.answered_by = np.empty(count, dtype=np.intp)  # places in ``machinery.names``
        self.engine_ms = self.answered_ms = 0.0
        self.followed: list[float] = []  # ms expected of each node after a chunk's entry
        self.leases: dict[str, Lease] = {}

    def elapsed_ms(self) -> float:
        """Since the group entered."""
        return self.machinery.clock.now_ms() - self.start_ms

    @property
    def nodes(self) -> npt.NDArray[np.str_]:
        """``[N]`` the name of the node that answered each image."""
        return self.machinery.names[self.answered_by]

    def run_chunk(self, entry: Node, first: int, chunk: int) -> None:
        """Answer ``chunk`` images (or what is left) from ``first`` on.

        Time is left for the entries of those that come later, and a fair share of the rest. What is
        learned from it comes after ``answered_ms``, which counts from the group's entry.
        """
        total = self.pixels.shape[0]
        count = min(chunk, total - first)
        later = total - first - count
        rows = slice(first, first + count)
        latency = self.machinery.latency
        slowdown = latency.slowdown
        expected = latency.expected(entry.name, count)
        begun = self.elapsed_ms()
        logits, measured = self._execute(entry, self._pixels(rows))
        reading = latency.read(entry.name, count, measured)
        latency.observe_entry(entry.name, count, measured)
        reserved = sum(
            latency.expected(entry.name, min(chunk, later - start), reading)
            for start in range(0, later, chunk)
        )
        now, engines = self.elapsed_ms(), self.engine_ms
        free = self.deadline_ms - now - reserved
        until = now + free * count / (count + later)
        seen = Seen(count, expected, measured, slowdown, count)
        self.followed.clear()
        decision = self._answer(entry, rows, logits, until, reading, seen)
        self.answered_ms = self.elapsed_ms()
        took, ran = self.answered_ms - now, self.engine_ms - engines
        if decision is not None:
            self._learn(decision, took, took - ran, reading)
        else:
            took = self.answered_ms - begun
            latency.observe_alone(expected, took, took - measured)

    def _learn(self, decision: Decision, took_ms: float, own_ms: float, slowdown: float) -> None:
        """What the first decision on a chunk led to: how long it took, and of that the runtime."""
        latency = self.machinery.latency
        if not self.followed:
            latency.overheads.observe(Kind.STOP, took_ms)
            return
        latency.observe_rest(
            sum(self.followed),
            took_ms,
            own_ms,
            nodes=len(self.followed),
            split=bool((decision.choice != decision.choice[0]).any()),
            slowdown=slowdown,
        )

    def _execute(self, node: Node, source: Tensor) -> tuple[Logits, float]:
        """Run a node on its rows: its logits on the host, if it has any, and ms until then.

        ``source`` is on the host where the node reads images, and else on the device.
        """
        machinery, rows = self.machinery, source.shape[0]
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
    ) -> Decision | None:
        """Ask the policy where a node's images go, and send them there, or keep its logits.

        ``until_ms`` is when these rows must be answered, counted from the group's entry.
        """
        decision, accuracy = None, seen.accuracy
        if node.successors:
            left = until_ms - self.elapsed_ms()
            decision = self._decide(node, logits, seen, left, slowdown)
            self.machinery.listener.tell(decision, node.name)
            accuracy = decision.estimated_accuracy
        self.steps.append(
            Step(
                node.name, seen.images, seen.expected_ms, seen.measured_ms, accuracy,
                node.accuracy, seen.slowdown, decision, logits is not None,
            )
        )  # fmt: skip
        if decision is None:
            self._keep(node, rows, logits)
            return None
        chosen = sorted(set(decision.choice.tolist()))
        for index in chosen:  # STOP comes first: on a GPU the next download ends these logits
            share = None if len(chosen) == 1 else np.flatnonzero(decision.choice == index)
            if index != STOP:
                self._follow(node, index, decision, rows, share, until_ms, slowdown, seen)
                continue
            self.fallback |= not decision.fits
            kept = logits if share is None or logits is None else logits[share]
            self._keep(node, _part(rows, share), kept)
        return decision

    def _keep(self, node: Node, rows: Rows, logits: Logits) -> None:
        """These rows' answer is the node's."""
        self.logits[rows] = logits
        self.answered_by[rows] = self.machinery.places[node.name]

    def _decide(
        self, node: Node, logits: Logits, seen: Seen, left_ms: float, slowdown: float
    ) -> Decision:
        machinery = self.machinery
        batches, latency = machinery.batches(seen.images), machinery.latency
        every = latency.every((*batches[:-1], seen.rows), slowdown)
        promise = latency.promise(slowdown)
        view = machinery.view(node, batches, every, promise, slowdown, logits)
        if logits is not None and not math.isfinite(logits.sum(dtype=np.float64)):
            return unreadable(view, left_ms)
        decision, machinery.state = machinery.policy.step(view, Budget(left_ms), machinery.state)
        if logits is None and bool((decision.choice == STOP).any()):
            message = f"policy {machinery.policy.name} stopped images at {node.name}."
            raise ConfigError(message, expected="a node that has logits.")
        return decision

    def _follow(
        self,
        node: Node,
        index: int,
        decision: Decision,
        rows: Rows,
        share: Indices | None,
        until_ms: float,
        slowdown: float,
        before: Seen,
    ) -> None:
        """Run a successor on its share of the rows (None: all of them)."""
        latency = self.machinery.latency
        child = self.machinery.tree[node.successors[index]]
        read = share
        if share is not None or child.source == IMAGES:
            read = self._filled(share, before)
        if child.source == IMAGES:
            source = self._pixels(_part(rows, read))
        elif read is None:
            source = self.leases[node.name].tensor()
        else:
            source = self._gathered(node, read)
        rows = _part(rows, share)
        count = _count(rows)
        expected = latency.expected(child.name, source.shape[0], slowdown)
        self.followed.append(expected)
        logits, measured = self._execute(child, source)
        latency.observe(child.name, expected, measured)
        if logits is not None:
            logits = logits[:count]
        accuracy = decision.predicted_accuracy[index]
        seen = Seen(count, expected, measured, slowdown, source.shape[0], accuracy)
        self._answer(child, rows, logits, until_ms, slowdown, seen)

    def _filled(self, share: Indices | None, before: Seen) -> Indices | None:
        """A share (None: all) of a node's images with its last one repeated up to a batch size that
        the policy thought of; None where nothing is to be changed.

        Vendors prepare for each size that they meet, which takes many times as long as running it.
        """
        if share is None:
            if before.rows == before.images:
                return None
            share = np.arange(before.images)
        smaller = self.machinery.batches(before.images)[:-1]
        size = next((n for n in smaller if n >= len(share)), before.rows)
        return np.pad(share, (0, size - len(share)), mode="edge")

    def _gathered(self, node: Node, read: Indices) -> Tensor:
        """These rows of a node's features, in memory that is its own."""
        features = self.leases[node.name].tensor()
        part = self.machinery.parts[node.name].lease(len(read)).tensor()
        return self.machinery.device.gather(features, read, part)

    def _pixels(self, rows: Rows) -> Tensor:
        if isinstance(rows, slice):
            return self.pixels[rows]
        # Not by torch, whose threads would go on spinning while the engine's want the cores.
        return torch.from_numpy(np.take(self.pixels.numpy(), rows, axis=0))


@dataclass(frozen=True)
class Seen:
    """On how many images a node ran (and rows, where some were filled up), what was expected of
    it, and what it took."""

    images: int
    expected_ms: float
    measured_ms: float
    slowdown: float
    rows: int
    accuracy: float = math.nan


def _count(rows: Rows) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _part(rows: Rows, share: Indices | None) -> Rows:
    """A share (None: all) of some rows of a group."""
    if share is None:
        return rows
    return rows.start + share if isinstance(rows, slice) else rows[share]
