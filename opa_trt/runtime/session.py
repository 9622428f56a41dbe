"""The runtime's door: ``load`` a bundle, ``infer`` under a deadline."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from opa_trt.backends import Backend, Engine
from opa_trt.bundle import PROFILE, Bundle, Manifest
from opa_trt.clock import Clock
from opa_trt.device import CPU, Device
from opa_trt.errors import SessionClosed
from opa_trt.policies import Arrival, Budget, Knowledge, Outcome, make_policy, route_end
from opa_trt.runtime.buffers import Buffer
from opa_trt.runtime.engines import EngineLoader, open_loader
from opa_trt.runtime.group import Group, Machinery
from opa_trt.runtime.images import check_deadline, check_images
from opa_trt.runtime.latency import LatencyModel
from opa_trt.runtime.result import Result
from opa_trt.store import EngineStore, LatencyProfile
from opa_trt.tree import FEATURES, Node, Tree

log = logging.getLogger(__name__)


def load(
    path: Path | str,
    *,
    policy: str = "opa",
    backend: str | Backend = "auto",
    threads: int | None = None,
    precision: str | None = None,
    compile: str = "auto",
    trusted: bool = True,
    store: EngineStore | None = None,
    clock: Clock | None = None,
) -> Session:
    """Open a bundle for this machine: check it, find or compile engines, verify and profile them.

    Args:
        path: the bundle's folder.
        policy: ``opa``, ``static``, or ``static:NODE``.
        backend: a name (``name:device`` for another than its usual device), ``auto`` (what the
            build found fastest for each segment, else the first that works), or one made by the
            caller.
        threads: for torch and the vendor; by default the build's, at most this machine's cores.
        precision: ``fp32`` or ``fp16``; by default what the bundle was built for.
        compile: ``auto`` compiles engines that are missing here, ``never`` raises.
        trusted: False reads only what cannot execute code: ONNX, and engines of backends that
            read it (TorchScript and pt2 can execute code).
        store: where engines and latencies of this machine are kept; the user's cache by default.
        clock: what tells the time; the machine's by default.

    Returns:
        A session; close it, or use it in a ``with``.

    Raises:
        BundleError: missing, altered, later, untrusted, or for another machine.
        BackendUnavailable: the backend does not work here.
        DeviceMemoryError: the device has no room for an entry's engine.
        UnknownNameError: no such policy, node or backend.
    """
    loader = open_loader(
        path,
        backend=backend,
        threads=threads,
        precision=precision,
        compile=compile,
        trusted=trusted,
        store=store,
        clock=clock,
    )
    knowledge = read_knowledge(loader.bundle)
    # a wrong name is told before anything compiles
    chosen = make_policy(policy, loader.bundle.tree, knowledge)
    loader.bundle.tree.entries_of(chosen.system)
    engines = loader.engines()
    session = Session(loader, engines, loader.profiles(engines), knowledge, policy)
    log.info("%s: ready, %s", path, session)
    return session


def read_knowledge(bundle: Bundle) -> Knowledge:
    """What the bundle's build learned about accuracy."""
    codes = {node.name: np.array(node.code, dtype=np.float32) for node in bundle.manifest.nodes}
    return Knowledge.from_arrays(bundle.arrays(PROFILE), codes)


