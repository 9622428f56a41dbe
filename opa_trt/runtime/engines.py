"""From a bundle to engines that are known to be right: find, compile, verify, profile."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from opa_trt.backends import Backend, Engine
from opa_trt.backends.by_batch import joined
from opa_trt.bundle import CANARY, Bundle, Manifest
from opa_trt.clock import Clock, MonotonicClock
from opa_trt.device import device
from opa_trt.errors import (
    ConfigError,
    DeviceMemoryError,
    EngineError,
    ParityError,
    TargetMismatch,
    UntrustedForm,
)
from opa_trt.runtime.canary import Arrays, canary_batches, canary_inputs, verify
from opa_trt.runtime.plan import AUTO, Plan, Share, device_of, make_plan
from opa_trt.store import EngineStore, LatencyProfile
from opa_trt.tree import CODE_FREE, Node, Segment, Tree

log = logging.getLogger(__name__)

PROFILE_SECONDS = 0.05


def open_loader(
    bundle: Bundle | Path | str,
    *,
    backend: str | Backend = AUTO,
    threads: int | None = None,
    precision: str | None = None,
    compile: str = "auto",
    trusted: bool = True,
    strict: bool = False,
    store: EngineStore | None = None,
    clock: Clock | None = None,
) -> EngineLoader:
    """A loader of a bundle's engines; ``opa_trt.load`` says what the arguments mean.

    Args:
        strict: whether an engine that is there but wrong is an error, rather than compiled again.
    """
    if compile not in ("auto", "never"):
        message = f"compile={compile!r}."
        raise ConfigError(message, expected="'auto' or 'never'.")
    opened = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    count = usable_threads(opened.manifest, threads)
    return EngineLoader(
        bundle=opened,
        plan=make_plan(opened, backend, threads=count, precision=precision, trusted=trusted),
        threads=count,
        store=store or EngineStore(),
        clock=clock or MonotonicClock(),
        compile=compile,
        trusted=trusted,
        strict=strict,
    )


def usable_threads(manifest: Manifest, given: int | None) -> int:
    """``given``, or as many as the bundle was built for, at most this machine's cores.

    Raises:
        ConfigError: fewer than 1.
    """
    if given is not None and given < 1:
        message = f"threads = {given}."
        raise ConfigError(message, expected="at least 1.")
    return given or min(manifest.threads, os.cpu_count() or 1)


@dataclass
class EngineLoader:
    """Loads a bundle's engines on this machine. ``open_loader`` makes one.

    Args:
        bundle: opened.
        plan: which backend runs which segment.
        threads: of every target on a CPU.
        store: engines and profiles of this machine.
        clock: what tells the time while profiling.
        compile: ``auto`` compiles what is missing, ``never`` refuses.
        trusted: whether forms that can execute code may be read.
        strict: whether an engine that is there but wrong is an error, rather than compiled again.
    """

    bundle: Bundle
    plan: Plan
    threads: int
    store: EngineStore
    clock: Clock
    compile: str = "auto"
    trusted: bool = True
    strict: bool = False
    differences: dict[str, float] = field(default_factory=dict)  # of every node from its canary
    left_out: dict[str, str] = field(default_factory=dict)  # segments without room, and why

    def __post_init__(self) -> None:
        self.canary: Arrays = self.bundle.arrays(CANARY)
        self.device = device(device_of(self.plan))

    @property
    def tree(self) -> Tree:
        """The bundle's nodes, without those whose engines found no room."""
        whole = self.bundle.tree
        kept: set[str] = set()
        for route in whole.routes():  # to every node with logits
            if not any(whole[name].segment in self.left_out for name in route.nodes):
                kept.update(route.nodes)
        if len(kept) == len(whole.nodes):
            return whole
        return Tree(
            tuple(
                replace(node, successors=tuple(s for s in node.successors if s in kept))
                for node in whole.nodes.values()
                if node.name in kept
            )
        )

    def engines(self) -> dict[str, Engine]:
        """A verified engine for every segment, by segment name.

        Where the device has no room for a segment that only tails or baselines use, it is left out.

        Raises:
            TargetMismatch: an engine is missing, and compiling was not allowed.
            UntrustedForm: only a form that can execute code is there, and it is not trusted.
            DeviceMemoryError: there is no room for an entry's engine.
            ParityError: an engine compiled here differs from its canary.
        """
        torch.set_num_threads(self.threads)  # vendors take theirs from the target, torch does not
        made: dict[str, Engine] = {}
        compiled, entries = 0, self.bundle.tree.entries
        for node in self.bundle.manifest.nodes:
            if node.segment in self.left_out:
                continue
            try:
                if node.segment in made:
                    self._verify(made[node.segment], node, *self.plan[node.segment])
                    continue
                made[node.segment], fresh = self._engine(node)
            except DeviceMemoryError as exc:
                if node in entries and node.system == entries[0].system:
                    raise
                log.warning("%s has no room here and is left out: %s", node.name, exc)
                self.left_out[node.segment] = str(exc)
            else:
                compiled += fresh
        log.info("%s: %s", self.bundle.path, self._told(made, compiled))
        return made

    def profiles(
        self,
        engines: Mapping[str, Engine],
        *,
        again: bool = False,
        seconds: float = PROFILE_SECONDS,
    ) -> dict[str, LatencyProfile]:
        """The latency profile of every node on this machine.

        Where one is missing all are measured, in turns: how fast a machine is differs from one
        minute to the next by more than nodes do, so profiles of different times cannot be compared.

        Args:
            engines: what ``engines`` gave.
            again: whether they are measured though all are known.
            seconds: spent on each engine and batch bucket.
        """
        nodes = [node for node in self.bundle.manifest.nodes if node.segment in engines]
        first = {node.segment: node for node in reversed(nodes)}
        known = {name: self.known_profile(engines[name]) for name in first}
        found = {name: profile for name, profile in known.items() if profile is not None}
        if again or len(found) < len(first):
            log.info("%s: measuring the latency of %d engines", self.bundle.path, len(first))
            measured = {name: (engines[name], self._example(node)) for name, node in first.items()}
            buckets = self.bundle.manifest.buckets
            found = self.store.measure(measured, buckets, self.clock, seconds)
        return {node.name: found[node.segment] for node in nodes}

    def known_profile(self, engine: Engine) -> LatencyProfile | None:
        """What the store has on an engine, if it was measured on that one, at this bundle's batch
        buckets, by a clock that went on."""
        values = self.store.profile(engine.key) if engine.key else None
        if values is None or values.get("engine", engine.key) != engine.key:
            return None
        try:
            profile = LatencyProfile.from_dict(values)
        except (KeyError, TypeError, ValueError):
            return None
        largest = self.bundle.manifest.max_batch
        wanted = tuple(sorted({min(b, largest) for b in self.bundle.manifest.buckets}))
        sane = all(0 <= ms < math.inf for row in profile.ms for ms in row)
        return profile if sane and profile.batches == wanted else None

    def _engine(self, node: Node) -> tuple[Engine, int]:
        """The engine of a node's segment, and how many of its parts were compiled now."""
        segment = self.bundle.segment(node.segment)
        if not self.trusted:
            segment = segment.without_code()
        parts, compiled = [], 0
        for share in self.plan[node.segment]:
            engine, fresh = self._part(segment, node, share)
            parts.append(engine)
            compiled += fresh
        return joined(parts), compiled

    def _part(self, segment: Segment, node: Node, share: Share) -> tuple[Engine, bool]:
        self._check_trust(segment, node, share.vendor)
        key = share.vendor.stamp(segment, share.target).key()
        for origin, data in self._candidates(key, share.vendor):
            try:
                engine = share.vendor.load(data, segment, share.target)
                self._verify_once(engine, node, share, data)
            except (EngineError, ParityError) as exc:
                if self.strict:
                    raise
                log.warning("%s engine of %s rejected, compiling: %s", origin, node.name, exc)
                if origin == "stored":
                    self.store.drop_engine(key)
            else:
                return engine, False
        return self._compiled(segment, node, share), True

    def _check_trust(self, segment: Segment, node: Node, vendor: Backend) -> None:
        if self.trusted:
            return
        what = ""
        if vendor.executes_code:
            what = f"{vendor.label} engines can execute code"
        elif vendor.forms and not any(form in segment.forms for form in vendor.forms):
            what = f"{node.name} has no form that cannot ({', '.join(CODE_FREE)}) for {vendor.name}"
        if what:
            message = f"{what}, and {self.bundle.path} is not trusted."
            raise UntrustedForm(
                message,
                expected="a backend that reads ONNX, and a bundle that has it.",
                remedy="if you built it yourself: load(…, trusted=True), or leave out --untrusted.",
            )

    def _candidates(self, key: str, vendor: Backend) -> Iterator[tuple[str, bytes]]:
        for entry in self.bundle.manifest.engines:
            if entry.key == key:
                yield "bundled", self.bundle.read(entry.file)
        stored = self.store.engine(key) if vendor.stored else None
        if stored is not None:
            yield "stored", stored

    def _compiled(self, segment: Segment, node: Node, share: Share) -> Engine:
        target, vendor = share.target, share.vendor
        if self.compile == "never":
            raise self._mismatch(share)
        log.info("compiling %s for %s %s", node.name, vendor.label, target.version)
        data = vendor.compile(segment, target)
        engine = vendor.load(data, segment, target)
        error = self._verify(engine, node, share)
        if vendor.stored:
            self.store.put_engine(engine.key, data)
            self.store.mark_verified(engine.key, self._mark(data), error)
        return engine

    def _mismatch(self, share: Share) -> TargetMismatch:
        target = share.target
        entries = {(e.target.backend, e.target.version) for e in self.bundle.manifest.engines}
        has = ", ".join(f"{name} {version}" for name, version in sorted(entries)) or "none"
        where = "processor" if target.device == "cpu" else "GPU"
        message = (
            f"{self.bundle.path} has engines for {has}, made on the build machine; this one "
            f"needs {target.backend} {target.version} for its {where}, "
            f"{target.threads} threads."
        )
        return TargetMismatch(
            message,
            expected="matching engines, as compile='never' was given.",
            remedy="its portable segments can be compiled here: load(…, compile='auto').",
        )

    def _verify_once(self, engine: Engine, node: Node, share: Share, data: bytes) -> None:
        """Compare with the canary, unless these very bytes matched it on this machine before."""
        mark = self._mark(data)
        known = self.store.verified(engine.key, mark) if engine.key and not self.strict else None
        if known is None:
            error = self._verify(engine, node, share)
            if engine.key:
                self.store.mark_verified(engine.key, mark, error)
            return
        self.differences[node.name] = known
        inputs = canary_inputs(self.bundle.tree, node, self.canary, engine.target.min_batch)
        with self.device.scope():  # warm it up
            engine.run({name: self.device.upload(tensor) for name, tensor in inputs.items()})
            self.device.wait()

    def _mark(self, data: bytes) -> str:
        """What a mark is valid for: this canary, and these bytes."""
        canary = self.bundle.manifest.files[CANARY].sha256
        return f"{canary} {hashlib.sha256(data).hexdigest()}"

    def _verify(self, engine: Engine, node: Node, *shares: Share) -> float:
        allowed = [s.vendor.tolerance_for(s.target.precision) for s in shares]
        tolerance = None if None in allowed else max(value for value in allowed if value)
        error = verify(engine, self.bundle.tree, node, self.canary, tolerance, self.device)
        self.differences[node.name] = max(error, self.differences.get(node.name, 0.0))
        log.debug("%s verified against its canary, difference %.1e", node.name, error)
        return error

    def _example(self, node: Node) -> dict[str, Tensor]:
        batch = canary_batches(self.canary)[-1]
        return canary_inputs(self.bundle.tree, node, self.canary, batch)

    def _told(self, made: Mapping[str, Engine], compiled: int) -> str:
        targets = [share.target for name in made for share in self.plan[name]]
        on = " and ".join(dict.fromkeys(f"{t.backend} {t.version}" for t in targets))
        return f"{len(made)} engines on {on}, {compiled} of them compiled now"
