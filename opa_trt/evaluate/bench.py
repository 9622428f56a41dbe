"""How long a bundle's nodes and routes take here, and the plain sub-networks they were cut from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.clock import Clock
from opa_trt.device import Device
from opa_trt.errors import ConfigError
from opa_trt.evaluate.bench_rows import MONOLITH, NODE, ROUTE, Found, Row
from opa_trt.evaluate.engine_set import EngineSet, Setting, loaded, total
from opa_trt.evaluate.monoliths import joined_segments
from opa_trt.progress import Progress
from opa_trt.runtime import EngineLoader
from opa_trt.runtime.canary import canary_batches, canary_rows
from opa_trt.store.latency import repeat_rows
from opa_trt.tree import FEATURES, IMAGES

SECONDS = 1.0
LEAST_RUNS, MOST_RUNS = 10, 500


def check_batches(batches: Sequence[int], max_batch: int) -> list[int]:
    """``batches`` in ascending order, each once.

    Raises:
        ConfigError: one below 1, or above the largest that a bundle is built for.
    """
    for batch in batches:
        if not 1 <= batch <= max_batch:
            message = f"batch {batch}."
            expected = f"1 to {max_batch}, the largest that this bundle is built for."
            raise ConfigError(message, expected=expected)
    return sorted(set(batches))


def bench(
    settings: Sequence[Setting],
    batches: Sequence[int],
    *,
    monoliths: bool = False,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Found:
    """Time every node, and every route of several, in every setting at every batch size.

    Engines run alone: without decisions, on images that lie on the device already, into buffers
    that are allocated beforehand; a route's next node reads the features where the one before left
    them. The settings of equal threads are loaded together, and all that they have takes turns at
    a batch size, forwards and backwards by turns, so that a passing load hits all alike. Where
    there are several, what follows on another setting's run has an uncounted one first: threads
    of the other vendor may still be spinning, and the caches hold its weights.

    Args:
        settings: ways to run one bundle, at least one; ``open_settings`` makes them.
        batches: what ``check_batches`` gave.
        monoliths: whether the routes' sub-networks are timed as one engine each, too. They are
            compiled from the bundle's segments, verified by its canary, and kept in the store.
        seconds: spent on each row, as far as ``LEAST_RUNS`` to ``MOST_RUNS`` runs allow; the first
            run is not counted.
        progress: hears of what is loaded, and at which batch size what share of the time is spent.

    Raises:
        OpaError: an engine cannot be compiled, loaded or verified.
    """
    told = progress or Progress()
    plans = [setting.loader.plan for setting in settings]
    joined = joined_segments(settings[0].loader.bundle, plans) if monoliths else {}
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
                told.start(f"threads {threads}, batch {batch}", 100)
                rows += _measured(group, batch, seconds, told)
    return Found(tuple(rows), tuple(sets))


@dataclass(frozen=True)
class _Call:
    """An engine with the tensors that it reads and fills."""

    engine: Engine
    inputs: Mapping[str, Tensor]
    out: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Subject:
    """What is timed as one. ``row`` will tell of it, ``owner`` counts the settings."""

    owner: int
    row: Row
    run: Callable[[], None]


def _measured(group: Sequence[EngineSet], batch: int, seconds: float, told: Progress) -> list[Row]:
    subjects = [
        subject for owner, found in enumerate(group) for subject in _subjects(owner, found, batch)
    ]
    times = _in_turns(subjects, group[0].setting.loader.clock, seconds, told)
    pairs = zip(subjects, times, strict=True)
    return [replace(subject.row, ms=tuple(measured)) for subject, measured in pairs]


def _in_turns(
    subjects: Sequence[_Subject], clock: Clock, seconds: float, told: Progress
) -> list[list[float]]:
    """ms of every counted run of each subject, one run a turn."""
    times: list[list[float]] = [[] for _ in subjects]
    several = len({subject.owner for subject in subjects}) > 1
    begun, whole = clock.now_ms(), 1000 * seconds * len(subjects)
    for turn in range(MOST_RUNS):
        spent = clock.now_ms() - begun
        if turn >= LEAST_RUNS and spent > whole:
            break
        told.advance(min(99, int(100 * max(spent / whole, turn / MOST_RUNS))))
        before = None
        order = range(len(subjects))
        for place in order if turn % 2 == 0 else reversed(order):
            subject = subjects[place]
            if several and subject.owner != before:
                subject.run()
            before = subject.owner
            start = clock.now_ms()
            subject.run()
            times[place].append(clock.now_ms() - start)
    return times


def _subjects(owner: int, found: EngineSet, batch: int) -> Iterator[_Subject]:
    """Every node, then every route of several nodes, each with its monolith behind it; all warm."""
    loader = found.setting.loader
    with loader.device.scope():
        rows = canary_rows(loader.canary, IMAGES, canary_batches(loader.canary)[-1])
        images = loader.device.upload(repeat_rows(rows, batch))
        calls = _calls(found, images)
        loader.device.wait()

    def subject(kind: str, nodes: tuple[str, ...], made: Sequence[_Call]) -> _Subject:
        row = _row(found, kind, nodes, batch, [call.engine for call in made])
        return _Subject(owner, row, _run_of(made, loader.device))

    for name, call in calls.items():
        yield subject(NODE, (name,), [call])
    for route in loader.tree.routes():
        if len(route.nodes) > 1:
            yield subject(ROUTE, route.nodes, [calls[name] for name in route.nodes])
        if route in found.monoliths:
            whole = _warm(found.monoliths[route], {IMAGES: images}, loader.device)
            yield subject(MONOLITH, route.nodes, [whole])


def _calls(found: EngineSet, images: Tensor) -> dict[str, _Call]:
    """Every node's engine on the features that its parent's call leaves, or on the images."""
    loader, calls = found.setting.loader, dict[str, _Call]()
    tree = loader.tree
    for name in (name for route in tree.routes() for name in route.nodes):
        if name not in calls:
            node = tree[name]
            source = images
            if node.source == FEATURES:
                source = calls[tree.parents[name]].out[FEATURES]
            calls[name] = _warm(found.engines[node.segment], {node.source: source}, loader.device)
    return calls


def _warm(engine: Engine, inputs: Mapping[str, Tensor], device: Device) -> _Call:
    """A call into outputs of its own, prepared for these tensors."""
    with device.scope():
        out = engine.run(inputs)
        engine.prepare(inputs, out)
        device.wait()
    return _Call(engine, inputs, out)


def _run_of(calls: Sequence[_Call], device: Device) -> Callable[[], None]:
    """One call after the other, until the last one's outputs are there."""

    def run() -> None:
        with device.scope():
            for call in calls:
                call.engine.run(call.inputs, call.out)
            device.wait()

    return run


def _row(
    found: EngineSet, kind: str, nodes: tuple[str, ...], batch: int, engines: Sequence[Engine]
) -> Row:
    loader = found.setting.loader
    ends = nodes[-1:] if kind == MONOLITH else nodes  # a monolith runs where the last node does
    labels = dict.fromkeys(_label(loader, name, batch) for name in ends)
    return Row(
        kind=kind,
        nodes=nodes,
        chosen=found.setting.chosen,
        backend="+".join(labels),
        threads=loader.threads,
        batch=batch,
        ms=(),
        engine_bytes=total(found.engine_bytes[engine.segment.name] for engine in engines),
    )


def _label(loader: EngineLoader, name: str, batch: int) -> str:
    """The backend that runs a node at a batch size."""
    shares = loader.plan[loader.bundle.tree[name].segment]
    return next(share.vendor.label for share in shares if batch <= share.target.max_batch)
