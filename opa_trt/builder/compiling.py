"""Engines of the build machine: compiled, verified against the canary, timed, run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.backends import Backend, Engine, backend, backend_names
from opa_trt.builder.recipe import CompileRecipe
from opa_trt.builder.work import Finding
from opa_trt.clock import Clock
from opa_trt.errors import BackendUnavailable, ParityError
from opa_trt.progress import Progress
from opa_trt.runtime.engines import difference
from opa_trt.store import EngineStore, engine_key, measure
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Segment, Target

CONTEST_SECONDS = 0.15

Canary = Mapping[str, npt.NDArray[Any]]


@dataclass
class Compiled:
    """Engines of the backends asked for, and which was fastest."""

    backend: str
    version: str
    timings: dict[str, float]
    entries: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    worst: float = 0.0


def compile_all(
    segments: Mapping[str, Segment],
    canary: Canary,
    wanted: CompileRecipe,
    threads: int,
    clock: Clock,
    progress: Progress,
    contest: tuple[str, ...],
) -> Compiled:
    """Compile every segment with the fastest backend (``auto``), or with each one named.

    Args:
        segments: by name.
        canary: inputs and reference outputs.
        wanted: the recipe's backends, largest batch and threads.
        threads: of the target.
        clock: what tells the time.
        progress: hears of every engine.
        contest: the segments that backends are compared on, run one after the other.

    Raises:
        UnknownNameError, BackendUnavailable: a backend that is named does not exist or work.
        ParityError: an engine's outputs differ from the canary.
    """
    vendors = vendors_for(wanted.backends)
    timings = {
        vendor.name: _contest(vendor, segments, canary, wanted.max_batch, threads, clock, contest)
        for vendor in vendors
    }
    ordered = sorted(vendors, key=lambda vendor: timings[vendor.name])
    kept = ordered[:1] if "auto" in wanted.backends else ordered
    first = kept[0]
    made = Compiled(first.name, first.availability().version, timings)
    progress.start("compile", len(kept) * len(segments))
    for vendor in kept:
        target = vendor.target(max_batch=wanted.max_batch, threads=threads)
        for segment in segments.values():
            _add(made, vendor, segment, target, canary)
            progress.advance(len(made.entries), f"{vendor.name} {segment.name}")
    return made


def vendors_for(names: tuple[str, ...]) -> list[Backend]:
    """The backends that ``names`` means; ``auto`` is every one that works here but ``null``.

    Raises:
        UnknownNameError: there is none of a name.
        BackendUnavailable: one that is named does not work here, or none does.
    """
    if "auto" not in names:
        named = [backend(name) for name in names]
        for vendor in named:
            vendor.require()
        return named
    found = [backend(name) for name in backend_names() if name != "null"]
    working = [vendor for vendor in found if vendor.availability()]
    if not working:
        message = f"none of {', '.join(vendor.name for vendor in found)} works here."
        raise BackendUnavailable(message, remedy="see `opa-trt doctor`.")
    return working


def _contest(
    vendor: Backend,
    segments: Mapping[str, Segment],
    canary: Canary,
    max_batch: int,
    threads: int,
    clock: Clock,
    contest: tuple[str, ...],
) -> float:
    """Median ms of the contest's segments together, at the largest batch."""
    target = vendor.target(max_batch=max_batch, threads=threads)
    engines = {}
    for name in contest:
        segment = segments[name]
        engine = vendor.load(vendor.compile(segment, target), segment, target)
        engines[name] = (engine, canary_input(segment, canary, max_batch))
    profiles = measure(engines, (max_batch,), clock, CONTEST_SECONDS)
    for engine, _ in engines.values():
        engine.close()
    return sum(profile.at(max_batch) for profile in profiles.values())


def _add(made: Compiled, vendor: Backend, segment: Segment, target: Target, canary: Canary) -> None:
    data = vendor.compile(segment, target)
    engine = vendor.load(data, segment, target)
    worst = _checked(engine, segment, canary, vendor.tolerance)
    made.worst = max(made.worst, worst)
    engine.close()
    same = next((form for form, form_data in segment.forms.items() if form_data == data), None)
    file = f"{segment.name}.{vendor.name}"
    if same is None:
        made.blobs[file] = data
    made.entries.append(
        {
            "segment": segment.name,
            "target": asdict(target),
            "key": engine_key(segment, target, vendor),
            "file": f"engines/{file}" if same is None else f"segments/{segment.name}.pt",
        }
    )


def canary_input(segment: Segment, canary: Canary, batch: int) -> dict[str, Tensor]:
    """The canary's input of a segment: images, or the features of the entry."""
    name = segment.inputs[0].name
    keys = [f"{IMAGES}/{batch}"] if name == IMAGES else _feature_keys(canary, batch)
    return {name: torch.from_numpy(np.ascontiguousarray(canary[keys[0]]))}


def _feature_keys(canary: Canary, batch: int) -> list[str]:
    return [key for key in canary if key.endswith(f"/{batch}/{FEATURES}")]


def _checked(engine: Engine, segment: Segment, canary: Canary, tolerance: float | None) -> float:
    """The engine's difference from what eager torch makes of the canary, within the tolerance."""
    worst = difference(
        engine, segment.name, canary, lambda batch: canary_input(segment, canary, batch)
    )
    if tolerance is not None and not worst <= tolerance:
        message = f"{segment.name} on {engine.target.backend} differs by {worst:.1e} from eager."
        raise ParityError(message, expected=f"at most {tolerance:.0e}.")
    return worst


class Runner:
    """The fastest backend's engines, loaded to be measured."""

    def __init__(
        self,
        segments: Mapping[str, Segment],
        compiled: Finding,
        canary: Canary,
        store: EngineStore,
        clock: Clock,
    ) -> None:
        self._canary, self._store, self._clock = canary, store, clock
        self._vendor = backend(compiled.facts["backend"])
        self._engines: dict[str, Engine] = {}
        for entry in compiled.facts["engines"]:
            if entry["target"]["backend"] != self._vendor.name:
                continue
            segment = segments[entry["segment"]]
            name = entry["file"].removeprefix("engines/")
            data = compiled.blobs.get(name, next(iter(segment.forms.values())))
            target = Target(**entry["target"])
            self._engines[segment.name] = self._vendor.load(data, segment, target)

    def profiles(self, buckets: tuple[int, ...], seconds: float) -> dict[str, Any]:
        """Measure every engine's latency, and keep them as this machine's profiles."""
        engines = {
            name: (engine, canary_input(engine.segment, self._canary, engine.target.max_batch))
            for name, engine in self._engines.items()
        }
        found = self._store.measure(engines, self._vendor, buckets, self._clock, seconds)
        return {name: profile.to_dict() for name, profile in found.items()}

    def answers(self, images: Tensor) -> dict[str, npt.NDArray[np.float32]]:
        """Every node's logits ``[N, C] float32`` for ``images``."""
        entry = next(n for n, e in self._engines.items() if e.segment.inputs[0].name == IMAGES)
        found: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in self._engines}
        for part in torch.split(images, self._engines[entry].target.max_batch):
            first = self._engines[entry].run({IMAGES: part.contiguous()})
            found[entry].append(first[LOGITS].numpy())
            for name, engine in self._engines.items():
                if name != entry:
                    made = engine.run({FEATURES: first[FEATURES]})
                    found[name].append(made[LOGITS].numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def close(self) -> None:
        """Release the engines."""
        for engine in self._engines.values():
            engine.close()
