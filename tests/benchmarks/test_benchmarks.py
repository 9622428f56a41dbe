"""What benchmarks compute from what they measured; their measurements are not tests."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import opa_trt
from opa_trt.builder.study import StudyPlan
from opa_trt.search.answers import Answer
from opa_trt.supernet import MobileNetV3Space

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a benchmark by name, as its own folder sees it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trials keep the tiny network, so that it is made once."""
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture
def trial(
    script: Any, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Runs a benchmark's ``--quick`` trial: its report, and its page."""

    def run(name: str, *arguments: str, folder: bool = True) -> tuple[dict[str, Any], str]:
        out = kept / f"{name}.md"
        given = ["--quick", "--json", "--out", str(out), "--threads", "1", *arguments]
        given += ["--folder", str(kept)] if folder else []
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *given])
        script(name).main()
        return json.loads(capsys.readouterr().out), out.read_text(encoding="utf-8")

    return run


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


# --- latencies in turns -----------------------------------------------------------------------


def test_a_ratio_of_medians_ignores_delayed_runs(script: Any) -> None:
    pairs = [(2.2, 2.0)] * 30 + [(90.0, 2.0)] * 3
    middle, low, high = script("alternating").ratio(pairs)
    assert low == middle == high == pytest.approx(1.1)


def test_what_comes_on_top_is_the_median_of_differences(script: Any) -> None:
    pairs = [(1.0 + i, 0.5 + i) for i in range(20)]
    assert script("alternating").extra(pairs) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.0, 1.05, True), (1.06, 1.2, False), (1.0, 1.1, None)]
)
def test_a_limit_is_kept_broken_or_not_resolved(
    script: Any, low: float, high: float, verdict: bool | None
) -> None:
    assert script("alternating").at_most(low, high, 1.05) is verdict


@pytest.mark.parametrize(
    ("verdicts", "all_met"),
    [([True, True], True), ([True, None], None), ([None, False], False), ([], None)],
)
def test_one_goal_missed_is_all_missed(
    script: Any, verdicts: list[bool | None], all_met: bool | None
) -> None:
    assert script("alternating").all_met(verdicts) is all_met


