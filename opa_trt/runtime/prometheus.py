"""A session's metrics for Prometheus. prometheus-client is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from opa_trt.errors import BackendUnavailable
from opa_trt.runtime.metrics import Metrics
from opa_trt.runtime.session import Session

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

INSTALL = "pip install 'opa-trt[metrics]'"
PREFIX = "opa_trt_"
QUANTILES = {"0.5": "p50_ms", "0.95": "p95_ms", "0.99": "p99_ms"}

Ask = Callable[[], Mapping[str, Metrics]]


def register(
    sessions: Session | Mapping[str, Session], registry: CollectorRegistry | None = None
) -> Collector:
    """Let a registry ask sessions for their metrics whenever it is scraped.

    It asks from a thread of its own, while groups are answered.

    Args:
        sessions: one, whose label ``session`` is its bundle's name; or several (forks, say), by
            label. A registry takes one collector: register all sessions at once.
        registry: prometheus-client's own by default.

    Returns:
        What ``registry.unregister`` takes; it holds the sessions.

    Raises:
        BackendUnavailable: prometheus-client is not installed.
        ValueError: of the registry, where it has such a collector already.
    """
    client = _client()
    if not isinstance(sessions, Mapping):
        sessions = {sessions.manifest.name: sessions}
    asked = dict(sessions)
    made = _collector(lambda: {name: session.metrics() for name, session in asked.items()})
    (client.REGISTRY if registry is None else registry).register(made)
    return made


def text(metrics: Mapping[str, Metrics]) -> str:
    """Prometheus' text format of metrics by the label ``session``.

    Raises:
        BackendUnavailable: prometheus-client is not installed.
    """
    client = _client()
    registry = client.CollectorRegistry()
    registry.register(_collector(lambda: metrics))
    written: bytes = client.generate_latest(registry)
    return written.decode()


def _collector(ask: Ask) -> Collector:
    from prometheus_client.registry import Collector

    class SessionCollector(Collector):
        def collect(self) -> Iterator[Metric]:
            return _families(ask())

    return SessionCollector()


def _families(every: Mapping[str, Metrics]) -> Iterator[Metric]:
    """One family a metric, with a sample for every session (and node, say)."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def counter(name: str, what: str, label: str = "") -> Any:
        return CounterMetricFamily(PREFIX + name, what, labels=["session", *filter(None, [label])])

    def gauge(name: str, what: str, label: str = "") -> Any:
        return GaugeMetricFamily(PREFIX + name, what, labels=["session", *filter(None, [label])])

    groups = counter("groups", "Groups answered.")
    images = counter("images", "Images answered.")
    deadlines = counter("deadlines", "Deadlines met and missed.", "outcome")
    fallbacks = counter("fallbacks", "Groups in which nothing fitted for some images.")
    unreadable = counter("unreadable_groups", "Groups whose logits were not all finite.")
    nodes = counter("answered_images", "Images answered, by node.", "node")
    decisions = counter("decisions", "Decisions that sent images to a successor.", "successor")
    slowdown = gauge("slowdown", "Measured over profiled latency, as last known.")
    latency = gauge("latency_seconds", "Of the latest groups, at most 1000.", "quantile")
    error = gauge("prediction_error_ratio", "Of the latest groups: mean error of latency.")
    for name, found in every.items():
        label = [name]
        groups.add_metric(label, found.groups)
        images.add_metric(label, found.images)
        deadlines.add_metric([name, "met"], found.deadlines_met)
        deadlines.add_metric([name, "missed"], found.deadlines_missed)
        fallbacks.add_metric(label, found.fallbacks)
        unreadable.add_metric(label, found.unreadable)
        for node, count in found.nodes.items():
            nodes.add_metric([name, node], count)
        for successor, count in found.decisions.items():
            decisions.add_metric([name, successor], count)
        slowdown.add_metric(label, found.slowdown)
        for quantile, key in QUANTILES.items():
            latency.add_metric([name, quantile], getattr(found, key) / 1000)
        error.add_metric(label, found.prediction_error)
    yield from (groups, images, deadlines, fallbacks, unreadable, nodes, decisions)
    yield from (slowdown, latency, error)


def _client() -> Any:
    try:
        import prometheus_client
    except ImportError as exc:
        message = "prometheus-client is not installed."
        raise BackendUnavailable(message, remedy=INSTALL) from exc
    return prometheus_client
