"""Latency profiles: how long an engine takes on this machine, by batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.clock import Clock
from opa_trt.device import Device, device

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
        if any(len(row) != len(QUANTILES) for row in profile.ms):
            message = f"a row without {len(QUANTILES)} quantiles"
            raise ValueError(message)
        return profile


def measure(
    engines: Mapping[str, tuple[Engine, Mapping[str, Tensor]]],
    batches: Sequence[int],
    clock: Clock,
    seconds: float,
) -> dict[str, LatencyProfile]:
    """Time engines at each batch size, in turns, so that a passing load hits them all alike.

    Args:
        engines: by name, each with inputs of at least one row; rows are repeated as needed.
        batches: batch sizes; those above an engine's largest are cut to it.
        clock: what tells the time.
        seconds: spent on each engine and batch size, between ``LEAST_RUNS`` and ``MOST_RUNS``
            runs; the first run of each is warm-up and not counted.
    """
    found: dict[str, list[tuple[int, tuple[float, ...], int]]] = {name: [] for name in engines}
    largest = max(engine.target.max_batch for engine, _ in engines.values())
    for batch in sorted({min(batch, largest) for batch in batches}):
        for name, times in _in_turns(engines, batch, clock, seconds).items():
            quantiles = tuple(float(q) for q in np.quantile(times, QUANTILES))
            found[name].append((batch, quantiles, len(times)))
    return {
        name: LatencyProfile(
            tuple(batch for batch, _, _ in rows),
            tuple(quantiles for _, quantiles, _ in rows),
            tuple(runs for _, _, runs in rows),
        )
        for name, rows in found.items()
    }


def _in_turns(
    engines: Mapping[str, tuple[Engine, Mapping[str, Tensor]]],
    batch: int,
    clock: Clock,
    seconds: float,
) -> dict[str, list[float]]:
    """ms of every run of each engine, one run a turn."""
    devices = {name: device(name) for name in {e.target.device for e, _ in engines.values()}}
    runs = {
        name: _run_of(engine, example, batch, devices[engine.target.device])
        for name, (engine, example) in engines.items()
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    begun = clock.now_ms()
    for turn in range(MOST_RUNS):
        if turn >= LEAST_RUNS and clock.now_ms() - begun > 1000 * seconds * len(engines):
            break
        for name, run in runs.items():
            start = clock.now_ms()
            run()
            times[name].append(clock.now_ms() - start)
    return times


def _run_of(
    engine: Engine, example: Mapping[str, Tensor], batch: int, where: Device
) -> Callable[[], None]:
    """A warm run of an engine on ``batch`` rows, from the call until its outputs are there."""
    with where.scope():
        inputs = {key: where.upload(repeat_rows(tensor, batch)) for key, tensor in example.items()}
        out = engine.run(inputs)
        engine.prepare(inputs, out)
        where.wait()

    def run() -> None:
        with where.scope():
            engine.run(inputs, out)
            where.wait()

    return run


def repeat_rows(tensor: Tensor, batch: int) -> Tensor:
    """``batch`` rows, ``tensor``'s own again and again."""
    index = torch.arange(batch) % tensor.shape[0]
    return tensor[index].contiguous()
