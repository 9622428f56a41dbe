"""A comparison as the Markdown page that benchmarks/comparison.py writes of it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from opa_trt.evaluate.compare import Comparison
from opa_trt.evaluate.compare_page import reading

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, as its own folder sees it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module("comparison")


@pytest.fixture
def report(module: ModuleType, compared: Comparison) -> dict[str, Any]:
    """What the benchmark tells of a comparison that ran already."""
    rest = {
        "recipe": "invented", "folder": "invented", "reading": "", "threads": 1, "quick": False,
        "machine": {"processor": "one of ours", "cores": 2},
    }  # fmt: skip
    return {**{key: compared.report[key] for key in module.KEPT}, **rest}


def lines_of(page: str, title: str) -> list[str]:
    """What stands below a title, blank lines left out."""
    below = page.split(f"## {title}\n")[1].split("\n## ")[0]
    return [line for line in below.splitlines() if line.strip()]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_load_has_a_table_of_all_its_deadlines(module: Any, report: dict[str, Any]) -> None:
    lines = lines_of(module.page(report), "By deadline")
    heads = [cells(line) for line in lines if "applications" in line]
    assert [head[0] for head in heads] == [f"{row['load']} applications" for row in report["loads"]]
    for head, load in zip(heads, report["loads"], strict=True):
        marked = [cell.startswith("(") for cell in head[1:]]
        assert marked == [not each["judged"] for each in load["deadlines"]]


def test_every_policy_is_in_the_table_of_means(module: Any, report: dict[str, Any]) -> None:
    rows = [
        cells(line) for line in lines_of(module.page(report), "In the mean over judged deadlines")
    ]
    assert {row[1] for row in rows if len(row) > 1} >= {row["arm"] for row in report["means"]}


def test_every_goal_is_told_with_its_verdict(module: Any, report: dict[str, Any]) -> None:
    goals = [line for line in lines_of(module.page(report), "Goals") if line.startswith("- **")]
    assert len(goals) == len(report["goals"])


def test_a_baseline_that_is_surely_ahead_is_named_with_deadline_and_points(
    module: Any, report: dict[str, Any]
) -> None:
    row = reading.head_to_head(report)[0]
    row["in_time_accuracy"] = {"mean": -0.2, "low": -0.25, "high": -0.15}
    losses = lines_of(module.page(report), "Where opa_split loses")
    own = next(line for line in losses if line.startswith(f"- {row['other']}:"))
    told = f"{row['load']} applications, {row['deadline_ms']:.2f} ms: −20.0 [−25.0, −15.0]"
    assert told in own


def test_what_people_read_out_of_it_stands_on_top(module: Any, report: dict[str, Any]) -> None:
    report["reading"] = "It wins where it is slow.\n"
    page = module.page(report)
    assert page.index("It wins where it is slow.") < page.index("## Goals")
