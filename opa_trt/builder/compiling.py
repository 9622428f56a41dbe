"""Engines of the build machine: who compiles, who is fastest, compiled and verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.backends import Backend, Engine, backend, every_backend
from opa_trt.backends.by_batch import joined
from opa_trt.builder.contest import Contest, Outcome, Rival
from opa_trt.builder.recipe import CompileRecipe
from opa_trt.builder.work import Finding
from opa_trt.clock import Clock
from opa_trt.device import device
from opa_trt.errors import BackendUnavailable
from opa_trt.progress import Progress
from opa_trt.runtime.canary import check
from opa_trt.store import EngineStore, engine_key
from opa_trt.tree import FEATURES, IMAGES, LOGITS, PlanEntry, Segment, Target

AUTO = "auto"

Canary = Mapping[str, npt.NDArray[Any]]


@dataclass
class Compiled:
    """Engines of the backends asked for, and which runs what."""

    outcome: Outcome
    version: str
    entries: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    worst: float = 0.0


def compile_all(
    segments: Mapping[str, Segment],
    canary: Canary,
    wanted: CompileRecipe,
    buckets: tuple[int, ...],
    threads: int,
    clock: Clock,
    progress: Progress,
    first: tuple[str, ...],
) -> Compiled:
    """Find out which backend runs what, and compile that, and all for each backend named.

    Args:
        segments: by name.
        canary: inputs and reference outputs.
        wanted: the recipe's backends, precision and largest batch.
        buckets: batch sizes that backends are compared at.
        threads: of every target on a CPU.
        clock: what tells the time.
        progress: hears of every engine.
        first: the segments on which hopeless backends are told.

    Raises:
        UnknownNameError, BackendUnavailable: a backend that is named does not exist or work.
        BackendError: no backend compiles every segment rightly.
        ParityError: an engine's outputs differ from the canary.
    """
    named, rivals = rivals_of(wanted, threads)
    progress.start("compile", len(segments))
    contest = Contest(
        rivals,
        check=lambda engine, rival: _check(engine, rival.vendor, canary),
        example=lambda segment: canary_input(segment, canary, wanted.max_batch),
        buckets=buckets,
        clock=clock,
        told=lambda note: progress.advance(0, note),
    )
    outcome = contest.run(segments, first)
    if AUTO not in wanted.backends:  # one backend for all, by name
        outcome = _of_one(outcome, segments, rivals)
    by_label = {rival.label: rival for rival in rivals} | {rival.label: rival for rival in named}
    made = Compiled(outcome, by_label[outcome.best].vendor.availability().version)
    for done, segment in enumerate(segments.values(), 1):
        whole = [rival.entry() for rival in named]
        for entry in dict.fromkeys([*outcome.plan[segment.name], *whole]):
            _add(made, by_label[entry.backend], segment, entry, canary)
            progress.advance(done, f"{entry.backend} {segment.name}")
    return made


def rivals_of(wanted: CompileRecipe, threads: int) -> tuple[list[Rival], list[Rival]]:
    """(those named, which compile everything; those that compete for running it).

    A backend that is named and can compile, but not run here, does not compete.

    Raises:
        UnknownNameError: there is none of a name.
        BackendUnavailable: one that is named does not work here, or none that competes does.
    """
    named = [backend(name) for name in wanted.backends if name != AUTO]
    for vendor in named:
        vendor.require(running=False)
    runnable = [vendor.label for vendor in named if vendor.availability()]
    competing = vendors_for((*runnable, *(AUTO,) * (AUTO in wanted.backends)))

    def rival(vendor: Backend) -> Rival:
        known = wanted.precision in vendor.precisions
        precision = wanted.precision if known else vendor.precisions[0]
        required = vendor.label in runnable
        return Rival(vendor, precision, wanted.max_batch, threads, required)

    return [rival(vendor) for vendor in named], [rival(vendor) for vendor in competing]


def vendors_for(names: tuple[str, ...]) -> list[Backend]:
    """The backends that ``names`` means; ``auto`` is all that work here and compile quickly.

    Raises:
        UnknownNameError: there is none of a name.
        BackendUnavailable: one that is named does not work here, or none does.
    """
    named = [backend(name) for name in names if name != AUTO]
    for vendor in named:
        vendor.require()
    others = every_backend() if AUTO in names else []
    known = {vendor.label for vendor in named}
    found = named + [v for v in others if v.label not in known and v.quick and v.availability()]
    if not found:
        tried = ", ".join(vendor.label for vendor in others) or "the backends named"
        message = f"none of {tried} works here."
        raise BackendUnavailable(message, remedy="see `opa-trt doctor`.")
    return found


def _of_one(outcome: Outcome, segments: Mapping[str, Segment], rivals: list[Rival]) -> Outcome:
    """The best backend for everything."""
    best = next(rival for rival in rivals if rival.label == outcome.best)
    plan = dict.fromkeys(segments, (best.entry(),))
    return replace(outcome, plan=plan)


def _add(made: Compiled, rival: Rival, segment: Segment, entry: PlanEntry, canary: Canary) -> None:
    vendor, target = rival.vendor, rival.target(entry)
    known = made.outcome.entrants.get((rival.label, segment.name))
    if known is not None and entry == rival.entry():
        data, difference = known.data, known.difference
    else:
        data, difference = _compiled(vendor, segment, target, canary)
    made.worst = max(made.worst, difference)
    batches = "" if entry == rival.entry() else f".{entry.min_batch}-{entry.max_batch}"
    file = f"{segment.name}{batches}.{rival.label.replace(':', '-')}"
    made.blobs[file] = data
    made.entries.append(
        {
            "segment": segment.name,
            "target": asdict(target),
            "key": engine_key(segment, target, vendor),
            "file": f"engines/{file}",
        }
    )


def _compiled(
    vendor: Backend, segment: Segment, target: Target, canary: Canary
) -> tuple[bytes, float]:
    """A segment's engine, and its difference from the canary: 0 where it cannot run here."""
    data = vendor.compile(segment, target)
    if not vendor.availability():
        return data, 0.0
    engine = vendor.load(data, segment, target)
    difference = _check(engine, vendor, canary)
    engine.close()
    return data, difference


