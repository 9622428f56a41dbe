"""Latency profiles: how long an engine takes on this machine, by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.clock import Clock

QUANTILES = (0.5, 0.9, 0.99)
LEAST_RUNS, MOST_RUNS = 7, 300


@dataclass(frozen=True)
class LatencyProfile:
    """Quantiles of an engine's latency in ms, for ascending batch sizes.

    Args:
        batches: the batch buckets that were measured.
        ms: for each bucket the quantiles ``QUANTILES``.
        runs: how many runs each bucket had.
    """

    batches: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    runs: tuple[int, ...]

    def at(self, batch: int, quantile: float = 0.5) -> float:
        """ms at a batch size, linear between buckets and proportional beyond the last."""
        column = [row[QUANTILES.index(quantile)] for row in self.ms]
        if batch > self.batches[-1]:
            return column[-1] * batch / self.batches[-1]
        return float(np.interp(batch, self.batches, column))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"batches": self.batches, "ms": self.ms, "runs": self.runs}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatencyProfile:
        """Read what ``to_dict`` made; ValueError, KeyError or TypeError where it is not that."""
        profile = cls(
            tuple(map(int, values["batches"])),
            tuple(tuple(map(float, row)) for row in values["ms"]),
            tuple(map(int, values["runs"])),
        )
        if not len(profile.batches) == len(profile.ms) == len(profile.runs) > 0:
            message = "rows and batches differ in number"
            raise ValueError(message)
        return profile


def measure(
    engine: Engine,
    example: Mapping[str, Tensor],
    batches: Sequence[int],
    clock: Clock,
    seconds: float,
) -> LatencyProfile:
    """Time ``engine`` at each batch size; the first run of each is warm-up and not counted.

    Args:
        engine: what is timed.
        example: inputs of at least one row; rows are repeated as needed.
        batches: batch sizes within the engine's range.
        clock: what tells the time.
        seconds: spent on each batch size, between ``LEAST_RUNS`` and ``MOST_RUNS`` runs.
    """
    rows, counts = [], []
    sizes = sorted({min(batch, engine.target.max_batch) for batch in batches})
    for batch in sizes:
        inputs = {name: repeat_rows(tensor, batch) for name, tensor in example.items()}
        out = engine.run(inputs)
        times: list[float] = []
        begun = clock.now_ms()
        while len(times) < LEAST_RUNS or (
            len(times) < MOST_RUNS and clock.now_ms() - begun < 1000 * seconds
        ):
            start = clock.now_ms()
            engine.run(inputs, out)
            times.append(clock.now_ms() - start)
        rows.append(tuple(float(q) for q in np.quantile(times, QUANTILES)))
        counts.append(len(times))
    return LatencyProfile(tuple(sizes), tuple(rows), tuple(counts))


def repeat_rows(tensor: Tensor, batch: int) -> Tensor:
    """``batch`` rows, ``tensor``'s own again and again."""
    index = torch.arange(batch) % tensor.shape[0]
    return tensor[index].contiguous()
