"""Prometheus sees a session's metrics, where its client is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import opa_trt
from opa_trt.errors import BackendUnavailable
from opa_trt.runtime.prometheus import register


@pytest.fixture
def session(machine: Any, toy_bundle: Path) -> opa_trt.Session:
    return machine.load(toy_bundle)


def test_a_registry_asks_a_session_whenever_it_is_scraped(session: Any, toy: Any) -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    register(session, registry)

    def value(name: str, **labels: str) -> Any:
        return registry.get_sample_value(f"opa_trt_{name}", {"session": "toy", **labels})

    assert value("groups_total") == 0
    session.infer(toy.images(8), 5.0)
    session.infer(toy.images(8), 0.5)
    assert value("groups_total") == 2
    assert value("images_total") == 16
    assert value("deadlines_total", outcome="met") == 1
    assert value("deadlines_total", outcome="missed") == 1
    assert value("answered_images_total", node="medium") == 8
    assert value("decisions_total", successor="stop") == 1
    assert value("fallbacks_total") == 1
    assert value("unreadable_groups_total") == 0
    assert value("slowdown") == pytest.approx(session.slowdown)
    assert value("latency_seconds", quantile="0.5") == pytest.approx(session.metrics().p50_ms / 1e3)
    assert value("prediction_error_ratio") == session.metrics().prediction_error


def test_several_sessions_are_told_apart_by_label(session: Any, toy: Any) -> None:
    client = pytest.importorskip("prometheus_client")
    registry, fork = client.CollectorRegistry(), session.fork()
    collector = register({"front": session, "rear": fork}, registry)
    fork.infer(toy.images(8), 5.0)
    counts = [
        registry.get_sample_value("opa_trt_groups_total", {"session": name})
        for name in ("front", "rear")
    ]
    assert counts == [0, 1]
    registry.unregister(collector)
    assert registry.get_sample_value("opa_trt_groups_total", {"session": "front"}) is None


def test_metrics_are_written_in_prometheus_format(session: Any, toy: Any) -> None:
    pytest.importorskip("prometheus_client")
    session.infer(toy.images(8), 5.0)
    lines = session.metrics().prometheus("a").splitlines()
    assert 'opa_trt_groups_total{session="a"} 1.0' in lines
    assert "# TYPE opa_trt_slowdown gauge" in lines
    assert len([line for line in lines if line.startswith("# TYPE")]) == 10


def test_without_prometheus_client_the_remedy_is_told(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for ask in (session.metrics().prometheus, lambda: register(session)):
        with pytest.raises(BackendUnavailable) as missing:
            ask()
        assert missing.value.remedy == "pip install 'opa-trt[metrics]'"
