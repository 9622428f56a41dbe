"""What a bench found: quantiles of every run, and routes against their monoliths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opa_trt.tree import Route

NODE, ROUTE, MONOLITH = "node", "route", "monolith"
DRAWS = 1000


@dataclass(frozen=True)
class Row:
    """How long one thing took at one batch size.

    Args:
        kind: ``node``; ``route``: its nodes one after the other, timed as one; ``monolith``: the
            same sub-network as one engine, without the exits on the way.
        nodes: of the tree, in order.
        chosen: the backend as it was asked for.
        backend: what ran it at this batch size (``a+b`` where nodes differ).
        threads: of torch and the backend.
        batch: images a run.
        ms: every run that counts; the same place is the same turn in each row of a batch size.
        engine_bytes: size of the compiled engines as they are kept, None where they are not.
    """

    kind: str
    nodes: tuple[str, ...]
    chosen: str
    backend: str
    threads: int
    batch: int
    ms: tuple[float, ...]
    engine_bytes: int | None = None

    @property
    def name(self) -> str:
        """The nodes, with arrows between."""
        return str(Route(self.nodes))

    def at(self, quantile: float) -> float:
        """ms at a quantile of all runs; a high one of few runs is near the slowest run."""
        return float(np.quantile(self.ms, quantile))

    @property
    def images_per_s(self) -> float:
        """At the median."""
        middle = self.at(0.5)
        return 1000 * self.batch / middle if middle > 0 else math.inf

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
    """A route's median over its monolith's, with its 95 % bootstrap interval over turns."""

    route: Row
    ratio: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.route.name,
            "tail": self.route.nodes[-1],
            "chosen": self.route.chosen,
            "backend": self.route.backend,
            "threads": self.route.threads,
            "batch": self.route.batch,
            "ratio": self.ratio,
            "interval": [self.low, self.high],
        }


@dataclass(frozen=True)
class Found:
    """All rows, by threads, batch size and backend in turn; and of each set of engines what it is.

    ``sets`` holds plain values for JSON.
    """

    rows: tuple[Row, ...]
    sets: tuple[Mapping[str, Any], ...]

    def ratios(self) -> list[Ratio]:
        """Every route against its monolith on the same backend, threads and batch size."""
        wholes = {_place(row): row for row in self.rows if row.kind == MONOLITH}
        return [
            _ratio(row, wholes[_place(row)])
            for row in self.rows
            if row.kind == ROUTE and _place(row) in wholes
        ]


def _place(row: Row) -> tuple[object, ...]:
    return row.nodes, row.chosen, row.threads, row.batch


def _ratio(route: Row, whole: Row) -> Ratio:
    if whole.at(0.5) <= 0:
        return Ratio(route, math.nan, math.nan, math.nan)
    pairs = np.array([route.ms, whole.ms])
    turns = np.random.default_rng(0).integers(0, pairs.shape[1], (DRAWS, pairs.shape[1]))
    first, second = np.median(pairs[:, turns], axis=-1)
    low, high = np.quantile(first / second, (0.025, 0.975))
    return Ratio(route, route.at(0.5) / whole.at(0.5), float(low), float(high))
