"""Engines timed in turns, group by group, beside a yardstick that tells busy moments from calm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from opa_trt.backends import Backend, Engine
from opa_trt.clock import Clock
from opa_trt.progress import Progress
from opa_trt.search.subjects import Subject, Subjects
from opa_trt.search.timings import Timings
from opa_trt.store.latency import repeat_rows
from opa_trt.supernet import Space
from opa_trt.tree import Target

Loaded = tuple[Engine, Mapping[str, Tensor]]

GROUP = 48  # engines loaded at a time
BURST = 5  # runs of an engine in one turn, after one that is not counted
LEAST_TURNS, MOST_TURNS = 3, 300
AGAIN = 2  # how often what a busy moment spoilt is measured again
CONTEST_SECONDS = 0.15
STAGE, YARDSTICK = "measure", "yardstick"


@dataclass(frozen=True)
class Bench:
    """Times subjects, each group of them in turns with the yardstick.

    Args:
        backend, target: of every engine; the target's largest batch is the one that is timed.
        yardstick: what every group is timed beside.
        timings: gets what is found, after every group.
        clock: what tells the time.
        progress: hears of every engine.
        seconds: spent on timing each engine.
        seed: of the order.
    """

    backend: Backend
    target: Target
    yardstick: Subject
    timings: Timings
    clock: Clock
    progress: Progress
    seconds: float
    seed: int

    def time(self, subjects: Iterable[Subject]) -> None:
        """Time every subject that ``timings`` lacks, then again those whose moment was busy.

        Raises:
            CompileError, EngineError, ParityError: the backend refuses one.
        """
        wanted = {subject.name: subject for subject in subjects}
        todo = [subject for name, subject in wanted.items() if name not in self.timings.found]
        self._time(todo, before=len(wanted) - len(todo))
        for _ in range(AGAIN):
            self._time([wanted[name] for name in self.timings.busy(wanted)])

    def _time(self, subjects: Sequence[Subject], before: int = 0) -> None:
        """In a random order, so that a busy moment does not hit one part of the network."""
        if not subjects:
            return
        order = np.random.default_rng(self.seed).permutation(len(subjects))
        self.progress.start(STAGE, before + len(subjects))
        yardstick = self.yardstick.load(self.backend, self.target)
        for start in range(0, len(order), GROUP):
            group = [subjects[place] for place in order[start : start + GROUP]]
            self._time_group(group, yardstick, before + start)
        yardstick[0].close()

    def _time_group(self, group: Sequence[Subject], yardstick: Loaded, before: int) -> None:
        engines = {YARDSTICK: yardstick}
        for done, subject in enumerate(group, 1):
            self.progress.advance(before + done - 1, f"compile {subject.name[:60]}")
            engines[subject.name] = subject.load(self.backend, self.target)
        self.progress.advance(before + len(group) - 1, f"time {len(group)} engines in turns")
        found = time_in_turns(engines, self.target.max_batch, self.clock, self.seconds)
        beside = found.pop(YARDSTICK)
        self.timings.add(found, beside)
        self.progress.advance(before + len(group))
        for name in found:
            engines[name][0].close()


def time_in_turns(
    engines: Mapping[str, Loaded], batch: int, clock: Clock, seconds: float
) -> dict[str, float]:
    """Latency (ms) of each engine at ``batch`` rows: the median of its turns' fastest runs.

    A turn is a few runs. The first is not counted: it finds the caches as the other engines left
    them, which makes small engines thrice as slow as they are when they run again and again. The
    fastest counts, because on a busy machine long runs are interrupted, and short ones are not.

    Args:
        engines: by name, each with inputs of at least one row; rows are repeated as needed.
        batch: within every engine's range.
        clock: what tells the time.
        seconds: for each engine, between ``LEAST_TURNS`` and ``MOST_TURNS`` turns.
    """
    turns = {name: _turn(loaded, batch, clock) for name, loaded in engines.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    begun = clock.now_ms()
    for done in range(MOST_TURNS):
        if done >= LEAST_TURNS and clock.now_ms() - begun > 1000 * seconds * len(engines):
            break
        for name, turn in turns.items():
            times[name].append(min(turn()))
    return {name: float(np.median(values)) for name, values in times.items()}


def _turn(loaded: Loaded, batch: int, clock: Clock) -> Callable[[], Iterable[float]]:
    engine, example = loaded
    inputs = {name: repeat_rows(tensor, batch) for name, tensor in example.items()}
    out = engine.run(inputs)

    def turn() -> Iterable[float]:
        engine.run(inputs, out)
        for _ in range(BURST):
            start = clock.now_ms()
            engine.run(inputs, out)
            yield clock.now_ms() - start

    return turn


def fastest(
    backends: Sequence[Backend], space: Space, batch: int, threads: int, clock: Clock
) -> Backend:
    """The backend that runs the smallest and the largest network together the fastest.

    Raises:
        CompileError, EngineError, ParityError: a backend refuses one.
    """
    if len(backends) == 1:
        return backends[0]
    archs = (space.smallest(), space.largest())
    subjects = [Subjects(space, archs).network(arch) for arch in archs]

    def together(backend: Backend) -> float:
        target = backend.target(max_batch=batch, threads=threads)
        engines = {subject.name: subject.load(backend, target) for subject in subjects}
        return sum(time_in_turns(engines, batch, clock, CONTEST_SECONDS).values())

    return min(backends, key=together)
