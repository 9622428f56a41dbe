"""Where a group should enter: before the entry behind which the most accurate way still fits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opa_trt.policies.base import Arrival, EntryChoice, Promise
from opa_trt.tree import OPA, Tree


class Entrance:
    """Picks among ``opa``'s entries, by what the build measured of every way to logits.

    The largest resolution whose cheapest way fits may have time for its pioneer alone, where a
    smaller one has time for a tail that is right more often.

    Args:
        tree: the bundle's nodes.
    """

    def __init__(self, tree: Tree) -> None:
        self._ways = {
            entry.name: [
                (tree[route.last].accuracy, entry.resolution, route.nodes)
                for route in tree.routes(entry.name)
            ]
            for entry in tree.entries
            if entry.system == OPA
        }

    def pick(
        self,
        arrival: Arrival,
        left_ms: float,
        worth: Callable[[str], float] | None = None,
    ) -> EntryChoice | None:
        """The entry of the best way that fits, or None where none does.

        Among equals the larger resolution wins, then the faster way.

        Args:
            arrival: what is known of the group.
            left_ms: what there is time for.
            worth: of the answer of a node; by default its accuracy as the build measured it.
        """
        found: list[tuple[float, int, float, str]] = []
        for entry, cheapest in zip(arrival.entries, arrival.group_ms.tolist(), strict=True):
            if entry not in self._ways:
                continue
            nodes = [way[-1] for way in self._ways[entry]]
            expected = [sum(arrival.each_ms[name] for name in each) for each in nodes]
            promise = arrival.promises.get(entry, Promise())
            ms = promise.ms(np.array(expected)).tolist()
            overhead = cheapest - min(ms)  # of the runtime itself, for each node after the entry
            for (accuracy, side, path), own in zip(self._ways[entry], ms, strict=True):
                own += overhead * max(1, len(path) - 1)
                if own <= left_ms:
                    value = accuracy if worth is None else worth(path[-1])
                    found.append((value, side, -own, entry))
        if not found:
            return None
        reason = f"of {len(found)} ways that fit the best begins there"
        return EntryChoice(max(found)[-1], reason)
