"""What a session has done so far, in numbers."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from opa_trt.runtime.result import Result
from opa_trt.tree import Tree

WINDOW = 1000  # groups that percentiles and the prediction's error are taken over
STOPPED = "stop"


@dataclass(frozen=True)
class Metrics:
    """A session's counts since it was made, and its latencies of late.

    Args:
        groups: answered.
        images: answered.
        deadlines_met: groups answered in time.
        deadlines_missed: groups answered late.
        fallbacks: groups in which nothing fitted for some images, so that a node answered early.
        unreadable: groups with logits that were not finite.
        nodes: images answered, by node.
        decisions: how many sent images to each successor; ``stop`` is those that kept some. One
            that splits a group counts for each.
        slowdown: measured over profiled latency, as last known.
        window: over how many of the latest groups (at most ``WINDOW``) what follows is taken.
        p50_ms: median latency, from entry to logits on the host; nan before the first group.
        p95_ms: its 95th percentile.
        p99_ms: its 99th percentile.
        prediction_error: mean of the absolute difference between predicted latency, without
            margin, and measured latency, over measured latency; nan before the first group.
    """

    groups: int
    images: int
    deadlines_met: int
    deadlines_missed: int
    fallbacks: int
    unreadable: int
    nodes: Mapping[str, int]
    decisions: Mapping[str, int]
    slowdown: float
    window: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    prediction_error: float

    @property
    def deadlines_met_share(self) -> float:
        """Of groups answered in time, 0 to 1; nan before the first."""
        return self.deadlines_met / self.groups if self.groups else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for nan."""
        values = {**asdict(self), "deadlines_met_share": self.deadlines_met_share}
        return {key: None if _is_nan(value) else value for key, value in values.items()}

    def prometheus(self, session: str = "") -> str:
        """Prometheus' text format. ``opa_trt.runtime.prometheus.register`` serves it live.

        Args:
            session: value of the label of that name.

        Raises:
            BackendUnavailable: prometheus-client is not installed.
        """
        from opa_trt.runtime.prometheus import text

        return text({session: self})

    def __str__(self) -> str:
        if not self.groups:
            return "no groups yet"
        answered = {name: count for name, count in self.nodes.items() if count}
        sent = {name: count for name, count in self.decisions.items() if count}
        lines = [
            f"{self.images:,} images in {_count(self.groups, 'group')}; "
            f"{self.deadlines_met_share:.1%} of deadlines met, {self.deadlines_missed:,} missed; "
            f"{_count(self.fallbacks, 'fallback')}",
            f"p50 {self.p50_ms:.2f} ms, p95 {self.p95_ms:.2f} ms, p99 {self.p99_ms:.2f} ms over "
            f"the last {_count(self.window, 'group')}; predictions off by "
            f"{self.prediction_error:.1%}; slowdown {self.slowdown:.2f}",
            "images answered: " + _listed(answered),
        ]
        if sent:
            lines.append("decisions: " + _listed(sent))
        if self.unreadable:
            lines.append(f"logits not finite in {_count(self.unreadable, 'group')}")
        return "\n".join(lines)


class Recorder:
    """Counts as groups are answered. One thread adds while others may ask."""

    def __init__(self, tree: Tree) -> None:
        self._parents = tree.parents
        self._lock = threading.Lock()
        self._groups = self._images = self._met = self._fallbacks = self._unreadable = 0
        self._ran = dict.fromkeys(tree.nodes, 0)  # images, by node
        self._sent = dict.fromkeys(tree.parents, 0)  # decisions, by successor
        self._stopped = 0
        self._window: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # predicted, measured

    def add(self, result: Result) -> None:
        """A group was answered."""
        measured = result.measured_ms
        with self._lock:
            self._groups += 1
            self._images += len(result.labels)
            self._met += measured <= result.deadline_ms
            self._fallbacks += result.fallback
            self._window.append((result.predicted_ms, measured))
            self._add_steps(result)

    def _add_steps(self, result: Result) -> None:
        """Steps come depth first: a decision's successors follow it before the next decision of
        the same node, and what they do not take has stopped."""
        kept: dict[str, int] = {}  # images, by the node that decided last
        unreadable = not math.isfinite(result.logits.sum(dtype=np.float64))
        for step in result.steps:
            node, images = step.node, step.images
            self._ran[node] += images
            parent = self._parents.get(node)
            if parent is not None:
                self._sent[node] += 1
                kept[parent] -= images
            decision = step.decision
            if decision is not None:
                self._stopped += kept.get(node, 0) > 0
                kept[node] = images
                if decision.notes:
                    unreadable |= "unreadable" in decision.notes
        for images in kept.values():
            self._stopped += images > 0
        self._unreadable += unreadable

    def metrics(self, slowdown: float) -> Metrics:
        """All of it so far."""
        with self._lock:
            groups, met = self._groups, self._met
            ran, window = dict(self._ran), [*self._window]
            images, fallbacks, unreadable = self._images, self._fallbacks, self._unreadable
            decisions = {**self._sent, STOPPED: self._stopped}
        answered = dict(ran)
        for node, parent in self._parents.items():
            answered[parent] -= ran[node]
        p50, p95, p99 = _percentiles([measured for _, measured in window])
        return Metrics(
            groups=groups,
            images=images,
            deadlines_met=met,
            deadlines_missed=groups - met,
            fallbacks=fallbacks,
            unreadable=unreadable,
            nodes=answered,
            decisions=decisions,
            slowdown=slowdown,
            window=len(window),
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            prediction_error=_mean_error(window),
        )


def _percentiles(measured: list[float]) -> tuple[float, float, float]:
    known = [ms for ms in measured if math.isfinite(ms)]
    if not known:
        return math.nan, math.nan, math.nan
    p50, p95, p99 = np.quantile(known, (0.5, 0.95, 0.99)).tolist()
    return p50, p95, p99


def _mean_error(window: list[tuple[float, float]]) -> float:
    """Mean of |predicted - measured| / measured, without what no clock can have measured."""
    errors = [
        abs(predicted - measured) / measured
        for predicted, measured in window
        if 0 < measured < math.inf
    ]
    return sum(errors) / len(errors) if errors else math.nan


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _listed(counts: Mapping[str, int]) -> str:
    """The largest first."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count:,}" for name, count in ordered)
