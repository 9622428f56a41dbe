"""Where a group enters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from opa_trt.policies import Ahead, Arrival, Budget, EntryChoice, Promise
from opa_trt.runtime.group import Machinery
from opa_trt.runtime.overheads import Kind
from opa_trt.runtime.result import Entered
from opa_trt.runtime.tries import Tries
from opa_trt.tree import Node


@dataclass(frozen=True)
class Entry:
    """Where a group enters.

    Args:
        node: that runs first.
        told: why there; None where there is but one entry.
        tries: that the group counts for, if the policy explores.
    """

    node: Node
    told: Entered | None = None
    tries: Tries | None = None


def pick_entry(machinery: Machinery, count: int, left_ms: float, largest: int) -> Entry:
    """The policy's entry, or the largest whose cheapest way fits at the last slowdown.

    Args:
        machinery: whose policy is asked; its memory moves on.
        count: images of the group.
        left_ms: of the deadline.
        largest: images a chunk.
    """
    latency, entries = machinery.latency, machinery.entries
    if len(entries) == 1:
        return Entry(entries[0])
    begun, policy = machinery.clock.now_ms(), machinery.policy
    left_ms -= latency.overheads.ms(Kind.ENTRY)
    arrival = _arrival(machinery, count, left_ms, largest)
    chosen, machinery.state = policy.enter(arrival, Budget(left_ms), machinery.state)
    sure = chosen or _without_policy(machinery, arrival, left_ms)
    latency.overheads.observe(Kind.ENTRY, machinery.clock.now_ms() - begun)
    ms, tries, chosen = arrival.promised_ms, None, sure
    if policy.explores:
        tries = machinery.tries.under(left_ms)
        chosen = _tried(machinery, tries, sure.node, arrival, left_ms, largest) or sure
    accuracy = tuple(chosen.accuracy.get(name, math.nan) for name in ms)
    told = Entered(chosen.node, left_ms, chosen.reason, tuple(ms), tuple(ms.values()), accuracy)
    return Entry(machinery.tree[chosen.node], told, tries)


def _tried(
    machinery: Machinery,
    tries: Tries,
    sure: str,
    arrival: Arrival,
    left_ms: float,
    largest: int,
) -> EntryChoice | None:
    """An entry of which little is known, if a try is due, there is time to think of one, and the
    policy wants it should it be in time."""
    overheads, begun = machinery.latency.overheads, machinery.clock.now_ms()
    sure_ms, later_ms = arrival.promised_ms[sure], left_ms - overheads.ms(Kind.TRY)
    free = sure_ms > left_ms
    if not tries.due or (sure_ms > later_ms and not free):
        return None
    found = _hoped(machinery, sure, arrival.images, later_ms, largest)
    tries.asked(trying=found is not None, free=free)
    overheads.observe(Kind.TRY, machinery.clock.now_ms() - begun)
    return found


def _hoped(
    machinery: Machinery, sure: str, count: int, left_ms: float, largest: int
) -> EntryChoice | None:
    """What the policy chooses if those of which little is known keep what is expected of them."""
    latency, names = machinery.latency, [entry.name for entry in machinery.entries]
    unknown = {name for name in names if not latency.known(name)}
    hoped = _arrival(machinery, count, left_ms, largest, unknown)
    chosen, _ = machinery.policy.enter(hoped, Budget(left_ms), machinery.state)
    if chosen is None or chosen.node == sure or chosen.node not in unknown:
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


def _without_policy(machinery: Machinery, arrival: Arrival, left_ms: float) -> EntryChoice:
    """The largest entry whose cheapest way fits, or the one that mostly is the fastest: where
    nothing can be promised, it does not count how much could be."""
    ms = arrival.promised_ms
    fitting = [entry for entry in machinery.entries if ms[entry.name] <= left_ms]
    if fitting:
        best = max(fitting, key=lambda entry: (entry.resolution, machinery.reach[entry.name]))
        return EntryChoice(best.name, f"it reaches furthest of {len(fitting)} that fit")
    every = np.array([*arrival.each_ms.values()])[:, None]
    nothing = [Promise()] * len(arrival.entries)
    expected = machinery.latency.entering(arrival.entries, every, nothing)[:, 0]
    return EntryChoice(arrival.entries[expected.argmin()], "nothing fits, so the fastest answers")


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
