"""The runtime's door: ``load`` a bundle, ``infer`` under a deadline."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from opa_trt.backends import Backend, Engine
from opa_trt.bundle import PROFILE, Bundle, Manifest
from opa_trt.clock import Clock
from opa_trt.errors import ConfigError, SessionBusy, SessionClosed
from opa_trt.policies import Knowledge, Outcome, Policy, make_policy
from opa_trt.runtime.engines import open_loader
from opa_trt.runtime.entry import pick_entry
from opa_trt.runtime.group import Group
from opa_trt.runtime.images import check_deadline, check_images
from opa_trt.runtime.listener import Listener, OnDecision, check_listener
from opa_trt.runtime.margin import PROMISE, check_promise
from opa_trt.runtime.metrics import Metrics, Recorder
from opa_trt.runtime.result import Result
from opa_trt.runtime.shared import Shared
from opa_trt.runtime.stream import check_group_size, each_deadline, group_count, grouped
from opa_trt.store import EngineStore, LatencyProfile
from opa_trt.tree import Tree

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
    on_decision: OnDecision | None = None,
    promise: float = PROMISE,
) -> Session:
    """Open a bundle for this machine: check it, find or compile engines, verify and profile them.

    Args:
        path: the bundle's folder.
        policy: ``opa``, ``opa_split``; ``static:NODE``, ``static:smallest`` or ``static:largest``
            (``static`` alone is the largest); ``dynamic_ofa``; and where the recipe asked for
            them, ``cascade`` and ``branchynet``.
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
        on_decision: called with each decision right after it is made, the name of the node that
            ran, and the number of the group from 0. What it takes counts against the deadline.
            An error in it is logged once and passed over.
        promise: the share of deadlines to be met, 0.5 to 0.995, by policies that promise: all but
            ``static`` and ``dynamic_ofa``. A lower one leaves less time unused, and misses more.

    Returns:
        A session; close it, or use it in a ``with``.

    Raises:
        BundleError: missing, altered, later, untrusted, or for another machine.
        BackendUnavailable: the backend does not work here.
        CompileError: an engine that is missing here cannot be compiled.
        ParityError: an engine that was compiled here computes something else.
        DeviceMemoryError: the device has no room for an entry's engine.
        UnknownNameError: no such policy, node or backend.
        ConfigError: an ``on_decision`` that cannot be called; an impossible promise.
    """
    check_listener(on_decision)
    check_promise(promise)
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
    shared = Shared.of(loader, loader.profiles(engines), knowledge, promise)
    session = Session(shared, engines, policy, on_decision=on_decision)
    log.info("%s: ready, %s", path, session)
    return session


def read_knowledge(bundle: Bundle) -> Knowledge:
    """What the bundle's build learned about accuracy."""
    codes = {node.name: np.array(node.code, dtype=np.float32) for node in bundle.manifest.nodes}
    return Knowledge.from_arrays(bundle.arrays(PROFILE), codes)


