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
    if len(machinery.entries) == 1:
        return Entry(machinery.entries[0])
    return _Newcomer(machinery, count, largest).enter(left_ms)


@dataclass(frozen=True)
class _Newcomer:
    """A group that has not entered yet: ``count`` images, in chunks of at most ``largest``."""

    machinery: Machinery
    count: int
    largest: int

    @property
    def _chunks(self) -> int:
        return -(-self.count // self.largest)

    def enter(self, left_ms: float) -> Entry:
        """Where it enters, in the time that thinking of it leaves."""
        machinery, overheads = self.machinery, self.machinery.latency.overheads
        begun, policy = machinery.clock.now_ms(), machinery.policy
        left_ms -= overheads.ms(Kind.ENTRY)
        arrival = self._arrival(left_ms)
        chosen, machinery.state = policy.enter(arrival, Budget(left_ms), machinery.state)
        sure = chosen or self._without_policy(arrival, left_ms)
        overheads.observe(Kind.ENTRY, machinery.clock.now_ms() - begun)
        ms, tries, chosen = arrival.promised_ms, None, sure
        if policy.explores:
            tries = machinery.tries.under(left_ms)
            chosen = self._tried(tries, sure.node, ms[sure.node], left_ms) or sure
        accuracy = tuple(chosen.accuracy.get(name, math.nan) for name in ms)
        told = Entered(chosen.node, left_ms, chosen.reason, tuple(ms), tuple(ms.values()), accuracy)
        return Entry(machinery.tree[chosen.node], told, tries)

    def _tried(self, tries: Tries, sure: str, sure_ms: float, left_ms: float) -> EntryChoice | None:
        """An entry of which little is known, if a try is due, there is time to think of one, and
        the policy wants it should it be in time."""
        clock, overheads = self.machinery.clock, self.machinery.latency.overheads
        begun, later_ms = clock.now_ms(), left_ms - overheads.ms(Kind.TRY)
        free = sure_ms > left_ms
        if not tries.due or (sure_ms > later_ms and not free):
            return None
        found = self._hoped(sure, later_ms)
        tries.asked(trying=found is not None, free=free)
        overheads.observe(Kind.TRY, clock.now_ms() - begun)
        return found

    def _hoped(self, sure: str, left_ms: float) -> EntryChoice | None:
        """What the policy chooses if those of which little is known keep what is expected."""
        machinery = self.machinery
        names = [entry.name for entry in machinery.entries]
        unknown = {name for name in names if not machinery.latency.known(name)}
        hoped = self._arrival(left_ms, unknown)
        chosen, _ = machinery.policy.enter(hoped, Budget(left_ms), machinery.state)
        if chosen is None or chosen.node == sure or chosen.node not in unknown:
            return None
        return replace(chosen, reason=f"little is known of it, and it may be in time; else {sure}")

    def _arrival(self, left_ms: float, hoped: Collection[str] = ()) -> Arrival:
        """What a policy sees of it; through some entries nothing is promised beyond what is
        expected."""
        machinery, latency = self.machinery, self.machinery.latency
        names = tuple(entry.name for entry in machinery.entries)
        every = latency.of_group(self.count, self.largest)
        promises = [
            Promise() if name in hoped else promise
            for name, promise in zip(names, latency.promises(names), strict=True)
        ]
        known = dict(zip(names, promises, strict=True))
        return Arrival(
            images=self.count,
            entries=names,
            group_ms=latency.entering(names, every, promises, self._chunks)[:, 0],
            each_ms=dict(zip(machinery.tree.nodes, every[:, 0].tolist(), strict=True)),
            slowdown=latency.slowdown,
            promises=known,
            ahead=self._ahead(left_ms, known),
        )

    def _ahead(self, left_ms: float, promises: Mapping[str, Promise]) -> dict[str, Ahead]:
        """What comes after each entry for a chunk, in its share of the time."""
        machinery, latency = self.machinery, self.machinery.latency
        if not machinery.policy.beside:
            return {}
        count = min(self.count, self.largest)
        left_ms *= count / self.count
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

    def _without_policy(self, arrival: Arrival, left_ms: float) -> EntryChoice:
        """The largest entry whose cheapest way fits, or the one that mostly is the fastest: where
        nothing can be promised, it does not count how much could be."""
        machinery, ms = self.machinery, arrival.promised_ms
        fitting = [entry for entry in machinery.entries if ms[entry.name] <= left_ms]
        if fitting:
            best = max(fitting, key=lambda entry: (entry.resolution, machinery.reach[entry.name]))
            return EntryChoice(best.name, f"it reaches furthest of {len(fitting)} that fit")
        every = np.array([*arrival.each_ms.values()])[:, None]
        nothing = [Promise()] * len(arrival.entries)
        expected = machinery.latency.entering(arrival.entries, every, nothing, self._chunks)[:, 0]
        found = arrival.entries[expected.argmin()]
        return EntryChoice(found, "nothing fits, so the fastest answers")