def test_turns_are_taken_a_b_b_a_after_one_uncounted_run_each(script: Any) -> None:
    order: list[str] = []

    def arm(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or 1.0

    found = script("alternating").alternate(arm("a"), arm("b"), 0.0, fewest=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert len(found) == 3


# --- the network that is measured -------------------------------------------------------------


def test_the_network_is_made_once(script: Any, kept: Path) -> None:
    made = script("ofa_network")
    first = made.network(kept, made.tiny())
    written = (first.path / "manifest.json").stat().st_mtime_ns
    again = made.network(kept, made.tiny())
    assert (again.path / "manifest.json").stat().st_mtime_ns == written


def test_a_monolith_of_the_network_gives_the_route_s_logits(script: Any, kept: Path) -> None:
    made, handoff = script("ofa_network"), script("handoff")
    net = made.network(kept, made.tiny())
    images = net.design.images(3)
    whole = handoff.whole_engine(net, "torchscript", "tail2", 1)
    with opa_trt.load(net.path, backend="torchscript", threads=1) as session:
        session.use("static:tail2")
        logits = session.infer(images, 1e9).logits
    np.testing.assert_allclose(whole.run({"images": images})["logits"], logits, atol=1e-4)
    assert [spec.name for spec in whole.segment.outputs] == ["logits"]


def test_tails_go_from_the_smallest_to_the_largest(script: Any) -> None:
    made = script("ofa_network")
    design = made.Design(96, 4, (1,), tails=5)
    space, parts = design.space, made.Parts(design)
    macs = [space.macs(arch) for arch in parts.archs]
    ends = [
        space.macs(space.graft(parts.pioneer_arch, end, made.STAGES))
        for end in (space.smallest(96), space.largest(96))
    ]
    assert macs == sorted(macs)
    assert [macs[0], macs[-1]] == ends
    assert len(set(macs)) == 5


def test_a_steered_session_decides_and_then_runs_the_tail_it_is_told(
    script: Any, toy_bundle: Path
) -> None:
    with opa_trt.load(toy_bundle, backend="torchscript", threads=1) as session:
        policy = script("steering").steer(session)
        images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        for tail in ("tiny", "large", "small"):
            policy.tail = tail
            result = session.infer(images, 1e9)
            assert set(result.nodes) == {tail}
            assert result.decision.reason.startswith("large is the best")  # opa's own answer


# --- trials -------------------------------------------------------------------------------------


def test_a_trial_of_handoff(trial: Any) -> None:
    report, page = trial("handoff", "--backends", "torchscript")
    cells = {(row["backend"], row["batch"], row["tail"]) for row in report["rows"]}
    assert cells == {("torchscript", n, tail) for n in (1, 4) for tail in ("tail1", "tail2")}
    assert report["met"] is None
    assert page.startswith("A trial on a tiny network")
    assert page.count("| torchscript |") == 4


def test_a_trial_of_switch(trial: Any) -> None:
    report, page = trial("switch", "--backends", "torchscript")
    assert [(row["from"], row["to"]) for row in report["rows"]] == [
        ("tail1", "tail2"),
        ("tail2", "tail1"),
    ]
    assert page.count("| torchscript |") == 2


def test_a_trial_of_backends(trial: Any) -> None:
    report, page = trial("backends", "--peers", "torchscript")
    cells = [(row["network"], row["batch"]) for row in report["rows"]]
    assert cells == [("smallest", 1), ("smallest", 4), ("largest", 1), ("largest", 4)]
    assert {row["fastest"] for row in report["rows"]} == {"torchscript"}
    assert "| smallest | 1, 32 |" in page


def test_a_trial_of_load(trial: Any) -> None:
    report, page = trial("load", "--backends", "torchscript")
    (row,) = report["rows"]
    assert (row["backend"], row["tails"], row["repeats"]) == ("torchscript", 1, 1)
    assert "| torchscript | 1 |" in page


def test_a_trial_of_decision(trial: Any) -> None:
    report, page = trial("decision", folder=False)
    rows = [(row["policy"], row["from"]) for row in report["rows"]]
    assert rows == [*itertools.product(("opa", "opa_split"), ("raw logits", "evidence"))]
    assert set(report["parts_ms"]) == {"opa", "opa_split"}
    assert "| opa_split | evidence | 80 |" in page


def test_a_trial_of_online(trial: Any) -> None:
    report, page = trial("online")
    assert [row["deadline"] for row in report["rows"]] == sorted(
        row["deadline"] for row in report["rows"]
    )
    assert [row["tails"] for row in report["rows"]] == [1, 1, 1, 1, 1, 2]
    assert report["met"] is None
    assert page.count("exact argmax over 32 tails") == 1


def test_a_trial_of_pioneers(trial: Any, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    plan = StudyPlan(counts=(1, 1), deep=2, groups=20, rounds=1)
    monkeypatch.setattr(script("pioneers"), "QUICK", plan)
    report, page = trial("pioneers", "digits", folder=False)
    assert [one["stages"] for one in report["candidates"]] == [1, 2, 2]  # with the recipe's
    rows = [line for line in page.splitlines() if ", kernel " in line]
    assert len(rows) == 3
    assert sum("taken" in row for row in rows) == sum("the recipe's" in row for row in rows) == 1
    assert f"| {report['deep'][0]['arch']} |" in page
    (own,) = [row for row in rows if "the recipe's" in row]
    assert own.startswith(f"| {report['own']} |")
    assert report["own"] in report["names"]


def test_a_page_of_pioneers_tells_the_ends_of_each_number_of_stages(script: Any) -> None:
    rows = [
        {"stages": 1, "ms": 2.0, "accuracy": 0.5, "r2": 0.2, "low": 0.1, "high": 0.3},
        {"stages": 1, "ms": 1.0, "accuracy": 0.25, "r2": -0.04, "low": -0.2, "high": 0.1},
        {"stages": 2, "ms": 4.0, "accuracy": 0.75, "r2": 0.5, "low": 0.4, "high": 0.6},
    ]
    lines = script("pioneers")._by_stages({"candidates": rows}).splitlines()[2:]
    assert lines[0] == (
        "| 1 | 2 | 1.00 to 2.00 | 25.0 % to 50.0 % | −0.04 to 0.20 | 0.20 [0.10, 0.30] | 2.00 |"
    )
    assert lines[1].startswith("| 2 | 1 | 4.00 | 75.0 % | 0.50 | ")


def test_handoff_judges_openvino_and_torchscript_where_there_is_a_goal(script: Any) -> None:
    rows = [
        {"judged": True, "met": True},
        {"judged": False, "met": None},
        {"judged": False, "met": False},
    ]
    assert script("handoff").summary(rows)["met"] is True


def test_peers_far_behind_are_timed_once(script: Any) -> None:
    module = script("backends")
    trial = {"auto": 1.0, "openvino": 1.1, "torchscript": 9.0}
    found = {"auto": [1.0] * 6, "openvino": [1.25] * 6}
    figures = module.figures(trial, found)
    assert figures["fastest"] == "openvino"
    assert figures["ratio"] == pytest.approx(0.8)
    assert figures["trial_ms"] == {"torchscript": 9.0}
    assert figures["met"] is True


def test_bundles_of_fewer_tails_keep_both_ends(script: Any) -> None:
    spread = script("load").spread
    names = tuple("abcdefghijkl")
    assert spread(names, 1) == ("l",)
    assert spread(names, 4) == ("a", "e", "h", "l")
    assert spread(names, 12) == names