class Session:
    """Engines that are loaded, verified and warm, and a policy. ``load`` makes one.

    A session belongs to one thread at a time, and says so with ``SessionBusy``. ``fork`` gives
    another thread a session on the same engines; ``metrics`` may be asked from any thread.
    """

    def __init__(
        self,
        shared: Shared,
        engines: Mapping[str, Engine],
        policy: str | Policy,
        options: Mapping[str, Any] | None = None,
        on_decision: OnDecision | None = None,
    ) -> None:
        self._shared = shared
        self._decides = policy, dict(options or {})
        self._lock = threading.Lock()  # held while a group is answered
        self._thread: int | None = None  # that holds it
        self._life = threading.Lock()  # held while engines are forked or closed
        self._closed = False
        self._machinery = shared.machinery(engines, self._made(*self._decides))
        self._machinery.listener = Listener(on_decision)
        self._recorder = Recorder(shared.tree)

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
            SessionBusy: a group is in flight, in another thread most likely.
        """
        start = self._machinery.clock.now_ms()
        self._take()
        try:
            self._check_open()
            deadline = check_deadline(deadline_ms, self._shared.fastest)
            pixels = check_images(images, self.manifest.images, layout)
            return self._infer(pixels, start, deadline)
        finally:
            self._leave()

    def stream(
        self, images: Any, group_size: int, deadline_ms: Any, *, layout: str | None = None
    ) -> Iterator[Result]:
        """Answer images group by group, each as the iterator is asked for it.

        Args:
            images: an array or tensor as ``infer`` takes it; or an iterable of single images
                (``[3, S, S]`` or ``[S, S, 3]``) and batches of any size, pulled as needed.
            group_size: images a group; the last may be smaller.
            deadline_ms: of every group; or a callable that is given the group's number, from 0,
                just before it is answered; or an iterable with one for each group.
            layout: as for ``infer``.

        Raises:
            ImageError: no images, or the first of an array, list or tuple is wrong. Later ones
                are checked as their group comes, as ``infer`` does.
            DeadlineError: not a deadline, or fewer of them than groups (an iterator that ends too
                soon says so when it does).
            ConfigError: an impossible group size or an unknown layout.
            SessionClosed: after ``close``.
        """
        self._check_open()
        size = check_group_size(group_size)
        groups = grouped(images, size, self.manifest.images, layout)
        count = group_count(images, size)
        deadlines = each_deadline(deadline_ms, count, self._shared.fastest)
        given = "NCHW" if count is None else layout  # an iterable's images are regrouped
        pairs = zip(groups, deadlines, strict=False)
        return (self.infer(group, deadline, layout=given) for group, deadline in pairs)

    def fork(self) -> Session:
        """A session for another thread: the same loaded engines and the same policy, with buffers,
        beliefs about latency, memory of the policy and metrics of its own, which start afresh.

        It may be made while this session answers a group, and each is closed by itself, in any
        order: the engines go with the last. Weights are not copied. ``on_decision`` is taken over.

        Sessions at work at the same time slow each other down, as other applications would, and
        each sees that in its own slowdown. ``Engine.fork`` says which threads they share.

        Raises:
            SessionClosed: after ``close``.
            EngineError: the backend's engines cannot be forked.
            DeviceMemoryError: no room for more buffers.
        """
        with self._life:
            self._check_open()
            engines: dict[str, Engine] = {}
            try:
                for name, engine in self._machinery.engines.items():
                    engines[name] = engine.fork()
                return Session(self._shared, engines, *self._decides, self.on_decision)
            except BaseException:
                for engine in engines.values():
                    engine.close()
                raise

    def use(self, policy: str | Policy, **options: Any) -> None:
        """Decide with another policy from now on; its memory starts empty.

        Args:
            policy: a name, or one that the caller made for this session's tree.
            options: of the policy that is named.

        Raises:
            UnknownNameError: no such policy or node.
            ConfigError: an impossible option, or the bundle lacks what the policy needs.
            SessionBusy: a group is in flight.
        """
        made = self._made(policy, options)
        self._take()
        try:
            self._machinery.follow(made)
            self._decides = policy, options
        finally:
            self._leave()

    def close(self) -> None:
        """Release the engines; a second call does nothing. Forks go on.

        Waits for a group that another thread has in flight.

        Raises:
            SessionBusy: called while this thread's own group is in flight.
        """
        if self._thread == threading.get_ident():
            raise self._busy()
        with self._lock, self._life:
            if not self._closed:
                self._closed = True
                for engine in self._machinery.engines.values():
                    engine.close()

    # --- what a user may look at ------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._shared.manifest

    @property
    def tree(self) -> Tree:
        """The nodes whose engines are loaded."""
        return self._shared.tree

    @property
    def left_out(self) -> dict[str, str]:
        """Segments that the device had no room for, and what the vendor said."""
        return dict(self._shared.left_out)

    @property
    def backend(self) -> str:
        """The backend that runs the engines (``a+b`` where there are several)."""
        targets = [engine.target.backend for engine in self._machinery.engines.values()]
        names = [name for target in targets for name in target.split("+")]
        return "+".join(dict.fromkeys(names))

    @property
    def threads(self) -> int:
        """How many torch and the vendors have on the host."""
        return self._shared.threads

    @property
    def profiles(self) -> dict[str, LatencyProfile]:
        """Each node's latency profile on this machine."""
        return dict(self._shared.profiles)

    @property
    def slowdown(self) -> float:
        """Measured over profiled latency, as last known."""
        return self._machinery.latency.slowdown

    @property
    def on_decision(self) -> OnDecision | None:
        """What is told of decisions, as ``load`` says; may be set at any time."""
        return self._machinery.listener.hear

    @on_decision.setter
    def on_decision(self, hear: OnDecision | None) -> None:
        self._machinery.listener.hear = hear

    def metrics(self) -> Metrics:
        """What this session has done so far; may be asked from any thread, and after ``close``."""
        return self._recorder.metrics(self.slowdown)

    def route_ms(self, node: str, batch: int, quantile: float = 0.5) -> float:
        """Profiled latency in ms of the route that ends at ``node``, at a batch size.

        Raises:
            UnknownNameError: no such node.
            ConfigError: it has no logits.
        """
        return self._shared.route_ms(node, batch, quantile)

    def __repr__(self) -> str:
        routes = sum(1 for _ in self.tree.routes())
        return f"<Session {self._shared.bundle.path.name}: {routes} routes on {self.backend}>"

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

    def _made(self, policy: str | Policy, options: Mapping[str, Any]) -> Policy:
        if isinstance(policy, str):
            return make_policy(policy, self.tree, self._shared.knowledge, **options)
        if options:
            message = f"options {sorted(options)} for a policy that is made already."
            raise ConfigError(message, expected="options for a policy that is named.")
        return policy

    def _infer(self, pixels: torch.Tensor, start: float, deadline: float) -> Result:
        count, chunk = pixels.shape[0], self.manifest.max_batch
        classes = self.manifest.classes
        self._machinery.listener.group += 1
        group = Group(self._machinery, pixels, len(classes), start, deadline)
        left = deadline - group.elapsed_ms()
        entry = pick_entry(self._machinery, count, left, chunk)
        with self._machinery.device.scope():
            for first in range(0, count, chunk):
                group.run_chunk(entry.node, first, chunk)
        measured = group.answered_ms
        if entry.tries is not None:
            entry.tries.ended(kept=measured <= deadline and not group.fallback)
        outcome = Outcome(count, entry.node.name, measured, deadline)
        machinery = self._machinery
        machinery.state = machinery.policy.learn(outcome, machinery.state)
        result = Result(
            logits=group.logits,
            labels=group.logits.argmax(axis=1),
            nodes=group.nodes,
            classes=classes,
            steps=tuple(group.steps),
            deadline_ms=deadline,
            predicted_ms=sum(step.predicted_ms for step in group.steps),
            measured_ms=measured,
            fallback=group.fallback,
            entered=entry.told,
        )
        self._recorder.add(result)
        return result

    def _take(self) -> None:
        """Begin what one thread alone may do; ``_leave`` ends it."""
        if not self._lock.acquire(blocking=False):
            raise self._busy()
        self._thread = threading.get_ident()

    def _leave(self) -> None:
        self._thread = None
        self._lock.release()

    def _busy(self) -> SessionBusy:
        message = f"the session of {self._shared.bundle.path} is answering a group."
        return SessionBusy(
            message,
            expected="one thread, and one group at a time.",
            remedy="give every thread its own: session.fork().",
        )

    def _check_open(self) -> None:
        if self._closed:
            message = f"the session of {self._shared.bundle.path} is closed."
            raise SessionClosed(message, remedy="load the bundle again.")
