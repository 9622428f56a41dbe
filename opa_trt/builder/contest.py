"""Backends against each other on this machine: each segment, each batch bucket, in turns."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from opa_trt.backends import Backend, Engine
from opa_trt.clock import Clock
from opa_trt.errors import BackendError, ParityError
from opa_trt.store import measure
from opa_trt.tree import PlanEntry, Segment, Target

log = logging.getLogger(__name__)

SECONDS = 0.04  # on each engine and bucket
HOPELESS = 1.5  # times the best at every bucket of the first segments: not tried on the others
WORTH = 0.95  # of the time of the best backend overall: what another must stay below at a bucket

Ms = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Rival:
    """A backend as it competes: at one precision, for batches up to ``max_batch``.

    One that is ``required`` may not be refused: what is wrong with it is raised.
    """

    vendor: Backend
    precision: str
    max_batch: int
    threads: int
    required: bool = False

    @property
    def label(self) -> str:
        """The backend's."""
        return self.vendor.label

    def entry(self, low: int = 1, high: int | None = None) -> PlanEntry:
        """What a plan says of it for batches ``low`` to ``high``; by default of all."""
        return PlanEntry(self.label, self.precision, low, high or self.max_batch)

    def target(self, entry: PlanEntry) -> Target:
        """Of an engine for an entry's batches."""
        return self.vendor.target(
            min_batch=entry.min_batch,
            max_batch=entry.max_batch,
            threads=self.threads,
            precision=entry.precision,
        )


@dataclass(frozen=True)
class Entrant:
    """A segment's engine for all batch sizes, as bytes, and its difference from the canary."""

    data: bytes
    difference: float


@dataclass(frozen=True)
class Outcome:
    """What a contest found.

    Args:
        best: the label of the backend that is fastest over all.
        plan: for every segment who runs it, by ascending batch ranges without a gap.
        ms: median latency by segment, batch bucket and label; segments that only one backend was
            left for were not timed.
        refused: by label why a backend is out: it cannot compile a segment, or computes it wrongly.
        entrants: what was compiled on the way, by label and segment.
    """

    best: str
    plan: Mapping[str, tuple[PlanEntry, ...]]
    ms: Ms
    refused: Mapping[str, str]
    entrants: Mapping[tuple[str, str], Entrant]


