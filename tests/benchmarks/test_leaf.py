"""What the benchmark of a legacy network computes from what it measured."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from opa_trt.supernet.legacy import Configuration
from opa_trt.training.leaf_measure import Measured, front

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TRIED = [
    Measured(Configuration(bits), accuracy, cost)
    for bits, accuracy, cost in zip(
        product((False, True), repeat=2),
        (0.9, 0.8, 0.85, 0.7),
        (40e6, 30e6, 20e6, 10e6),
        strict=True,
    )
]
MS = {"a": {"1": {"{}": 4.0, "{1}": 2.0, "{0}": 3.0, "{0, 1}": 1.0}},
      "b": {"1": {"{}": 4.0, "{1}": 3.0, "{0}": 2.0, "{0, 1}": 1.0}}}  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a benchmark by name, as its own folder sees it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module


@pytest.fixture
def strangers(script: Any) -> list[dict[str, Any]]:
    """What the sets cost at each other's places; the second measurement agrees with the first."""
    module = script("leaf")
    sets = module._sets(TRIED, MS)
    known = {module.MACS: [each.configuration for each in front(TRIED)], **sets}
    rows: list[dict[str, Any]] = module._strangers(TRIED, MS, known, sets)
    return rows


def test_a_place_s_own_set_costs_nothing_there(strangers: Any) -> None:
    own = [row for row in strangers if row["at"] == row["set"] or row["set"].startswith("itself")]
    assert len(own) == 4
    assert all(row["most"] == 0 for row in own)


def test_another_place_s_set_costs_what_its_fastest_of_the_accuracy_takes_longer(
    strangers: Any,
) -> None:
    found = {(row["at"], row["set"]): row for row in strangers}
    row = found["a, batch 1", "b, batch 1"]  # b's set lacks {1}: {0} is as accurate, and takes 3 ms
    assert row["most"] == pytest.approx(0.5)
    assert row["mean"] == pytest.approx(0.5 / 4)
    assert found["b, batch 1", "a, batch 1"]["most"] == 0  # a's set has all four


def report_of(module: Any, strangers: Any) -> dict[str, Any]:
    sets = {module.MACS: front(TRIED)}
    fronts = {name: [str(each.configuration) for each in own] for name, own in sets.items()}
    fronts |= {name: [*map(str, own)] for name, own in module._sets(TRIED, MS).items()}
    base = {"phase": "base", "steps": 20, "configurations": [row.to_dict(True) for row in TRIED]}
    tuned = [Measured(row.configuration, row.accuracy + 0.02, row.cost) for row in TRIED[1:]]
    fine = {"phase": "fine", "steps": 8, "configurations": [row.to_dict(True) for row in tuned]}
    return {
        "recipe": "invented", "folder": "leaf", "network": "small_resnet",
        "reading": "Fronts differ.\n\n", "threads": 2,
        "machine": {"processor": "one of ours", "cores": 2}, "training": [base, fine],
        "images": {"checking": 100, "choosing": 200, "test": 300}, "fronts": fronts,
        "configurations": [
            {
                "name": str(row.configuration), "shallow": row.configuration.bits,
                "macs": row.cost, "accuracy": row.accuracy, "test_accuracy": row.accuracy,
                "ms": {name: {b: at[str(row.configuration)] for b, at in ms.items()}
                       for name, ms in MS.items()},
            }
            for row in TRIED
        ],
        "strangers": strangers,
        "chains": [{"route": "legacy1", "engines": 2, "batch": 1, "backend": "a", "ms": 3.0,
                    "ratio": 1.2, "low": 1.1, "high": 1.3}],
    }  # fmt: skip


def test_the_page_says_before_and_after_and_marks_the_fronts(script: Any, strangers: Any) -> None:
    module = script("leaf")
    page = module.page(report_of(module, strangers))
    assert page.index("Fronts differ.") < page.index("## Training")
    assert "| {1} | 30.0 | 80.0% | 82.0% |" in page
    assert "| {} | 40.0 | 90.0% | not on the front |" in page
    assert "| {1} | 30.0 | 80.0% | **2.00** | 3.00 |" in page
    assert "3.00 ms, 1.20 [1.10, 1.30]" in page


def test_the_picture_is_drawn(script: Any, strangers: Any, tmp_path: Path) -> None:
    report = report_of(script("leaf"), strangers)
    script("leaf_picture").draw(tmp_path / "leaf.png", report)
    assert (tmp_path / "leaf.png").read_bytes().startswith(b"\x89PNG")
