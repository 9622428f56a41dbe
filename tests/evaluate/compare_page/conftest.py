"""A small comparison's report, made by rule, and its page."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from opa_trt.evaluate.compare_page import write_page

Report = dict[str, Any]
KINDS = {
    "opa_split": "ours",
    "opa": "ours",
    "dynamic_ofa": "baseline",
    "static_best": "baseline",
    "oracle": "reference",
}
LEVEL = {"opa_split": 0.9, "opa": 0.85, "dynamic_ofa": 0.8, "static_best": 0.88, "oracle": 0.95}
DEADLINES = {0: (4.0, 8.0, 12.0), 2: (8.0, 16.0, 24.0)}
AHEAD = {(0, "dynamic_ofa"): 0.1, (0, "static_best"): 0.02, (2, "static_best"): -0.031}
GROUPS = 6


def interval(mean: float, half: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def rate(arm: str, place: int) -> dict[str, Any]:
    mean = LEVEL[arm] - 0.05 * (2 - place)
    return {"accuracy": interval(mean), "in_time_accuracy": interval(mean - 0.01)}


def where(load: int | None, ms: float | None, judged: bool = True) -> dict[str, Any]:
    return {"load": load, "deadline_ms": ms, "judged": judged}


def result(load: int, place: int, arm: str) -> dict[str, Any]:
    ms = DEADLINES[load][place]
    return {
        **where(load, ms, place > 0), "arm": arm, "groups": GROUPS, **rate(arm, place),
        "deadlines_met": interval(0.99, 0.005), "mean_ms": 0.9 * ms, "p50_ms": 0.85 * ms,
        "p99_ms": 1.1 * ms, "nodes": {"pioneer": 0.25, "tail1": 0.75},
    }  # fmt: skip


def difference(load: int | None, ms: float | None, ours: str, other: str) -> dict[str, Any]:
    mean = AHEAD.get((load or 0, other), 0.0)
    ends = ("0", "0.05", "0.25", "0.5", "0.75", "0.95", "1")
    return {
        **where(load, ms), "ours": ours, "other": other, "accuracy": interval(mean),
        "in_time_accuracy": interval(mean), "better": 0.5, "equal": 0.3, "worse": 0.2,
        "quantiles": {end: mean + 0.1 * (float(end) - 0.5) for end in ends},
        "histogram": {"edges": [-0.1, 0.0, 0.1], "counts": [2, 4]},
    }  # fmt: skip


def violation(load: int, place: int, arm: str) -> dict[str, Any]:
    missed = 2 if arm == "dynamic_ofa" else 0
    return {
        **where(load, DEADLINES[load][place], place > 0), "arm": arm, "groups": GROUPS,
        "missed": missed, "missed_share": interval(missed / GROUPS), "longest_run": missed,
        "worst_ms": 1.25 * bool(missed), "mean_excess_ms": 0.5 if missed else None,
    }  # fmt: skip


def load_row(load: int) -> dict[str, Any]:
    tight, low, high = DEADLINES[load]
    return {
        "load": load, "pioneer_p99_ms": low / 1.2, "largest_median_ms": high / 1.2,
        "fastest_median_ms": 3.0, "low_ms": low, "high_ms": high, "slowdown": 1.0 + load / 2,
        "routes": [{"node": "tail1", "median_ms": 5.0, "p99_ms": 6.0, "fit_accuracy": 0.8}],
        "deadlines": [
            {"deadline_ms": ms, "judged": ms > tight, "static_best": "tail1", "fits": 1}
            for ms in DEADLINES[load]
        ],
    }  # fmt: skip


def timeline(load: int) -> dict[str, Any]:
    each = {"accuracy": [0.9] * GROUPS, "in_time": [True] * (GROUPS - 1) + [False],
            "ms": [6.0] * GROUPS, "node": ["tail1"] * GROUPS}  # fmt: skip
    return {
        "load": load, "deadline_ms": DEADLINES[load][1],
        "families": ["clean", "clean", *["low_light"] * (GROUPS - 2)],
        "severities": [0, 0, *[2] * (GROUPS - 2)], "arms": dict.fromkeys(KINDS, each),
    }  # fmt: skip


def goal(name: str, met: bool | None, value: float | None, unit: str) -> dict[str, Any]:
    part = {"label": "load 0", "met": met, "value": value, "interval": None}
    return {
        "name": name, "text": f"the text of {name}", "met": met, "value": value, "unit": unit,
        "threshold": 0.6, "interval": None if value is None else [value - 0.01, value + 0.01],
        "parts": [part], "note": "a note",
    }  # fmt: skip


def whole() -> Report:
    cells = [(load, place, arm) for load in DEADLINES for place in range(3) for arm in KINDS]
    pairs = [(ours, other) for ours in ("opa_split", "opa") for other in KINDS if ours != other]
    spots = [(load, ms) for load in DEADLINES for ms in (*DEADLINES[load][1:], None)]
    node = {"name": "tail1", "system": "opa", "resolution": 32, "macs": 1_500_000,
            "fit_accuracy": 0.8, "test_accuracy": 0.79, "ms": 5.0}  # fmt: skip
    return {
        "schema": 1, "partial": False, "replay": None, "seconds": 61.0, "seed": 0,
        "bundle": {"path": "a/digits.opa", "name": "digits", "digest": "ab" * 32,
                   "backend": "null", "threads": 1, "max_batch": 8, "classes": 5, "nodes": [node]},
        "machine": {"processor": "A Processor", "cores": 2, "gpu": "", "system": "Linux x86_64",
                    "python": "3.12.3", "torch": "2.11", "opa_trt": "0.1.0",
                    "versions": {"null": "1"}},
        "settings": {"groups": GROUPS, "group_size": 100, "warm_up": 1, "trials": 9,
                     "loads": [0, 2], "group_sizes": [1, 100], "deadlines": None,
                     "families": ["low_light"], "images": 40, "confidence": 0.95, "draws": 100},
        "split": {"source": "digits", "classes": 5, "trained": {"images": 1000, "digest": "c" * 64},
                  "chosen": {"images": 199}, "fitted": {"images": 198},
                  "tested": {"images": 400, "digest": "d" * 64, "rows": 4000},
                  "overlap": {"trained": 0, "fitted_or_chosen": 0}, "same_data": True,
                  "lines": ["1,000 images trained the networks"]},
        "arms": [{"name": arm, "kind": kind, "policy": arm, "note": f"how {arm} decides"}
                 for arm, kind in KINDS.items()],
        "left_out": {"cascade": "this bundle has no nodes for cascade."},
        "loads": [load_row(load) for load in DEADLINES],
        "results": [result(*cell) for cell in cells],
        "means": [{"load": load, "arm": arm, "groups": GROUPS, **rate(arm, 2), "mean_ms": 7.0,
                   "deadlines_met": interval(0.99, 0.005)}
                  for load in (*DEADLINES, None) for arm in KINDS],
        "differences": [difference(*spot, *pair) for spot in (*spots, (None, None))
                        for pair in pairs],
        "overhead": [{"load": load, "arm": arm, "share": 0.0275, "switches": 0.5,
                      "decision_ms": {"p50": 0.09, "p99": 0.2},
                      "switch_ms": {"p50": 0.11, "p99": 0.3},
                      "engines_ms": {"p50": 7.0, "p99": 8.0}}
                     for load in DEADLINES for arm in KINDS],
        "group_sizes": [{"size": size, "deadline_ms": 1.0 + size / 10, "groups": GROUPS,
                         "arm": arm, **rate(arm, 1), "deadlines_met": interval(0.99, 0.005),
                         "p50_ms": 1.0, "overhead_ms_an_image": 0.0123, "ms_an_image": 0.5,
                         "share": 0.2 / size} for size in (1, 100) for arm in ("opa_split", "opa")],
        "content": {"by_family": [{"load": load, "arm": arm, "family": family,
                                   "severity": severity, "groups": 3, **rate(arm, 2 - severity)}
                                  for load in DEADLINES for arm in KINDS
                                  for family, severity in (("clean", 0), ("low_light", 2))],
                    "timelines": [timeline(load) for load in DEADLINES]},
        "violations": [violation(*cell) for cell in cells],
        "frontier": {"load": 0, "largest": {"median_ms": 10.0, "accuracy": 0.9},
                     "points": [{"deadline_ms": 10 * ratio, "deadline_ratio": ratio, "arm": arm,
                                 "accuracy": interval(0.8), "p50_ms": 9 * ratio,
                                 "latency_ratio": 0.9 * ratio,
                                 "against_largest": interval(ratio - 0.8)}
                                for ratio in (0.5, 0.8) for arm in ("opa_split", "opa")]},
        "goals": [goal("ahead", True, 0.021, "points"), goal("deadlines", False, 0.953, "share"),
                  goal("latency", None, None, "ratio")],
    }  # fmt: skip


def bare(report: Report) -> Report:
    """The report of a run of which nothing was finished but its start."""
    found = copy.deepcopy(report)
    for key in ("loads", "results", "means", "differences", "overhead", "group_sizes",
                "violations", "goals"):  # fmt: skip
        found[key] = []
    found["content"] = {"by_family": [], "timelines": []}
    return found | {"frontier": None, "partial": True}


@pytest.fixture
def report() -> Report:
    """Anew for each test."""
    return whole()


@pytest.fixture
def nothing(report: Report) -> Report:
    """Every list empty."""
    return bare(report)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole report's page: drawn once."""
    folder = tmp_path_factory.mktemp("page")
    write_page(whole(), folder)
    return folder
