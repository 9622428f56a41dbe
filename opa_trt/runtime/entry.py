"""Where a group enters."""

from __future__ import annotations

from opa_trt.policies import Ahead, Arrival, Budget
from opa_trt.runtime.group import Machinery
from opa_trt.tree import Node


def pick_entry(machinery: Machinery, count: int, deadline_ms: float, largest: int) -> Node:
    """The policy's entry, or the largest whose cheapest way fits at the last slowdown.

    Args:
        machinery: whose policy is asked; its memory moves on.
        count: images of the group.
        deadline_ms: as asked.
        largest: images a chunk.
    """
    policy, latency, entries = machinery.policy, machinery.latency, machinery.entries
    if len(entries) == 1:
        return entries[0]
    names = tuple(entry.name for entry in entries)
    each = latency.of_group(count, largest)
    cheapest = latency.cheapest(names, each)[:, 0]
    arrival = Arrival(
        images=count,
        entries=names,
        group_ms=cheapest,
        each_ms=dict(zip(machinery.tree.nodes, each[:, 0].tolist(), strict=True)),
        slowdown=latency.slowdown,
        ahead=_ahead(machinery, min(count, largest), deadline_ms * min(1, largest / count)),
    )
    chosen, machinery.state = policy.enter(arrival, Budget(deadline_ms), machinery.state)
    if chosen is not None:
        return machinery.tree[chosen]
    ms = dict(zip(names, cheapest.tolist(), strict=True))
    fitting = [entry for entry in entries if ms[entry.name] <= deadline_ms]
    if not fitting:
        return min(entries, key=lambda entry: ms[entry.name])
    return max(fitting, key=lambda entry: (entry.resolution, machinery.reach[entry.name]))


def _ahead(machinery: Machinery, count: int, deadline_ms: float) -> dict[str, Ahead]:
    """What comes after each entry for a chunk of ``count`` images with so much time."""
    if not machinery.policy.beside:
        return {}
    latency = machinery.latency
    batches, slowdown = machinery.batches(count), latency.slowdown
    found = {}
    for entry in machinery.entries:
        if entry.successors:
            before = latency.profiled(entry.name, count)
            promised = latency.promised(batches, slowdown, entry_ms=before)
            view = machinery.view(entry, batches, promised, slowdown)
            found[entry.name] = Ahead(view, deadline_ms - latency.expected(entry.name, count))
    return found
