"""Where a group enters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from opa_trt.policies import Ahead, Arrival, Budget, EntryChoice, Promise
from opa_trt.runtime.group import Machinery
from opa_trt.runtime.result import Entered
from opa_trt.tree import Node


def pick_entry(
    machinery: Machinery, count: int, left_ms: float, largest: int
) -> tuple[Node, Entered | None]:
    """The policy's entry, or the largest whose cheapest way fits at the last slowdown.

    Args:
        machinery: whose policy is asked; its memory moves on.
        count: images of the group.
        left_ms: of the deadline.
        largest: images a chunk.

    Returns:
        The entry, and why; None where there is but one.
    """
    latency, entries = machinery.latency, machinery.entries
    if len(entries) == 1:
        return entries[0], None
    begun = machinery.clock.now_ms()
    entered = _entered(machinery, count, left_ms - latency.entering_ms(), largest)
    latency.observe_entering(machinery.clock.now_ms() - begun)
    return machinery.tree[entered.node], entered


def _entered(machinery: Machinery, count: int, left_ms: float, largest: int) -> Entered:
    """``pick_entry`` where there are several, and so much time when it is done."""
    policy = machinery.policy
    arrival = _arrival(machinery, count, left_ms, largest)
    chosen, machinery.state = policy.enter(arrival, Budget(left_ms), machinery.state)
    ms = dict(zip(arrival.entries, arrival.group_ms.tolist(), strict=True))
    sure = chosen or _without_policy(machinery, ms, left_ms)
    tried = None
    if policy.explores and machinery.tries.under(left_ms).due:
        free = chosen is None
        tried = _tried(machinery, sure.node, count, left_ms, largest, free=free)
    chosen = tried or sure
    accuracy = tuple(chosen.accuracy.get(name, math.nan) for name in ms)
    return Entered(chosen.node, left_ms, chosen.reason, tuple(ms), tuple(ms.values()), accuracy)


def _tried(
    machinery: Machinery, sure: str, count: int, left_ms: float, largest: int, *, free: bool
) -> EntryChoice | None:
    """An entry of which little is known, if the policy wants it should it be in time."""
    latency, names = machinery.latency, [entry.name for entry in machinery.entries]
    unknown = {name for name in names if not latency.known(name)}
    hoped = _arrival(machinery, count, left_ms, largest, unknown)
    chosen, _ = machinery.policy.enter(hoped, Budget(left_ms), machinery.state)
    trying = chosen is not None and chosen.node != sure and chosen.node in unknown
    machinery.tries.latest.asked(trying=trying, free=free)
    if chosen is None or not trying:
        return None
    return replace(chosen, reason=f"little is known of it, and it may be in time; else {sure}")


def _arrival(
    machinery: Machinery,
    count: int,
    left_ms: float,
    largest: int,
    hoped: Collection[str] = (),
) -> Arrival:
    """What a policy sees of a group; through some entries nothing is promised beyond what is
    expected."""
    latency = machinery.latency
    names = tuple(entry.name for entry in machinery.entries)
    every = latency.of_group(count, largest)
    promises = [
        Promise() if name in hoped else promise
        for name, promise in zip(names, latency.promises(names), strict=True)
    ]
    known = dict(zip(names, promises, strict=True))
    return Arrival(
        images=count,
        entries=names,
        group_ms=latency.entering(names, every, promises)[:, 0],
        each_ms=dict(zip(machinery.tree.nodes, every[:, 0].tolist(), strict=True)),
        slowdown=latency.slowdown,
        promises=known,
        ahead=_ahead(machinery, min(count, largest), left_ms * min(1, largest / count), known),
    )


def _without_policy(machinery: Machinery, ms: Mapping[str, float], left_ms: float) -> EntryChoice:
    """The largest entry whose cheapest way fits, or the fastest."""
    fitting = [entry for entry in machinery.entries if ms[entry.name] <= left_ms]
    if not fitting:
        return EntryChoice(min(ms, key=ms.__getitem__), "nothing fits, so the fastest answers")
    best = max(fitting, key=lambda entry: (entry.resolution, machinery.reach[entry.name]))
    return EntryChoice(best.name, f"it reaches furthest of {len(fitting)} that fit")


def _ahead(
    machinery: Machinery, count: int, left_ms: float, promises: Mapping[str, Promise]
) -> dict[str, Ahead]:
    """What comes after each entry for a chunk of ``count`` images with so much time."""
    if not machinery.policy.beside:
        return {}
    latency = machinery.latency
    batches, slowdown = machinery.batches(count), latency.slowdown
    every = latency.every(batches, slowdown)
    found = {}
    for entry in machinery.entries:
        if entry.successors:
            before = latency.expected(entry.name, count)
            promise = replace(promises[entry.name], before_ms=before)
            view = machinery.view(entry, batches, every, promise, slowdown)
            found[entry.name] = Ahead(view, left_ms - before)
    return found