def canary_input(segment: Segment, canary: Canary, batch: int) -> dict[str, Tensor]:
    """The canary's input of a segment: images, or the features of the entry."""
    name = segment.inputs[0].name
    keys = [key for key in canary if _feeds(key, name)]
    exact = [key for key in keys if f"{key}/".split("/")[1] == str(batch)]
    key = exact[0] if exact else max(keys, key=lambda key: len(canary[key]))
    return {name: torch.from_numpy(np.ascontiguousarray(canary[key][:batch]))}


def _feeds(key: str, name: str) -> bool:
    return key.startswith(f"{IMAGES}/") if name == IMAGES else key.endswith(f"/{FEATURES}")


def _check(engine: Engine, vendor: Backend, canary: Canary) -> float:
    """The engine's difference from what eager torch makes of the canary, within the tolerance."""
    return check(
        engine,
        engine.segment.name,
        canary,
        vendor.tolerance_for(engine.target.precision),
        lambda batch: canary_input(engine.segment, canary, batch),
        device(engine.target.device),
    )


class Runner:
    """The engines of the plan, loaded to be measured."""

    def __init__(
        self,
        segments: Mapping[str, Segment],
        compiled: Finding,
        canary: Canary,
        store: EngineStore,
        clock: Clock,
    ) -> None:
        self._canary, self._store, self._clock = canary, store, clock
        facts = compiled.facts
        self._engines: dict[str, Engine] = {}
        for name, rows in facts["plan"].items():
            parts = [_planned(PlanEntry(**row), segments[name], facts, compiled) for row in rows]
            self._engines[name] = joined(parts)
        first = next(iter(self._engines.values()))
        self._device = device(first.target.device)

    def profiles(self, buckets: tuple[int, ...], seconds: float) -> dict[str, Any]:
        """Measure every engine's latency, and keep them as this machine's profiles."""
        engines = {
            name: (engine, canary_input(engine.segment, self._canary, engine.target.max_batch))
            for name, engine in self._engines.items()
        }
        found = self._store.measure(engines, buckets, self._clock, seconds)
        return {name: profile.to_dict() for name, profile in found.items()}

    def answers(self, images: Tensor) -> dict[str, npt.NDArray[np.float32]]:
        """Every node's logits ``[N, C] float32`` for ``images``."""
        entry = next(n for n, e in self._engines.items() if e.segment.inputs[0].name == IMAGES)
        found: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in self._engines}
        with self._device.scope():
            for part in torch.split(images, self._engines[entry].target.max_batch):
                given = self._device.upload(part.contiguous())
                first = self._engines[entry].run({IMAGES: given})
                found[entry].append(self._device.download(first[LOGITS]).copy())
                for name, engine in self._engines.items():
                    if name != entry:
                        made = engine.run({FEATURES: first[FEATURES]})
                        found[name].append(self._device.download(made[LOGITS]).copy())
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def close(self) -> None:
        """Release the engines."""
        for engine in self._engines.values():
            engine.close()


def _planned(
    entry: PlanEntry, segment: Segment, facts: Mapping[str, Any], compiled: Finding
) -> Engine:
    """The engine that was compiled for an entry of the plan."""
    vendor = backend(entry.backend)
    for row in facts["engines"]:
        target = Target(**row["target"])
        same = (target.backend, target.device, target.min_batch, target.max_batch) == (
            vendor.name, vendor.device, entry.min_batch, entry.max_batch,
        )  # fmt: skip
        if row["segment"] == segment.name and same:
            data = compiled.blobs[row["file"].removeprefix("engines/")]
            return vendor.load(data, segment, target)
    message = f"no engine of {segment.name} for {entry.backend} was compiled."
    raise BackendUnavailable(message, remedy="build again.")
