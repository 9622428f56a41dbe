"""What is computed from the groups."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pytest

from opa_trt.evaluate.compare import Comparison, Settings
from opa_trt.evaluate.compare.cells import STREAM
from opa_trt.evaluate.compare.deadlines import FRONTIER as FRACTIONS
from opa_trt.evaluate.compare.folder import groups_csv, plain

TOP = {
    "schema", "partial", "replay", "seconds", "seed", "bundle", "machine", "settings", "split",
    "arms", "left_out", "loads", "results", "means", "differences", "overhead", "group_sizes",
    "content", "violations", "frontier", "goals",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(compared: Comparison) -> dict[str, Any]:
    """As JSON gives it back."""
    return dict(json.loads(json.dumps(plain(compared.report))))


@pytest.fixture(scope="module")
def rows(compared: Comparison) -> list[dict[str, str]]:
    """Of the CSV."""
    return list(csv.DictReader(io.StringIO(groups_csv(compared.findings))))


def stream(rows: list[dict[str, str]], load: int, deadline: float, arm: str) -> list[Any]:
    wanted = ("stream", str(load), arm)
    return [
        row
        for row in rows
        if (row["phase"], row["load"], row["arm"]) == wanted
        and float(row["deadline_ms"]) == pytest.approx(deadline, abs=1e-5)
    ]


def column(rows: list[dict[str, str]], name: str) -> Any:
    return np.array([float(row[name]) for row in rows])


def test_it_has_all_that_the_schema_names(report: dict[str, Any]) -> None:
    assert report.keys() == TOP
    assert report["schema"] == 1
    assert set(report["frontier"]) == {"load", "largest", "points"}
    assert set(report["content"]) == {"by_family", "timelines"}


def test_a_row_for_each_load_deadline_and_arm(report: dict[str, Any]) -> None:
    keys = {(r["load"], r["deadline_ms"], r["arm"]) for r in report["results"]}
    assert len(keys) == len(report["results"]) == 2 * 5 * 10
    assert len(report["violations"]) == 100


def test_results_are_means_over_the_groups(report: dict[str, Any], rows: Any) -> None:
    for row in report["results"]:
        own = stream(rows, row["load"], row["deadline_ms"], row["arm"])
        assert len(own) == row["groups"] == 12
        for name in ("accuracy", "in_time_accuracy"):
            assert row[name]["mean"] == pytest.approx(column(own, name).mean(), abs=1e-5)
            assert row[name]["low"] <= row[name]["mean"] <= row[name]["high"]
        assert row["deadlines_met"]["mean"] == pytest.approx(column(own, "in_time").mean())
        assert row["p50_ms"] == pytest.approx(np.median(column(own, "ms")), abs=1e-5)
        assert sum(row["nodes"].values()) == pytest.approx(1)


def test_an_answer_after_its_deadline_counts_as_wrong(rows: Any) -> None:
    late = [row for row in rows if row["in_time"] == "0"]
    assert late
    for row in late:
        assert float(row["ms"]) > float(row["deadline_ms"])
        assert float(row["in_time_accuracy"]) == 0


def test_means_are_over_judged_deadlines_alone(report: dict[str, Any]) -> None:
    for load in (0, 1):
        judged = [r for r in report["results"] if r["load"] == load and r["judged"]]
        for arm in ("opa", "dynamic_ofa"):
            own = [r["in_time_accuracy"]["mean"] for r in judged if r["arm"] == arm]
            (mean,) = [r for r in report["means"] if (r["load"], r["arm"]) == (load, arm)]
            assert len(own) == 3
            assert mean["in_time_accuracy"]["mean"] == pytest.approx(np.mean(own))
            assert mean["groups"] == 3 * 12
    assert sum(row["load"] is None for row in report["means"]) == 10


def test_gains_over_several_deadlines_are_of_single_answers(
    report: dict[str, Any], rows: Any
) -> None:
    judged = [r for r in report["differences"] if r["judged"] and r["load"] == 0]
    for found in (r for r in judged if r["deadline_ms"] is None):
        single = [
            column(stream(rows, 0, each["deadline_ms"], each["ours"]), "in_time_accuracy")
            - column(stream(rows, 0, each["deadline_ms"], each["other"]), "in_time_accuracy")
            for each in judged
            if each["deadline_ms"] is not None
            and (each["ours"], each["other"]) == (found["ours"], found["other"])
        ]
        assert len(single) == 3
        assert sum(found["histogram"]["counts"]) == 3 * 12
        assert found["quantiles"]["1"] == pytest.approx(np.max(single), abs=1e-5)
        assert found["in_time_accuracy"]["mean"] == pytest.approx(np.mean(single), abs=1e-5)


def test_what_a_node_gets_right_is_that_of_the_stream(
    compared: Comparison, report: dict[str, Any]
) -> None:
    draws = [draw for cell in compared.findings.of(STREAM) for draw in cell.draws]
    shown = np.unique(np.concatenate([draw.rows for draw in draws]))
    cell = compared.findings.of(STREAM)[0]
    place = compared.findings.nodes.index("large")
    known = {
        int(row): bool(right)
        for draw, taken in zip(cell.draws, cell.taken["static_largest"], strict=True)
        for row, right in zip(draw.rows, taken.right, strict=True)
        if (taken.node == place).all()
    }
    assert set(known) == set(shown.tolist())
    (node,) = [row for row in report["bundle"]["nodes"] if row["name"] == "large"]
    assert node["test_accuracy"] == pytest.approx(np.mean([*known.values()]))


def test_differences_are_ours_less_the_other(report: dict[str, Any], rows: Any) -> None:
    for found in report["differences"]:
        if found["deadline_ms"] is None:
            continue
        ours, other = (
            stream(rows, found["load"], found["deadline_ms"], found[name])
            for name in ("ours", "other")
        )
        gain = column(ours, "in_time_accuracy") - column(other, "in_time_accuracy")
        assert found["in_time_accuracy"]["mean"] == pytest.approx(gain.mean(), abs=1e-5)
        assert found["better"] == pytest.approx((gain > 1e-6).mean())
        assert found["better"] + found["equal"] + found["worse"] == pytest.approx(1)
        assert found["quantiles"]["0"] == pytest.approx(gain.min(), abs=1e-5)
        assert sum(found["histogram"]["counts"]) == len(gain)
        edges = found["histogram"]["edges"]
        assert len(edges) == len(found["histogram"]["counts"]) + 1
        assert edges[0] == -edges[-1]


def test_both_of_ours_are_compared_with_all_others(report: dict[str, Any]) -> None:
    pairs = {(d["ours"], d["other"]) for d in report["differences"]}
    assert len(pairs) == 2 * 9
    together = [d for d in report["differences"] if d["deadline_ms"] is None]
    assert [d["load"] for d in together if (d["ours"], d["other"]) == ("opa", "random")] == [
        0, 1, None,
    ]  # fmt: skip


def test_overhead_is_none_where_only_engines_take_time(report: dict[str, Any]) -> None:
    for row in report["overhead"]:
        assert row["decision_ms"]["p50"] == 0
        assert row["switch_ms"]["p99"] == pytest.approx(0, abs=1e-6)
        assert row["engines_ms"]["p50"] > 0
        assert row["share"] == pytest.approx(0, abs=1e-6)
    switches = {row["arm"]: row["switches"] for row in report["overhead"]}
    assert switches["static_largest"] == 0
    assert switches["random"] > 0


def test_load_slows_the_largest_route(report: dict[str, Any]) -> None:
    unloaded, loaded = report["loads"]
    assert unloaded["slowdown"] == 1
    assert loaded["slowdown"] == pytest.approx(1.5, rel=0.05)
    assert unloaded["low_ms"] == pytest.approx(1.2 * unloaded["pioneer_p99_ms"])
    assert unloaded["high_ms"] == pytest.approx(1.2 * unloaded["largest_median_ms"])
    assert {route["node"] for route in loaded["routes"]} == {
        "pioneer", "tiny", "small", "medium", "large", "whole",
    }  # fmt: skip


def test_violations_say_how_many_and_by_how_much(report: dict[str, Any], rows: Any) -> None:
    for found in report["violations"]:
        own = stream(rows, found["load"], found["deadline_ms"], found["arm"])
        excess = column(own, "ms") - found["deadline_ms"]
        assert found["missed"] == (excess > 0).sum()
        assert found["worst_ms"] == pytest.approx(max(0, excess.max()), abs=1e-5)
        assert found["longest_run"] <= found["missed"]
        assert (found["mean_excess_ms"] is None) == (found["missed"] == 0)
    always = [f for f in report["violations"] if f["missed"] == f["groups"]]
    assert always
    assert {f["longest_run"] for f in always} == {12}


def test_content_is_told_by_condition_and_over_time(
    report: dict[str, Any], settings: Settings
) -> None:
    content = report["content"]
    conditions = {(row["family"], row["severity"]) for row in content["by_family"]}
    assert conditions == {("clean", 0), ("noise", 1), ("noise", 2), ("noise", 3)}
    groups = sum(
        row["groups"] for row in content["by_family"] if (row["load"], row["arm"]) == (0, "opa")
    )
    assert groups == 3 * settings.groups
    for timeline, load in zip(content["timelines"], report["loads"], strict=True):
        judged = [d["deadline_ms"] for d in load["deadlines"] if d["judged"]]
        assert timeline["deadline_ms"] == judged[1]
        assert len(timeline["families"]) == settings.groups
        assert all(len(arm["ms"]) == settings.groups for arm in timeline["arms"].values())


def test_sizes_are_compared_an_image(report: dict[str, Any]) -> None:
    found = {(row["size"], row["arm"]): row for row in report["group_sizes"]}
    assert {size for size, _ in found} == {1, 4}
    assert {arm for _, arm in found} == {"opa_split", "opa", "dynamic_ofa", "static_best"}
    assert found[1, "opa"]["ms_an_image"] > found[4, "opa"]["ms_an_image"]
    assert found[1, "opa"]["groups"] > found[4, "opa"]["groups"]


def test_the_frontier_is_beside_the_largest_route(report: dict[str, Any]) -> None:
    frontier = report["frontier"]
    points = [p for p in frontier["points"] if p["arm"] == "opa_split"]
    assert [p["deadline_ratio"] for p in points] == pytest.approx(FRACTIONS)
    assert FRACTIONS[-1] > 1  # the largest route's median is no deadline that it keeps
    for point in points:
        gap = point["accuracy"]["mean"] - frontier["largest"]["accuracy"]
        assert point["against_largest"]["mean"] == pytest.approx(gap)
        assert point["latency_ratio"] == pytest.approx(
            point["p50_ms"] / frontier["largest"]["median_ms"]
        )


def test_nodes_are_told_with_what_they_answered(report: dict[str, Any]) -> None:
    nodes = {node["name"]: node for node in report["bundle"]["nodes"]}
    assert len(nodes) == 10
    assert nodes["large"]["macs"] == 10 + 80
    assert nodes["large"]["test_accuracy"] > nodes["tiny"]["test_accuracy"]
    assert nodes["large"]["ms"] == pytest.approx(9.0, rel=0.1)
    macs = [node["macs"] for node in report["bundle"]["nodes"]]
    assert macs == sorted(macs)


def test_nothing_is_left_that_json_does_not_know() -> None:
    value = {"a": float("nan"), 1: [float("inf"), (2.0, None)]}
    assert plain(value) == {"a": None, "1": [None, [2.0, None]]}
