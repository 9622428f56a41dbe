"""How long a bundle's nodes and routes take here, and the plain sub-networks they were cut from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.clock import Clock
from opa_trt.device import Device
from opa_trt.errors import ConfigError
from opa_trt.evaluate.engine_set import EngineSet, Setting, engine_bytes, loaded
from opa_trt.evaluate.monoliths import joined_segments
from opa_trt.progress import Progress
from opa_trt.runtime.canary import canary_batches, canary_rows
from opa_trt.store.latency import repeat_rows
from opa_trt.tree import IMAGES, Route

NODE, ROUTE, MONOLITH = "node", "route", "monolith"
SECONDS = 1.0
LEAST_RUNS, MOST_RUNS = 10, 500
DRAWS = 1000

Run = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """How long one thing took at one batch size.

    Args:
        kind: ``node``; ``route``: its nodes one after the other, timed as one; ``monolith``: the
            same sub-network, without the exits on the way, as one engine.
        nodes: of the tree, in order.
        chosen: the backend as it was asked for.
        backend: what ran it at this batch size (``a+b`` where nodes differ).
        threads: of torch and the backend.
        batch: images a run.
        ms: of every run that counts, in order; the same place is the same turn in every row.
        engine_bytes: size of the compiled engines as they are kept, None where they are not.
    """

    kind: str
    nodes: tuple[str, ...]
    chosen: str
    backend: str
    threads: int
    batch: int
    ms: tuple[float, ...]
    engine_bytes: int | None

    @property
    def name(self) -> str:
        """The nodes, with arrows between."""
        return str(Route(self.nodes))

    def at(self, quantile: float) -> float:
        """ms at a quantile over all runs; with few of them, high quantiles are the slowest run."""
        return float(np.quantile(self.ms, quantile))

    @property
    def images_per_s(self) -> float:
        """At the median."""
        return 1000 * self.batch / middle if (middle := self.at(0.5)) > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.kind,
            "name": self.name,
            "nodes": list(self.nodes),
            "chosen": self.chosen,
            "backend": self.backend,
            "threads": self.threads,
            "batch": self.batch,
            "runs": len(self.ms),
            "p50_ms": self.at(0.5),
            "p95_ms": self.at(0.95),
            "p99_ms": self.at(0.99),
            "images_per_s": self.images_per_s,
            "engine_bytes": self.engine_bytes,
        }


@dataclass(frozen=True)
class Ratio:
    """A route's median over its monolith's, with the 95 % bootstrap interval over turns."""

    route: Row
    ratio: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        route = self.route
        return {
            "name": route.name,
            "tail": route.nodes[-1],
            "chosen": route.chosen,
            "backend": route.backend,
            "threads": route.threads,
            "batch": route.batch,
            "ratio": self.ratio,
            "interval": [self.low, self.high],
        }


@dataclass(frozen=True)
class Found:
    """All rows, by threads, then batch size, then backend, and what each set of engines is."""

    rows: tuple[Row, ...]
    sets: tuple[Mapping[str, Any], ...]

    def ratios(self) -> list[Ratio]:
        """Every route against its monolith at the same backend, threads and batch size."""
        wholes = {_place(row): row for row in self.rows if row.kind == MONOLITH}
        routes = [row for row in self.rows if row.kind == ROUTE and _place(row) in wholes]
        return [_ratio(row, wholes[_place(row)]) for row in routes]


def check_batches(batches: Sequence[int], max_batch: int) -> list[int]:
    """``batches`` in ascending order, each once.

    Raises:
        ConfigError: one below 1, or above what engines take.
    """
    for batch in batches:
        if not 1 <= batch <= max_batch:
            message = f"batch {batch}."
            raise ConfigError(
                message, expected=f"1 to {max_batch}, the largest that the bundle is built for."
            )
    return sorted(set(batches))


def bench(
    settings: Sequence[Setting],
    batches: Sequence[int],
    *,
    monoliths: bool = False,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Found:
    """Time every node and route of one bundle in every setting, at every batch size.

    Engines run alone: no decision, and images lie on the device already. All settings of the same
    threads are loaded at once; everything that they have takes turns at a batch size, forwards and
    backwards by turns, so that a passing load hits all alike. Where there are several settings,
    each run that follows one of another's is made twice and counted once: threads of the other
    vendor may still be spinning, and caches hold its weights.

    Args:
        settings: ways to run the same bundle; ``open_settings`` makes them.
        batches: what ``check_batches`` gave.
        monoliths: whether the same sub-networks are timed as one engine each, too. They are
            compiled from the bundle's segments, verified by its canary and kept in the store.
        seconds: spent on each thing and batch size, as far as ``LEAST_RUNS`` to ``MOST_RUNS`` runs
            allow; the first run of each is not counted.
        progress: hears of what is loaded, and of every second that is through.

    Raises:
        OpaError: an engine cannot be compiled, loaded or verified.
    """
    told = progress or Progress()
    bundle = settings[0].loader.bundle
    plans = [setting.loader.plan for setting in settings]
    joined = joined_segments(bundle, plans) if monoliths else {}
    rows: list[Row] = []
    sets: list[Mapping[str, Any]] = []
    for threads in dict.fromkeys(setting.loader.threads for setting in settings):
        with ExitStack() as held:
            group = []
            for setting in settings:
                if setting.loader.threads == threads:
                    told.start(f"load {setting.chosen}")
                    group.append(held.enter_context(loaded(setting, joined)))
            sets += [found.to_dict() for found in group]
            torch.set_num_threads(threads)
            for batch in batches:
                told.start(f"batch {batch} × {threads} threads", 100)
                rows += _measured(group, batch, seconds, told)
    return Found(tuple(rows), tuple(sets))


@dataclass(frozen=True)
class _Subject:
    """What is timed as one, with the row that will tell of it."""

    owner: int
    row: Row
    run: Run


def _measured(
    group: Sequence[EngineSet], batch: int, seconds: float, told: Progress
) -> list[Row]:
    subjects = [
        subject for owner, found in enumerate(group) for subject in _subjects(owner, found, batch)
    ]
    clock = group[0].setting.loader.clock
    times = _in_turns(subjects, clock, seconds, told)
    ...