class Session:
    """Engines that are loaded, verified and warm, and a policy. ``load`` makes one.

    ``infer`` may be called from several threads; groups are answered one at a time.
    """

    def __init__(
        self,
        loader: EngineLoader,
        engines: dict[str, Engine],
        profiles: dict[str, LatencyProfile],
        knowledge: Knowledge,
        policy: str,
    ) -> None:
        self._bundle = bundle = loader.bundle
        self._tree = tree = loader.tree
        self._left_out = dict(loader.left_out)
        self._profiles = profiles
        self._knowledge = knowledge
        self._lock = threading.Lock()
        self._closed = False
        manifest = bundle.manifest
        away = loader.device.name != CPU
        first = manifest.segments[tree.entries[0].segment].inputs[0]
        self._machinery = machinery = Machinery(
            tree=tree,
            engines=engines,
            device=loader.device,
            images=Buffer(first, manifest.max_batch, loader.device) if away else None,
            buffers=_buffers(tree, manifest, loader.device),
            latency=LatencyModel(tree, profiles, manifest.max_batch),
            policy=make_policy(policy, tree, knowledge),
            clock=loader.clock,
            buckets=manifest.buckets,
        )
        if machinery.images is not None:
            self._prepare(machinery.images)

    # --- what a user asks -------------------------------------------------------------------

    def infer(self, images: Any, deadline_ms: float, *, layout: str | None = None) -> Result:
        """Answer a group of images within a deadline, as well as its images and the load allow.

        Always answers: where nothing fits, the entry's own logits are the answer. Groups above
        the bundle's largest batch are answered in chunks under the one deadline.

        Args:
            images: ``[N, 3, S, S]`` or ``[N, S, S, 3]``, torch (CPU) or numpy, uint8 0 to 255
                (float32 0 to 1 where the recipe says so). Not kept, not changed.
            deadline_ms: from this call to the logits on the host.
            layout: ``NCHW`` or ``NHWC``, where the channel count does not tell.

        Raises:
            ImageError: images that cannot be read as such.
            DeadlineError: a deadline that is not above 0.
            SessionClosed: after ``close``.
        """
        start = self._machinery.clock.now_ms()  # waiting for another thread's group counts
        with self._lock:
            if self._closed:
                message = f"the session of {self._bundle.path} is closed."
                raise SessionClosed(message, remedy="load the bundle again.")
            deadline = check_deadline(deadline_ms, self._fastest)
            pixels = check_images(images, self._bundle.manifest.images, layout)
            return self._infer(pixels, start, deadline)

    def use(self, policy: str, **options: Any) -> None:
        """Decide with another policy from now on; its memory starts empty.

        Raises:
            UnknownNameError: no such policy or node.
            ConfigError: an impossible option.
        """
        made = make_policy(policy, self._tree, self._knowledge, **options)
        with self._lock:
            self._machinery.follow(made)

    def close(self) -> None:
        """Release the engines; a second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for engine in self._machinery.engines.values():
                    engine.close()

    # --- what a user may look at ------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def tree(self) -> Tree:
        """The nodes whose engines are loaded."""
        return self._tree

    @property
    def left_out(self) -> dict[str, str]:
        """Segments that the device had no room for, and what the vendor said."""
        return dict(self._left_out)

    @property
    def backend(self) -> str:
        """The backend that runs the engines (``a+b`` where there are several)."""
        targets = [engine.target.backend for engine in self._machinery.engines.values()]
        names = [name for target in targets for name in target.split("+")]
        return "+".join(dict.fromkeys(names))

    @property
    def profiles(self) -> dict[str, LatencyProfile]:
        """Each node's latency profile on this machine."""
        return dict(self._profiles)

    @property
    def slowdown(self) -> float:
        """Measured over profiled latency, as last known."""
        return self._machinery.latency.slowdown

    def route_ms(self, node: str, batch: int, quantile: float = 0.5) -> float:
        """Profiled latency in ms of the route that ends at ``node``, at a batch size.

        Raises:
            UnknownNameError: no such node.
            ConfigError: it has no logits.
        """
        path = self.tree.route_to(route_end(self.tree, node)).nodes
        return sum(self._profiles[name].at(batch, quantile) for name in path)

    def __repr__(self) -> str:
        routes = sum(1 for _ in self.tree.routes())
        return f"<Session {self._bundle.path.name}: {routes} routes on {self.backend}>"

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- how it is done ---------------------------------------------------------------------

    def _infer(self, pixels: torch.Tensor, start: float, deadline: float) -> Result:
        count, chunk = pixels.shape[0], self.manifest.max_batch
        classes = self.manifest.classes
        group = Group(self._machinery, pixels, len(classes), start, deadline)
        entry = self._entry(count, deadline)
        with self._machinery.device.scope():
            for first in range(0, count, chunk):
                group.run_chunk(entry, first, chunk)
        outcome = Outcome(count, entry.name, group.elapsed_ms(), deadline)
        machinery = self._machinery
        machinery.state = machinery.policy.learn(outcome, machinery.state)
        return Result(
            logits=group.logits,
            labels=group.logits.argmax(axis=1),
            nodes=group.nodes,
            classes=classes,
            steps=tuple(group.steps),
            deadline_ms=deadline,
            predicted_ms=sum(step.predicted_ms for step in group.steps),
            measured_ms=group.elapsed_ms(),
            fallback=group.fallback,
        )

    def _prepare(self, images: Buffer) -> None:
        """Let every engine get ready for the buffers that it will run on, at every bucket."""
        machinery = self._machinery
        with machinery.device.scope():
            for node in self._tree.nodes.values():
                source = images
                if node.source == FEATURES:
                    source = machinery.buffers[self._tree.parents[node.name]][FEATURES]
                for batch in self.manifest.buckets:
                    rooms = machinery.buffers[node.name].items()
                    out = {name: room.lease(batch).tensor() for name, room in rooms}
                    inputs = {node.source: source.lease(batch).tensor()}
                    machinery.engines[node.segment].prepare(inputs, out)
            machinery.device.wait()

    def _entry(self, count: int, deadline: float) -> Node:
        """The policy's entry, or the largest whose cheapest way fits at the last slowdown."""
        machinery = self._machinery
        policy, latency = machinery.policy, machinery.latency
        entries = machinery.entries
        if len(entries) == 1:
            return entries[0]
        names = tuple(entry.name for entry in entries)
        each = latency.of_group(count, self.manifest.max_batch)
        cheapest = latency.cheapest(names, each)[:, 0]
        arrival = Arrival(
            images=count,
            entries=names,
            group_ms=cheapest,
            each_ms=dict(zip(self.tree.nodes, each[:, 0].tolist(), strict=True)),
            slowdown=latency.slowdown,
        )
        chosen, machinery.state = policy.enter(arrival, Budget(deadline), machinery.state)
        if chosen is not None:
            return self.tree[chosen]
        ms = dict(zip(names, cheapest.tolist(), strict=True))
        fitting = [entry for entry in entries if ms[entry.name] <= deadline]
        if not fitting:
            return min(entries, key=lambda entry: ms[entry.name])
        return max(fitting, key=lambda entry: (entry.resolution, entry.accuracy))

    def _fastest(self) -> str:
        batch = self.manifest.buckets[0]
        ends = [route.last for route in self.tree.routes()]
        fastest = min(self.route_ms(end, batch, 0.99) for end in ends)
        return (
            f"The fastest route of {self._bundle.path.name} takes {fastest:.2g} ms "
            f"(p99, batch {batch}) on this machine."
        )


def _buffers(tree: Tree, manifest: Manifest, device: Device) -> dict[str, dict[str, Buffer]]:
    """Room for what every node gives, at the largest batch."""
    return {
        node.name: {
            spec.name: Buffer(spec, manifest.max_batch, device)
            for spec in manifest.segments[node.segment].outputs
        }
        for node in tree.nodes.values()
    }
