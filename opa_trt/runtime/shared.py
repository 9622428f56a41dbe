"""What a session and its forks have in common, and what each of them needs for itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from opa_trt.backends import Engine
from opa_trt.bundle import Bundle, Manifest
from opa_trt.clock import Clock
from opa_trt.device import CPU, Device, device
from opa_trt.policies import Knowledge, Policy, route_end
from opa_trt.runtime.buffers import Buffer
from opa_trt.runtime.engines import EngineLoader
from opa_trt.runtime.group import Machinery
from opa_trt.runtime.latency import LatencyModel
from opa_trt.runtime.margin import PROMISE
from opa_trt.store import LatencyProfile
from opa_trt.tree import FEATURES, OPA, Tree

WARM_UP_MS = 1000.0  # of a session's first runs, on the host


@dataclass(frozen=True)
class Shared:
    """What several sessions read and none changes.

    Args:
        bundle: opened.
        tree: the nodes whose engines are loaded.
        left_out: segments without room, and why.
        profiles: of every node on this machine.
        knowledge: of the build, about accuracy.
        device: where engines run.
        clock: what tells the time.
        threads: for torch and the vendors; 0 where no engine is loaded.
        promise: the share of deadlines to be met.
    """

    bundle: Bundle
    tree: Tree
    left_out: Mapping[str, str]
    profiles: Mapping[str, LatencyProfile]
    knowledge: Knowledge
    device: str
    clock: Clock
    threads: int = 0
    promise: float = PROMISE

    @classmethod
    def of(
        cls,
        loader: EngineLoader,
        profiles: Mapping[str, LatencyProfile],
        knowledge: Knowledge,
        promise: float = PROMISE,
    ) -> Shared:
        """Of a loader that has loaded its engines."""
        return cls(
            bundle=loader.bundle,
            tree=loader.tree,
            left_out=dict(loader.left_out),
            profiles=profiles,
            knowledge=knowledge,
            device=loader.device.name,
            clock=loader.clock,
            threads=loader.threads,
            promise=promise,
        )

    @property
    def manifest(self) -> Manifest:
        """The bundle's."""
        return self.bundle.manifest

    def route_ms(self, node: str, batch: int, quantile: float = 0.5) -> float:
        """Profiled latency in ms of the route that ends at ``node``, at a batch size.

        Raises:
            UnknownNameError: no such node.
            ConfigError: it has no logits.
        """
        path = self.tree.route_to(route_end(self.tree, node)).nodes
        return sum(self.profiles[name].at(batch, quantile) for name in path)

    def fastest(self) -> str:
        """A sentence on what this machine can do at best."""
        batch = self.manifest.buckets[0]
        ends = [route.last for route in self.tree.routes() if self.tree[route.last].system == OPA]
        ms = min(self.route_ms(end, batch, 0.99) for end in ends)
        return (
            f"The fastest route of {self.bundle.path.name} takes {ms:.2g} ms "
            f"(p99, batch {batch}) on this machine."
        )

    def machinery(self, engines: Mapping[str, Engine], policy: Policy) -> Machinery:
        """Buffers, beliefs and a stream of their own around ``engines``, ready for groups."""
        manifest, place = self.manifest, device(self.device)
        first = manifest.segments[self.tree.entries[0].segment].inputs[0]
        images = Buffer(first, manifest.max_batch, place)
        made = Machinery(
            tree=self.tree,
            engines=engines,
            device=place,
            images=None if place.name == CPU else images,
            buffers=self._buffers(place),
            parts=self._parts(place),
            latency=LatencyModel(self.tree, self.profiles, manifest.max_batch, self.promise),
            policy=policy,
            clock=self.clock,
            buckets=manifest.buckets,
        )
        self._prepare(made, images)
        return made

    def _buffers(self, place: Device) -> dict[str, dict[str, Buffer]]:
        """Room for what every node gives, at the largest batch."""
        return {
            node.name: {
                spec.name: Buffer(spec, self.manifest.max_batch, place)
                for spec in self.manifest.segments[node.segment].outputs
            }
            for node in self.tree.nodes.values()
        }

    def _parts(self, place: Device) -> dict[str, Buffer]:
        """Room for those rows of a node's features that go on without the others."""
        made = {}
        for node in self.tree.nodes.values():
            outputs = self.manifest.segments[node.segment].outputs
            if any(self.tree[name].source == FEATURES for name in node.successors):
                (features,) = (spec for spec in outputs if spec.name == FEATURES)
                made[node.name] = Buffer(features, self.manifest.max_batch, place)
        return made

    def _prepare(self, machinery: Machinery, images: Buffer) -> None:
        """Let every engine get ready for the memory that it will run on, at every bucket.

        On the host that saves the first groups time alone: what takes long by itself is left out.
        """
        left = WARM_UP_MS if machinery.device.name == CPU else math.inf
        with machinery.device.scope():
            for batch, node in product(self.manifest.buckets, self.tree.nodes.values()):
                sources = [images]
                if node.source == FEATURES:
                    parent = self.tree.parents[node.name]
                    sources = [machinery.buffers[parent][FEATURES], machinery.parts[parent]]
                left -= len(sources) * self.profiles[node.name].at(batch)
                if left < 0:
                    break
                rooms = machinery.buffers[node.name].items()
                out = {name: room.lease(batch).tensor() for name, room in rooms}
                for source in sources:
                    inputs = {node.source: source.lease(batch).tensor()}
                    machinery.engines[node.segment].prepare(inputs, out)
            machinery.device.wait()
