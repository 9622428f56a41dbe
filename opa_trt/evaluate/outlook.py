"""What adapting is expected to bring: held-out accuracy against this machine's latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from opa_trt.bundle import Manifest
from opa_trt.store import LatencyProfile
from opa_trt.tree import LOGITS, OPA, WHOLE, Node, Tree

DEADLINES = 5
SLACK = 1.2  # times the pioneer's p99, and the largest route's median
QUANTILE = 0.99  # of latency that is promised


@dataclass(frozen=True)
class Point:
    """A deadline for groups of a size.

    Args:
        batch: images a group.
        deadline_ms: of the group.
        static: the node whose route is the best that fits, and its accuracy.
        static_accuracy: 0 to 1, held out.
        accuracy: of ``opa_split``, expected.
        tail: where it sends images; "" where all stop.
        sent: the share of images that it may send there.
    """

    batch: int
    deadline_ms: float
    static: str
    static_accuracy: float
    accuracy: float
    tail: str
    sent: float

    @property
    def gain(self) -> float:
        """Over the best static route."""
        return self.accuracy - self.static_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "gain": self.gain}


class Outlook:
    """Expected accuracy of ``opa_split`` and of static routes, by deadline.

    What the build's report says of images that nothing was fitted on (``shares``: how many are
    right as ever more of a mixed pool go on) meets the latency profile: a part of a group takes
    the time of the batch bucket that holds it. Both sides take their promised latency (p99);
    ``opa_split`` takes what the runtime needs besides, a static route nothing.

    Args:
        tree: the nodes that are loaded.
        profiles: of every node.
        manifest: whose report has the shares.
        beside_ms: by batch, what a group takes beside its engines.
    """

    def __init__(
        self,
        tree: Tree,
        profiles: Mapping[str, LatencyProfile],
        manifest: Manifest,
        beside_ms: Mapping[int, float],
    ) -> None:
        self._tree, self._profiles, self._beside = tree, profiles, beside_ms
        self._buckets = manifest.buckets
        self._shares = {
            entry.name: known
            for entry in tree.entries_of(OPA)
            if (known := _known_shares(tree, entry, manifest.report))
        }
        self.known = bool(self._shares)
        self._accuracy = self._held_out() if self.known else {}

    def points(self, batch: int) -> list[Point]:
        """Deadlines from just above the pioneer's latency to above the largest route's."""
        if not self.known:
            return []
        beside = self._beside.get(batch, 0.0)
        low = SLACK * (beside + min(self._ms(entry, batch) for entry in self._shares))
        ends = [self._tree.route_to(name) for name in self._accuracy]
        largest = max(
            sum(self._profiles[name].at(batch) for name in route.nodes)
            for route in ends
            if self._tree[route.entry].system == OPA
        )
        high = max(low, SLACK * (beside + largest))
        return [self._point(batch, ms) for ms in np.linspace(low, high, DEADLINES).tolist()]

    def tightest(self, points: Sequence[Point]) -> float:
        """Mean gain over one static route that has to serve all of these deadlines."""
        mean = float(np.mean([point.accuracy for point in points]))
        return mean - points[0].static_accuracy

    def _point(self, batch: int, deadline_ms: float) -> Point:
        fitting = {
            name: accuracy
            for name, accuracy in self._accuracy.items()
            if self._route_ms(name, batch) <= deadline_ms
        }
        static = max(fitting, key=lambda name: fitting[name])
        best = (-1.0, "", 0.0)
        for entry, shares in self._shares.items():
            left = deadline_ms - self._ms(entry, batch) - self._beside.get(batch, 0.0)
            best = max(best, self._best(shares, batch, left), key=lambda found: found[0])
        return Point(batch, deadline_ms, static, fitting[static], *best)

    def _best(
        self, shares: Mapping[str, Sequence[float]], batch: int, left_ms: float
    ) -> tuple[float, str, float]:
        """The best accuracy in the time after the entry, the tail, and the share sent there."""
        best = (next(iter(shares.values()))[0], "", 0.0)
        for tail, right in shares.items():
            fits = [size for size in self._sizes(batch) if self._rest_ms(tail, size) <= left_ms]
            if not fits:
                continue
            most = max(fits) / batch
            steps = np.arange(len(right)) / (len(right) - 1)
            place = max(
                (step for step in range(len(right)) if steps[step] <= most),
                key=lambda step: right[step],
            )
            best = max(best, (right[place], tail, float(steps[place])), key=lambda found: found[0])
        return best

    def _sizes(self, batch: int) -> list[int]:
        return [*(bucket for bucket in self._buckets if bucket < batch), batch]

    def _ms(self, node: str, batch: int) -> float:
        return self._profiles[node].at(batch, QUANTILE)

    def _route_ms(self, end: str, batch: int) -> float:
        return sum(self._ms(name, batch) for name in self._tree.route_to(end).nodes)

    def _rest_ms(self, end: str, batch: int) -> float:
        """Of the way from an entry, which is not counted, to an answer below it."""
        return sum(self._ms(name, batch) for name in self._tree.route_to(end).nodes[1:])

    def _held_out(self) -> dict[str, float]:
        """Of every static route's end; a whole network's is as much below that of its fitting
        images as the others' are in the mean."""
        found: dict[str, float] = {}
        for entry, shares in self._shares.items():
            found[entry] = next(iter(shares.values()))[0]
            found |= {tail: right[-1] for tail, right in shares.items()}
        below = float(np.mean([self._tree[name].accuracy - found[name] for name in found]))
        for node in self._tree.entries:
            if node.system == WHOLE and LOGITS in node.outputs:
                found[node.name] = node.accuracy - below
        return found


def _known_shares(tree: Tree, entry: Node, report: Mapping[str, Any]) -> dict[str, list[float]]:
    """The shares of an entry's tails that are loaded, from the report of its own or of all."""
    found = report.get("fit", {})
    own = found.get("entries", {}).get(entry.name, found)
    shares = own.get("rightness", {}).get("shares", {})
    ends = (route.last for route in tree.routes(entry.name) if not tree[route.last].successors)
    return {
        name: [float(value) for value in shares[name]]
        for name in ends
        if isinstance(shares.get(name), list) and len(shares[name]) > 1
    }
