"""From a bundle to engines that are known to be right: find, compile, verify, profile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.backends import Backend, Engine, backend, backend_names
from opa_trt.bundle import CANARY, Bundle
from opa_trt.clock import Clock
from opa_trt.errors import (
    BackendUnavailable,
    BundleCorrupt,
    EngineError,
    ParityError,
    TargetMismatch,
    UntrustedForm,
)
from opa_trt.store import EngineStore, LatencyProfile, engine_key
from opa_trt.tree import IMAGES, Node, Segment, Target, Tree

log = logging.getLogger(__name__)

PROFILE_SECONDS = 0.05

Arrays = Mapping[str, npt.NDArray[np.generic]]


def choose_backend(bundle: Bundle, name: str) -> Backend:
    """The backend called ``name``; ``auto`` is the build's fastest, else the first that works.

    Raises:
        UnknownNameError: there is none of that name.
        BackendUnavailable: it does not work here; says what installs it.
    """
    if name != "auto":
        named = backend(name)
        named.require()
        return named
    order = [bundle.manifest.backend, *backend_names()]
    known = set(backend_names())  # the build machine may have had a backend that we lack
    for candidate in order:
        if candidate not in known or (candidate == "null" and bundle.manifest.backend != "null"):
            continue
        found = backend(candidate)
        if found.availability():
            return found
    message = f"none of {', '.join(dict.fromkeys(order))} works here."
    raise BackendUnavailable(message, remedy="see `opa-trt doctor`.")


def canary_inputs(tree: Tree, node: Node, canary: Arrays, batch: int) -> dict[str, Tensor]:
    """What the canary feeds ``node`` at a batch size: images, or its parent's features."""
    if node.source == IMAGES:
        return {IMAGES: _tensor(canary, f"{IMAGES}/{batch}")}
    return {node.source: _tensor(canary, f"{tree.parents[node.name]}/{batch}/{node.source}")}


def canary_batches(canary: Arrays) -> list[int]:
    """The batch sizes that a canary holds, ascending.

    Raises:
        BundleCorrupt: it holds none, so that it could verify nothing.
    """
    found = {int(key.split("/")[-1]) for key in canary if key.startswith(f"{IMAGES}/")}
    if not found:
        message = "the canary holds no images."
        raise BundleCorrupt(message, remedy="build the bundle again.")
    return sorted(found)


def verify(
    engine: Engine, tree: Tree, node: Node, canary: Arrays, tolerance: float | None
) -> float:
    """Run the canary through ``engine``; the largest difference over the largest value (or 1).

    Raises:
        ParityError: beyond ``tolerance`` (None: outputs mean nothing and are not compared).
    """
    worst = difference(
        engine, node.name, canary, lambda batch: canary_inputs(tree, node, canary, batch)
    )
    worst = worst if np.isfinite(worst) else np.inf
    if tolerance is not None and worst > tolerance:
        message = f"{node.name} on {engine.target.backend} differs by {worst:.1e} from its canary."
        raise ParityError(message, expected=f"at most {tolerance:.0e}.")
    return worst


def difference(
    engine: Engine, name: str, canary: Arrays, inputs: Callable[[int], Mapping[str, Tensor]]
) -> float:
    """The largest difference of ``engine`` from the canary, over the largest value (or 1).

    Args:
        engine: what is compared.
        name: of the node whose outputs the canary holds.
        canary: inputs and reference outputs.
        inputs: what the canary feeds the engine at a batch size.
    """
    errors = [0.0]
    for batch in canary_batches(canary):
        for output, values in engine.run(inputs(batch)).items():
            wanted = _tensor(canary, f"{name}/{batch}/{output}")
            scale = max(1.0, float(wanted.abs().max()))
            errors.append(float((values - wanted).abs().max()) / scale)
    return float(np.max(errors))  # nan stays nan


