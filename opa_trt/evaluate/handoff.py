"""What cutting and deciding cost: a session's group against the same network as one engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.device import Device
from opa_trt.evaluate.bench_rows import MONOLITH, ROUTE, Found, Ratio, Row
from opa_trt.evaluate.engine_set import EngineSet
from opa_trt.policies import (
    STOP,
    Arrival,
    Budget,
    Decision,
    EntryChoice,
    Knowledge,
    Policy,
    PolicyBase,
    View,
    make_policy,
)
from opa_trt.progress import Progress
from opa_trt.runtime import Session
from opa_trt.runtime.canary import canary_batches, canary_rows
from opa_trt.runtime.shared import Shared
from opa_trt.store import LatencyProfile
from opa_trt.store.latency import repeat_rows
from opa_trt.tree import FEATURES, IMAGES, LOGITS, OPA, Route, Tree

LEAST_PAIRS, MOST_PAIRS = 5, 200
EXAMPLES = 3  # routes that are timed


@dataclass(frozen=True)
class Handoff:
    """A route at a batch size.

    Args:
        ratio: of a group by ``Session.infer`` (checks, pioneer, decision, tail, result) over the
            same network as one engine, medians, with its interval.
        whole_ms: the median of the one engine.
        beside_ms: the median of what a group takes beside its engines.
    """

    ratio: Ratio
    whole_ms: float
    beside_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        own = self.ratio.route.at(0.5)
        return {
            **self.ratio.to_dict(),
            "session_ms": own,
            "whole_ms": self.whole_ms,
            "beside_ms": self.beside_ms,
            "pairs": len(self.ratio.route.ms),
        }


class Toward(PolicyBase):
    """A policy decides in earnest, and the whole group then goes along ``route`` all the same."""

    name = "toward"

    def __init__(self, policy: Policy, route: Route) -> None:
        self._policy, self.route = policy, route

    def start(self) -> Any:
        """The policy's own memory."""
        return self._policy.start()

    def enter(self, arrival: Arrival, budget: Budget, state: Any) -> tuple[EntryChoice, Any]:
        """The route's entry."""
        return EntryChoice(self.route.entry, f"always {self.route.last}"), state

    def step(self, view: View, budget: Budget, state: Any) -> tuple[Decision, Any]:
        """The policy's decision with its choice replaced."""
        decision, state = self._policy.step(view, budget, state)
        place = self.route.nodes.index(view.node) + 1
        chosen = STOP
        if place < len(self.route.nodes):
            chosen = view.successors.index(self.route.nodes[place])
        return replace(decision, choice=np.full(view.pending, chosen, np.int64)), state


def example_routes(tree: Tree) -> list[Route]:
    """The smallest, the middle and the largest of ``opa``'s routes that hand on features."""
    ways = [
        route
        for route in tree.routes()
        if tree[route.entry].system == OPA
        and len(route.nodes) > 1
        and all(tree[name].source == FEATURES for name in route.nodes[1:])
        and not tree[route.last].successors
    ]
    ways.sort(key=lambda route: sum(tree[name].macs for name in route.nodes))
    if len(ways) <= EXAMPLES:
        return ways
    return [ways[round(part * (len(ways) - 1) / (EXAMPLES - 1))] for part in range(EXAMPLES)]


def measure_handoff(
    found: EngineSet,
    profiles: Mapping[str, LatencyProfile],
    knowledge: Knowledge,
    batches: Sequence[int],
    *,
    seconds: float,
    progress: Progress | None = None,
) -> list[Handoff]:
    """Time groups on the routes that ``found`` has monoliths of, in turns with these.

    Args:
        found: engines, loaded; they are not closed.
        profiles: of every node.
        knowledge: of the build.
        batches: images a group.
        seconds: spent on each route and batch, as far as ``LEAST_PAIRS`` to ``MOST_PAIRS`` allow.
        progress: hears of each route and batch.
    """
    told, loader = progress or Progress(), found.setting.loader
    shared = Shared.of(loader, profiles, knowledge)
    decides = make_policy("opa_split" if knowledge.rightness else "opa", loader.tree, knowledge)
    routes = [way for way in found.monoliths if set(way.nodes) <= loader.tree.nodes.keys()]
    session = Session(shared, found.engines, Toward(decides, routes[0])) if routes else None
    told.start("hand-off", len(routes) * len(batches))
    measured: list[Handoff] = []
    for route in routes if session is not None else []:
        assert session is not None
        session.use(Toward(decides, route))
        for batch in batches:
            measured.append(_measure(found, session, route, batch, seconds))
            told.advance(len(measured))
    return measured


def _measure(
    found: EngineSet, session: Session, route: Route, batch: int, seconds: float
) -> Handoff:
    loader = found.setting.loader
    kept = canary_rows(loader.canary, IMAGES, canary_batches(loader.canary)[-1])
    images, clock = repeat_rows(kept, batch), loader.clock
    whole = _by_hand(found.monoliths[route], images, loader.device)
    ours: list[float] = []
    theirs: list[float] = []
    beside: list[float] = []

    def group() -> None:
        start = clock.now_ms()
        result = session.infer(images, math.inf)
        ours.append(clock.now_ms() - start)
        beside.append(ours[-1] - sum(step.measured_ms for step in result.steps))

    def alone() -> None:
        start = clock.now_ms()
        whole()
        theirs.append(clock.now_ms() - start)

    for warm in (group, alone):
        warm()
    for times in (ours, theirs, beside):
        times.clear()
    begun = clock.now_ms()
    for turn in range(MOST_PAIRS):
        if turn >= LEAST_PAIRS and clock.now_ms() - begun > 1000 * seconds:
            break
        for run in (group, alone) if turn % 2 == 0 else (alone, group):
            run()
    row = _row(found, route, batch, tuple(ours))
    rows = (row, replace(row, kind=MONOLITH, ms=tuple(theirs)))
    (ratio,) = Found(rows, ()).ratios()
    return Handoff(ratio, rows[1].at(0.5), float(np.median(beside)))


def _by_hand(engine: Engine, images: Tensor, device: Device) -> Callable[[], None]:
    """One engine from images to logits, both on the host, into memory of its own."""
    with device.scope():
        given = {IMAGES: device.upload(images)}
        out = engine.run(given)
        engine.prepare(given, out)
        device.wait()

    def run() -> None:
        with device.scope():
            engine.run({IMAGES: device.upload(images, given[IMAGES])}, out)
            device.download(out[LOGITS])

    return run


def _row(found: EngineSet, route: Route, batch: int, ms: tuple[float, ...]) -> Row:
    setting = found.setting
    shares = setting.loader.plan[setting.loader.bundle.tree[route.last].segment]
    label = next(share.vendor.label for share in shares if batch <= share.target.max_batch)
    return Row(ROUTE, route.nodes, setting.chosen, label, setting.loader.threads, batch, ms)
