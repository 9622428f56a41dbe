"""Where a group should enter: before the entry behind which the most accurate way still fits."""

from __future__ import annotations

from opa_trt.policies.base import Arrival
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

    def pick(self, arrival: Arrival, left_ms: float) -> str | None:
        """The entry of the most accurate way that fits, or None where none does.

        Among equals the larger resolution wins, then the faster way.
        """
        found: list[tuple[float, int, float, str]] = []
        for entry, cheapest in zip(arrival.entries, arrival.group_ms.tolist(), strict=True):
            ms = [sum(arrival.each_ms[name] for name in way[-1]) for way in self._ways[entry]]
            overhead = cheapest - min(ms)  # of the runtime itself: it is the same for every way
            found += [
                (accuracy, side, -(own + overhead), entry)
                for (accuracy, side, _), own in zip(self._ways[entry], ms, strict=True)
                if own + overhead <= left_ms
            ]
        return max(found)[-1] if found else None