@dataclass
class Contest:
    """Compares rivals on segments.

    Args:
        rivals: who competes; all of one precision and range.
        check: verifies an engine of a segment against its reference outputs.
        example: gives a segment's inputs, one row at least.
        buckets: batch sizes to time.
        clock: what tells the time.
        seconds: spent on each engine and bucket.
        told: hears what is going on.
    """

    rivals: Sequence[Rival]
    check: Callable[[Engine, Rival], float]
    example: Callable[[Segment], Mapping[str, Tensor]]
    buckets: tuple[int, ...]
    clock: Clock
    seconds: float = SECONDS
    told: Callable[[str], None] = lambda note: None
    refused: dict[str, str] = field(default_factory=dict)
    entrants: dict[tuple[str, str], Entrant] = field(default_factory=dict)

    def run(self, segments: Mapping[str, Segment], first: Sequence[str]) -> Outcome:
        """Time ``first`` with every rival, the others with those that are not hopeless.

        A single rival is not timed.

        Raises:
            BackendError: no rival compiles every segment rightly; says why of each.
        """
        ms: dict[str, Mapping[int, Mapping[str, float]]] = {}
        left = list(self.rivals)
        if len(left) > 1:
            for name in first:
                ms[name] = self._time(segments[name], self._left())
            left = _promising(ms, self._left())
        for name, segment in segments.items():
            if name not in ms and len(left) > 1:
                ms[name] = self._time(segment, left)
        left = [rival for rival in left if rival.label not in self.refused]
        if not left:
            reasons = "; ".join(f"{label}: {why}" for label, why in self.refused.items())
            message = f"no backend compiles every segment rightly ({reasons})."
            raise BackendError(message, remedy="see `opa-trt doctor`.")
        return self._outcome(segments, ms, left)

    def _left(self) -> list[Rival]:
        return [rival for rival in self.rivals if rival.label not in self.refused]

    def _time(self, segment: Segment, rivals: Sequence[Rival]) -> Mapping[int, Mapping[str, float]]:
        """Median ms by bucket and label, the rivals taking turns."""
        engines: dict[str, tuple[Engine, Mapping[str, Tensor]]] = {}
        for rival in rivals:
            self.told(f"{rival.label} {segment.name}")
            engine = self._engine(rival, segment)
            if engine is not None:
                engines[rival.label] = (engine, self.example(segment))
        if not engines:
            return {}
        profiles = measure(engines, self.buckets, self.clock, self.seconds)
        for engine, _ in engines.values():
            engine.close()
        batches = next(iter(profiles.values())).batches
        return {b: {label: found.at(b) for label, found in profiles.items()} for b in batches}

    def _engine(self, rival: Rival, segment: Segment) -> Engine | None:
        """A verified engine, or None: the rival is out, and ``refused`` says why."""
        try:
            target = rival.target(rival.entry())
            data = rival.vendor.compile(segment, target)
            engine = rival.vendor.load(data, segment, target)
            difference = self.check(engine, rival)
        except (BackendError, ParityError) as exc:
            if rival.required:
                raise
            self.refused[rival.label] = exc.received
            log.warning("%s is left out: %s", rival.label, exc)
            return None
        self.entrants[rival.label, segment.name] = Entrant(data, difference)
        return engine

    def _outcome(self, segments: Mapping[str, Segment], ms: Ms, left: Sequence[Rival]) -> Outcome:
        labels = [rival.label for rival in left]
        best = min(labels, key=lambda label: _relative(ms, labels, label))
        device = next(rival.vendor.device for rival in left if rival.label == best)
        together = {rival.label for rival in left if rival.vendor.device == device}
        by_label = {rival.label: rival for rival in left}
        plan = {
            name: _entries(ms.get(name, {}), by_label[best], by_label, together)
            for name in segments
        }
        return Outcome(best, plan, ms, dict(self.refused), dict(self.entrants))


def _promising(ms: Ms, rivals: Sequence[Rival]) -> list[Rival]:
    """Those that are not hopeless at every bucket."""

    def worth(rival: Rival) -> bool:
        rows = [row for rows in ms.values() for row in rows.values() if rival.label in row]
        return any(row[rival.label] <= HOPELESS * min(row.values()) for row in rows)

    return [rival for rival in rivals if worth(rival)]


def _relative(ms: Ms, labels: Sequence[str], label: str) -> float:
    """The geometric mean of a backend's times over the best of ``labels``."""
    rows = [row for rows in ms.values() for row in rows.values()]
    logs = [
        math.log(max(row[label], 1e-9) / max(1e-9, min(row[k] for k in labels if k in row)))
        for row in rows
        if label in row
    ]
    return sum(logs) / len(logs) if logs else math.inf


def _entries(
    rows: Mapping[int, Mapping[str, float]],
    best: Rival,
    rivals: Mapping[str, Rival],
    together: set[str],
) -> tuple[PlanEntry, ...]:
    """Who runs a segment: the best overall, but where another on its device is clearly faster."""
    winners: list[tuple[int, str]] = []
    for batch, row in sorted(rows.items()):
        inside = {label: ms for label, ms in row.items() if label in together and label in rivals}
        fastest = min(inside, key=lambda label: inside[label])
        clear = best.label not in inside or inside[fastest] < WORTH * inside[best.label]
        winners.append((batch, fastest if clear else best.label))
    if not winners:
        winners = [(best.max_batch, best.label)]
    winners[-1] = (best.max_batch, winners[-1][1])
    entries: list[PlanEntry] = []
    low = 1
    for place, (batch, label) in enumerate(winners):
        if place + 1 < len(winners) and winners[place + 1][1] == label:
            continue
        entries.append(rivals[label].entry(low, batch))
        low = batch + 1
    return tuple(entries)
