"""Where a group enters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from opa_trt.policies import Ahead, Arrival, Budget, EntryChoice
from opa_trt.runtime.group import Machinery
from opa_trt.runtime.result import Entered
from opa_trt.tree import Node


def pick_entry(
    machinery: Machinery, count: int, deadline_ms: float, largest: int
) -> tuple[Node, Entered | None]:
    """The policy's entry, or the largest whose cheapest way fits at the last slowdown.

    Args:
        machinery: whose policy is asked; its memory moves on.
        count: images of the group.
        deadline_ms: as asked.
        largest: images a chunk.

    Returns:
        The entry, and why; None where there is but one.
    """
    latency, entries = machinery.latency, machinery.entries
    if len(entries) == 1:
        return entries[0], None
    begun = machinery.clock.now_ms()
    entered = _entered(machinery, count, deadline_ms - latency.entering_ms(), largest)
    latency.observe_entering(machinery.clock.now_ms() - begun)
    return machinery.tree[entered.node], entered


def _entered(machinery: Machinery, count: int, left_ms: float, largest: int) -> Entered:
    """``pick_entry`` where there are several, and so much time when it is done."""
    policy, latency, entries = machinery.policy, machinery.latency, machinery.entries
    names = tuple(entry.name for entry in entries)
    each = latency.of_group(count, largest)
    cheapest = latency.cheapest(names, each)[:, 0]
    arrival = Arrival(
        images=count,
        entries=names,
        group_ms=cheapest,
        each_ms=dict(zip(machinery.tree.nodes, each[:, 0].tolist(), strict=True)),
        slowdown=latency.slowdown,
        ahead=_ahead(machinery, min(count, largest), left_ms * min(1, largest / count)),
    )
    chosen, machinery.state = policy.enter(arrival, Budget(left_ms), machinery.state)
    ms = dict(zip(names, cheapest.tolist(), strict=True))
    if chosen is None:
        chosen = _without_policy(machinery, ms, left_ms)
    accuracy = tuple(chosen.accuracy.get(name, math.nan) for name in names)
    return Entered(chosen.node, left_ms, chosen.reason, names, tuple(ms.values()), accuracy)


def _without_policy(machinery: Machinery, ms: Mapping[str, float], left_ms: float) -> EntryChoice:
    """The largest entry whose cheapest way fits, or the fastest."""
    fitting = [entry for entry in machinery.entries if ms[entry.name] <= left_ms]
    if not fitting:
        return EntryChoice(min(ms, key=ms.__getitem__), "nothing fits, so the fastest answers")
    best = max(fitting, key=lambda entry: (entry.resolution, machinery.reach[entry.name]))
    return EntryChoice(best.name, f"it reaches furthest of {len(fitting)} that fit")


def _ahead(machinery: Machinery, count: int, left_ms: float) -> dict[str, Ahead]:
    """What comes after each entry for a chunk of ``count`` images with so much time."""
    if not machinery.policy.beside:
        return {}
    latency = machinery.latency
    batches, slowdown = machinery.batches(count), latency.slowdown
    promised = latency.promised(batches, slowdown)
    found = {}
    for entry in machinery.entries:
        if entry.successors:
            before = latency.profiled(entry.name, count)
            view = machinery.view(entry, batches, promised, slowdown, entry_ms=before)
            found[entry.name] = Ahead(view, left_ms - latency.expected(entry.name, count))
    return found
