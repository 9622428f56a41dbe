"""What the GPU benchmark makes of what it found, and that it ends well without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PRINTED = """
tests/conformance/test_backends.py::test_runs[torchscript:cuda-1] PASSED [ 10%]
tests/conformance/test_backends.py::test_runs[torchscript-1] PASSED [ 20%]
tests/conformance/test_backends.py::test_runs[torchscript-2] FAILED [ 30%]
tests/conformance/test_backends.py::test_runs[(1, 2) cases-tensorrt_rtx] SKIPPED (no GPU) [ 40%]
tests/conformance/test_backends.py::test_runs[tensorrt-pioneer] ERROR [ 50%]
tests/backends/test_inductor.py::test_on_a_gpu PASSED [ 60%]
tests/backends/test_other.py::test_something PASSED [ 70%]
/somewhere/tests/file.py:12: AssertionError: not a result
"""
LABELS = ("torchscript", "torchscript:cuda", "tensorrt", "tensorrt_rtx", "inductor", "null")
LATENCY = {"side": 224, "subject": "pioneer", "batch": 8, "host_ms": 1.25, "device_ms": 1.0}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a benchmark by name, as its own folder sees it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module


@pytest.fixture
def report() -> dict[str, Any]:
    """With nothing measured yet."""
    return {
        "gpu": "NVIDIA H100, 9.0, driver 580.1",
        "cuda": "13.0",
        "machine": {"processor": "none", "cores": 1},
        "quick": False,
        "left_out": {},
        "conformance": [],
        "costs_us": {},
        "latency": [],
        "handoff": [],
        "switch": [],
    }


def test_outcomes_are_counted_by_backend(script: Any) -> None:
    found = script("gpu_conformance").outcomes(PRINTED, LABELS)
    counts = {
        label: tuple(count[key] for key in ("passed", "failed", "error", "skipped"))
        for label, count in found.items()
    }
    assert counts == {
        "torchscript:cuda": (1, 0, 0, 0),
        "torchscript": (1, 1, 0, 0),
        "tensorrt_rtx": (0, 0, 0, 1),
        "tensorrt": (0, 0, 1, 0),
        "inductor": (1, 0, 0, 0),
        "no backend named": (1, 0, 0, 0),
    }
    assert found["tensorrt"]["wrong"] == [
        "tests/conformance/test_backends.py::test_runs[tensorrt-pioneer]"
    ]


def test_the_page_has_the_parts_that_were_measured(script: Any, report: dict[str, Any]) -> None:
    report["latency"] = [LATENCY | {"arm": "eager"}, LATENCY | {"arm": "tensorrt, fp16"}]
    report["left_out"] = {"tensorrt_rtx": "no | driver\nhere"}
    page = script("gpu_page").page(report)
    assert "on NVIDIA H100, 9.0, driver 580.1 (CUDA 13.0)" in page
    assert "| px | what | batch | eager | tensorrt, fp16 |" in page
    assert "| 224 | pioneer | 8 | 1.250 / 1.000 | 1.250 / 1.000 |" in page
    assert r"| tensorrt_rtx | no \| driver here |" in page
    assert "## Waiting" not in page
    assert "## Tests" not in page


def test_an_arm_that_lacks_a_batch_has_a_gap(script: Any, report: dict[str, Any]) -> None:
    report["latency"] = [LATENCY | {"arm": "eager"}, LATENCY | {"arm": "inductor", "batch": 1}]
    page = script("gpu_page").page(report)
    assert "| 224 | pioneer | 8 | 1.250 / 1.000 | – |" in page
    assert "| 224 | pioneer | 1 | – | 1.250 / 1.000 |" in page


def test_failed_tests_are_named(script: Any, report: dict[str, Any]) -> None:
    backends = script("gpu_conformance").outcomes(PRINTED, LABELS)
    report["conformance"] = [{"suite": "conformance", "whole": False, "backends": backends}]
    page = script("gpu_page").page(report)
    assert "| conformance, cut off | torchscript | 1 | 1 | 0 | 0 |" in page
    assert "Failed, among others: `tests/conformance/test_backends.py::test_runs[torch" in page


def test_what_fails_is_left_out_and_the_rest_goes_on(
    script: Any, report: dict[str, Any], tmp_path: Path
) -> None:
    trial = script("gpu").Trial(None, tmp_path, report)
    with trial.noted("a part"):
        raise RuntimeError("the vendor's words")
    assert report["left_out"] == {"a part": "RuntimeError: the vendor's words"}


def test_an_arm_that_would_not_end_in_time_is_left_out(
    script: Any, report: dict[str, Any], tmp_path: Path
) -> None:
    module = script("gpu")
    chosen = module.argparse.Namespace(limit=100.0)
    slow, quick = (script("gpu_subjects").Arm(name) for name in ("slow", "quick"))
    trial = module.Trial(chosen, tmp_path, report, slowest={"slow": 90.0})
    assert not trial.has_time(slow, "pioneer")
    assert trial.has_time(quick, "pioneer")
    assert report["left_out"] == {"slow, pioneer": "no time was left."}


def test_without_a_gpu_it_says_so_and_ends_well(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    module = script("gpu")
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    monkeypatch.setattr(module, "capability", lambda device: "")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "gpu.md")])
    module.main()
    assert capsys.readouterr().err == "no GPU at hand: nothing was measured.\n"
    assert "No GPU at hand" in (tmp_path / "gpu.md").read_text()
    assert json.loads((tmp_path / "gpu.json").read_text())["latency"] == []


def test_an_arm_that_computes_something_else_is_refused(script: Any) -> None:
    subjects = script("gpu_subjects")
    torch = import_module("torch")
    double = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.constant_(double.weight, 1.0)
    subject = subjects.Subject("double", double, torch.ones(2, 2), ())
    right = torch.full((3, 2), 2.0)
    assert subjects.check(subject, subjects.Arm("some"), 3, [right]) == 0.0
    with pytest.raises(RuntimeError, match=r"double differs from eager by 5\.0e-01"):
        subjects.check(subject, subjects.Arm("some"), 3, [right / 2])
