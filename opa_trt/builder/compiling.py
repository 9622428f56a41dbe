"""Engines of the build machine: who compiles, who is fastest, compiled and verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.backends import Backend, Engine, backend, every_backend
from opa_trt.backends.by_batch import joined
from opa_trt.builder.contest import Contest, Outcome, Rival
from opa_trt.builder.network import owners, walk_with
from opa_trt.builder.recipe_tables import CompileRecipe
from opa_trt.builder.work import Finding
from opa_trt.clock import Clock
from opa_trt.device import device
from opa_trt.errors import BackendUnavailable
from opa_trt.progress import Progress
from opa_trt.runtime.canary import canary_inputs, verify
from opa_trt.store import EngineStore, engine_key
from opa_trt.tree import FEATURES, LOGITS, Node, PlanEntry, Segment, Target, Tree

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


@dataclass(frozen=True)
class References:
    """What every segment reads, and what it must give: the canary, by way of its first node."""

    tree: Tree
    canary: Canary

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Every segment's first node, by the segment's name."""
        return owners(self.tree)

    def inputs(self, segment: Segment, batch: int) -> dict[str, Tensor]:
        """``batch`` rows of images, or of its parent's features; as many as there are."""
        return canary_inputs(self.tree, self.nodes[segment.name], self.canary, batch)

    def check(self, engine: Engine, vendor: Backend) -> float:
        """The engine's difference from what eager torch gives, within the tolerance.

        Raises:
            ParityError: it is beyond.
        """
        return verify(
            engine,
            self.tree,
            self.nodes[engine.segment.name],
            self.canary,
            vendor.tolerance_for(engine.target.precision),
            device(engine.target.device),
        )


def compile_all(
    segments: Mapping[str, Segment],
    references: References,
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
        references: inputs and outputs of each.
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
        check=lambda engine, rival: references.check(engine, rival.vendor),
        example=lambda segment: references.inputs(segment, wanted.max_batch),
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
            _add(made, by_label[entry.backend], segment, entry, references)
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


def _add(
    made: Compiled, rival: Rival, segment: Segment, entry: PlanEntry, references: References
) -> None:
    vendor, target = rival.vendor, rival.target(entry)
    known = made.outcome.entrants.get((rival.label, segment.name))
    if known is not None and entry == rival.entry():
        data, difference = known.data, known.difference
    else:
        data, difference = _compiled(vendor, segment, target, references)
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
    vendor: Backend, segment: Segment, target: Target, references: References
) -> tuple[bytes, float]:
    """A segment's engine, and its difference from the canary: 0 where it cannot run here."""
    data = vendor.compile(segment, target)
    if not vendor.availability():
        return data, 0.0
    engine = vendor.load(data, segment, target)
    difference = references.check(engine, vendor)
    engine.close()
    return data, difference


class Runner:
    """The engines of the plan, loaded to be measured."""

    def __init__(
        self,
        segments: Mapping[str, Segment],
        compiled: Finding,
        references: References,
        store: EngineStore,
        clock: Clock,
    ) -> None:
        self._references, self._store, self._clock = references, store, clock
        facts = compiled.facts
        self._engines: dict[str, Engine] = {}
        for name, rows in facts["plan"].items():
            parts = [_planned(PlanEntry(**row), segments[name], facts, compiled) for row in rows]
            self._engines[name] = joined(parts)
        first = next(iter(self._engines.values()))
        self._device = device(first.target.device)

    def profiles(self, buckets: tuple[int, ...], seconds: float) -> dict[str, Any]:
        """Measure every engine's latency, and keep them as this machine's profiles: by node."""
        engines = {
            name: (engine, self._references.inputs(engine.segment, engine.target.max_batch))
            for name, engine in self._engines.items()
        }
        found = self._store.measure(engines, buckets, self._clock, seconds)
        return {node.name: found[node.segment].to_dict() for node in self._nodes()}

    def answers(self, images: Tensor) -> dict[str, npt.NDArray[np.float32]]:
        """The logits ``[N, C] float32`` of every node that has some, for ``images``."""
        found: dict[str, list[npt.NDArray[np.float32]]] = {}
        largest = min(engine.target.max_batch for engine in self._engines.values())
        with self._device.scope():
            for part in torch.split(images, largest):
                there = self._device.upload(part.contiguous())
                for node, _, made in walk_with(self._references.tree, self._run, there):
                    if LOGITS in made:
                        found.setdefault(node.name, []).append(made[LOGITS].numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _run(self, node: Node, source: Tensor) -> dict[str, Tensor]:
        """What a node's engine gives: logits on the host, all in memory of its own."""
        made = self._engines[node.segment].run({node.source: source})
        kept = {FEATURES: made[FEATURES].clone()} if FEATURES in made else {}
        if LOGITS in made:
            kept[LOGITS] = torch.from_numpy(self._device.download(made[LOGITS]).copy())
        return kept

    def _nodes(self) -> list[Node]:
        return [*self._references.tree.nodes.values()]

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