@dataclass
class EngineLoader:
    """Loads a bundle's engines for one target on this machine.

    Args:
        bundle: opened.
        vendor: what compiles and loads.
        threads: of the target.
        store: engines and profiles of this machine.
        clock: what tells the time while profiling.
        compile: ``auto`` compiles what is missing, ``never`` refuses.
        trusted: whether forms that can execute code may be read.
        strict: whether an engine that is there but wrong is an error, rather than compiled again.
    """

    bundle: Bundle
    vendor: Backend
    threads: int
    store: EngineStore
    clock: Clock
    compile: str = "auto"
    trusted: bool = True
    strict: bool = False

    def __post_init__(self) -> None:
        self.target: Target = self.vendor.target(
            max_batch=self.bundle.manifest.max_batch, threads=self.threads
        )
        self.canary: Arrays = self.bundle.arrays(CANARY)
        self.differences: dict[str, float] = {}  # of every verified node from its canary

    def engines(self) -> dict[str, Engine]:
        """A verified engine for every segment, by segment name."""
        made: dict[str, Engine] = {}
        compiled = 0
        for node in self.bundle.manifest.nodes:
            if node.segment in made:
                self._verify(made[node.segment], node)
                continue
            segment = self.bundle.segment(node.segment)
            made[node.segment], fresh = self._engine(segment, node)
            compiled += fresh
        log.info(
            "%s: %d engines on %s %s, %d of them compiled now",
            self.bundle.path, len(made), self.target.backend, self.target.version, compiled,
        )  # fmt: skip
        return made

    def profiles(self, engines: Mapping[str, Engine]) -> dict[str, LatencyProfile]:
        """The latency profile of every node on this machine, measured where there is none."""
        by_segment: dict[str, LatencyProfile] = {}
        missing: dict[str, tuple[Engine, dict[str, Tensor]]] = {}
        batch = canary_batches(self.canary)[-1]
        for node in self.bundle.manifest.nodes:
            engine = engines[node.segment]
            profile = self._stored_profile(engine)
            if profile is None:
                example = canary_inputs(self.bundle.tree, node, self.canary, batch)
                missing.setdefault(node.segment, (engine, example))
            else:
                by_segment[node.segment] = profile
        if missing:
            by_segment |= self._measured(missing)
        return {node.name: by_segment[node.segment] for node in self.bundle.manifest.nodes}

    def _engine(self, segment: Segment, node: Node) -> tuple[Engine, bool]:
        key = engine_key(segment, self.target, self.vendor)
        for origin, data in self._candidates(key):
            try:
                engine = self._loaded(data, segment)
                self._verify(engine, node)
            except (EngineError, ParityError) as exc:
                if self.strict:
                    raise
                log.warning("%s engine of %s rejected, compiling: %s", origin, node.name, exc)
                if origin == "stored":
                    self.store.drop_engine(key)
            else:
                return engine, False
        return self._compiled(segment, node, key), True

    def _candidates(self, key: str) -> Iterator[tuple[str, bytes]]:
        for entry in self.bundle.manifest.engines:
            if entry.key == key:
                yield "bundled", self.bundle.read(entry.file)
        stored = self.store.engine(key) if self.vendor.stored else None
        if stored is not None:
            yield "stored", stored

    def _compiled(self, segment: Segment, node: Node, key: str) -> Engine:
        target = self.target
        if self.compile == "never":
            entries = {(e.target.backend, e.target.version) for e in self.bundle.manifest.engines}
            has = ", ".join(f"{name} {version}" for name, version in sorted(entries)) or "none"
            message = (
                f"{self.bundle.path} has engines for {has}, made on the build machine; this one "
                f"needs {target.backend} {target.version} for its processor, "
                f"{target.threads} threads."
            )
            raise TargetMismatch(
                message,
                expected="matching engines, as compile='never' was given.",
                remedy="its portable segments can be compiled here: load(…, compile='auto').",
            )
        if not self.trusted and self.vendor.forms:
            msg = f"compiling {node.name} reads {self.vendor.forms[0]}"
            raise self._untrusted(msg)
        log.info("compiling %s for %s %s", node.name, target.backend, target.version)
        data = self.vendor.compile(segment, target)
        engine = self._loaded(data, segment)
        self._verify(engine, node)
        if self.vendor.stored:
            self.store.put_engine(key, data)
        return engine

    def _loaded(self, data: bytes, segment: Segment) -> Engine:
        if not self.trusted and self.vendor.executes_code:
            msg = f"{self.vendor.name} engines are TorchScript"
            raise self._untrusted(msg)
        return self.vendor.load(data, segment, self.target)

    def _untrusted(self, what: str) -> UntrustedForm:
        message = f"{what}, which can execute code, and {self.bundle.path} is not trusted."
        return UntrustedForm(
            message,
            expected="compiled engines of this machine, or a form that cannot execute code.",
            remedy="if you built it yourself: load(…, trusted=True).",
        )

    def _verify(self, engine: Engine, node: Node) -> None:
        error = verify(engine, self.bundle.tree, node, self.canary, self.vendor.tolerance)
        self.differences[node.name] = error
        log.debug("%s verified against its canary, difference %.1e", node.name, error)

    def _stored_profile(self, engine: Engine) -> LatencyProfile | None:
        if not self.vendor.stored:
            return None
        values = self.store.profile(engine_key(engine.segment, self.target, self.vendor))
        if values is None:
            return None
        try:
            profile = LatencyProfile.from_dict(values)
        except (KeyError, TypeError, ValueError):
            return None
        wanted = tuple(
            sorted({min(b, self.target.max_batch) for b in self.bundle.manifest.buckets})
        )
        return profile if profile.batches == wanted else None

    def _measured(
        self, missing: Mapping[str, tuple[Engine, Mapping[str, Tensor]]]
    ) -> dict[str, LatencyProfile]:
        """Profiles of the engines that have none here, kept for the next time."""
        log.info("%s: measuring the latency of %d engines", self.bundle.path, len(missing))
        return self.store.measure(
            missing, self.vendor, self.bundle.manifest.buckets, self.clock, PROFILE_SECONDS
        )


def _tensor(arrays: Arrays, key: str) -> Tensor:
    if key not in arrays:
        message = f"the canary lacks {key}."
        raise BundleCorrupt(message, remedy="build the bundle again.")
    return torch.from_numpy(np.ascontiguousarray(arrays[key]))
