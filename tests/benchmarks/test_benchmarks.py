"""What benchmarks compute from what they measured; their measurements are not tests."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from opa_trt.search.answers import Answer
from opa_trt.supernet import MobileNetV3Space

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a benchmark by name, as its own folder sees it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module


def test_pairs_run_in_the_order_a_b_b_a(script: Any) -> None:
    order: list[str] = []
    found = script("measuring").in_pairs(
        lambda i: order.append(f"a{i}"), lambda i: order.append(f"b{i}"), 3
    )
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert len(found) == 3


def test_an_interval_holds_the_mean(script: Any) -> None:
    mean, low, high = script("measuring").interval(np.arange(50.0))
    assert mean == 24.5
    assert 20 < low < mean < high < 29
    assert script("measuring").interval([2.0, 2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(("low", "high", "verdict"), [(3, 4, True), (1, 2, False), (2, 4, None)])
def test_a_goal_is_met_missed_or_not_resolved(
    script: Any, low: float, high: float, verdict: bool | None
) -> None:
    assert script("measuring").met(low, high, 3) is verdict


@pytest.mark.parametrize(
    ("their_seconds", "gain", "met"),
    [(4.0, 0.01, True), (2.0, 0.01, False), (4.0, -0.01, False)],
)
def test_the_search_benchmark_judges_time_and_accuracy(
    script: Any, their_seconds: float, gain: float, met: bool
) -> None:
    pairs = [((0.1, 0.8 + gain), (their_seconds, 0.8))] * 4
    report = script("search").summary({20.0: pairs})
    assert report["met"] is met
    machine = {"processor": "none", "cores": 1}
    page = script("search").page(report | {"threads": 1, "machine": machine})
    assert f"| 20 ms | 4 | 100 ms | {1000 * their_seconds:.0f} ms |" in page


def test_the_multi_target_page_has_every_arm_and_target(script: Any) -> None:
    module = script("multi_target")
    arch = MobileNetV3Space().smallest()
    answers = {
        count: {
            arm: [[Answer(t, t, 0.8 + place / 100, 0.5, 10, arch) for t in targets]] * 2
            for place, arm in enumerate(module.ARMS)
        }
        for count, targets in module.TARGETS.items()
    }
    report = module.summary(answers) | {"seeds": 2, "machine": {"processor": "none", "cores": 1}}
    assert report["seconds"]["10"]["cold"] == (5.0, 0.0)
    page = module.page(report)
    assert "| 10 | 5.00 ± 0.00 (247.9) | 5.00 ± 0.00 (55.6) |" in page
    assert "| 60 ms | 0.8000 ± 0.0000 (0.8492) | 0.8100 ± 0.0000 (0.8500) |" in page
    assert all(name in page for name in module.ARMS.values())
    assert "joint (ours) +0.0100" in page
