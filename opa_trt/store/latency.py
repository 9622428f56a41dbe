"""Latency profiles: how long an engine takes on this machine, by batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.clock import Clock
from opa_trt.device import Device, device
from opa_trt.errors import ConfigError

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
        """ms at a batch size, linear between buckets and proportional beyond the last.

        Raises:
            ConfigError: a quantile that was not measured.
        """
        if quantile not in QUANTILES:
            message = f"quantile {quantile:g} of a latency."
            raise ConfigError(message, expected=f"one of {', '.join(map(str, QUANTILES))}.")
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
    """Time engines at every batch size in turns, each turn in another order.

    So a passing load hits all alike, and each run finds what it finds in use: caches that another
    engine has filled, and a vendor that was last asked for another batch size (OpenVINO takes a
    millisecond to change it).

    Args:
        engines: by name, each with inputs of at least one row; rows are repeated as needed.
        batches: batch sizes; those above an engine's largest are cut to it.
        clock: what tells the time.
        seconds: spent on each engine and batch size, between ``LEAST_RUNS`` and ``MOST_RUNS``
            runs; the first run of each is warm-up and not counted.
    """
    largest = max(engine.target.max_batch for engine, _ in engines.values())
    sizes = tuple(sorted({min(batch, largest) for batch in batches}))
    devices = {name: device(name) for name in {e.target.device for e, _ in engines.values()}}
    runs = {
        (name, batch): run
        for name, (engine, example) in engines.items()
        for batch, run in _runs(engine, example, sizes, devices[engine.target.device])
    }
    times = _in_turns(runs, clock, seconds)
    return {
        name: LatencyProfile(
            sizes,
            tuple(tuple(np.quantile(times[name, size], QUANTILES).tolist()) for size in sizes),
            tuple(len(times[name, size]) for size in sizes),
        )
        for name in engines
    }


def _in_turns(
    runs: Mapping[tuple[str, int], Callable[[], None]], clock: Clock, seconds: float
) -> dict[tuple[str, int], list[float]]:
    """ms of every run, one of each a turn."""
    draw, order = np.random.default_rng(0), [*runs]
    times: dict[tuple[str, int], list[float]] = {key: [] for key in order}
    begun = clock.now_ms()
    for turn in range(MOST_RUNS):
        if turn >= LEAST_RUNS and clock.now_ms() - begun > 1000 * seconds * len(runs):
            break
        for place in draw.permutation(len(order)).tolist():
            key = order[place]
            run, start = runs[key], clock.now_ms()
            run()
            times[key].append(clock.now_ms() - start)
    return times


def _runs(
    engine: Engine, example: Mapping[str, Tensor], sizes: Sequence[int], where: Device
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Warm runs of an engine on so many rows, from the call until its outputs are there."""
    with where.scope():
        inputs = {
            key: where.upload(repeat_rows(tensor, sizes[-1])) for key, tensor in example.items()
        }
        out = engine.run(inputs)
    for size in sizes:
        given, filled = ({k: t[:size] for k, t in tensors.items()} for tensors in (inputs, out))
        with where.scope():
            engine.prepare(given, filled)
            where.wait()
        yield size, partial(_run, engine, given, filled, where)


def _run(
    engine: Engine, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], where: Device
) -> None:
    with where.scope():
        engine.run(inputs, out)
        where.wait()


def repeat_rows(tensor: Tensor, batch: int) -> Tensor:
    """``batch`` rows, ``tensor``'s own again and again."""
    index = torch.arange(batch) % tensor.shape[0]
    return tensor[index].contiguous()
