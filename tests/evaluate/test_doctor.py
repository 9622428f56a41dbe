"""Whether adapting pays: measured on a virtual clock, judged by rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opa_trt.backends.null import NullBackend
from opa_trt.bundle import Bundle
from opa_trt.clock import VirtualClock
from opa_trt.errors import BackendUnavailable
from opa_trt.evaluate import doctor
from opa_trt.evaluate.bench_rows import Ratio, Row
from opa_trt.evaluate.doctor import Diagnosis, Spread, diagnose, gains, judge
from opa_trt.evaluate.engine_set import Setting, loaded
from opa_trt.evaluate.handoff import Handoff, example_routes, measure_handoff
from opa_trt.evaluate.monoliths import joined_segments
from opa_trt.evaluate.outlook import Point
from opa_trt.runtime import open_loader
from opa_trt.runtime.session import read_knowledge

MS = {"pioneer": 1.0, "tiny": 1.0, "small": 2.0, "medium": 4.0, "large": 8.0}
ACCURACY = {"tiny": 0.5, "small": 0.6, "medium": 0.7, "large": 0.9}
CUT_MS = 0.25  # what one engine saves


def latency(name: str, batch: int) -> float:
    """In proportion to the batch; a network in one piece takes a little less than its parts."""
    parts = name.split("+")
    return batch * (sum(MS[part] for part in parts) - CUT_MS * (len(parts) - 1))


def shares() -> dict[str, list[float]]:
    """Half of the images gain by any tail, all that there is to gain."""
    return {name: [0.4, right, right] for name, right in ACCURACY.items()}


@pytest.fixture
def setting(toy: Any, tmp_path: Path) -> Callable[..., Setting]:
    def make(report: Any = None, told: Any = latency) -> Setting:
        path = toy.pack(tmp_path / f"toy{len([*tmp_path.iterdir()])}.opa", report=report or {})
        clock = VirtualClock()
        loader = open_loader(path, backend=NullBackend(clock, told), threads=1, clock=clock)
        return Setting("null", loader)

    return make


def report() -> dict[str, Any]:
    return {"fit": {"rightness": {"shares": shares(), "gain": 0.012}}}


def found(setting: Setting, batches: tuple[int, ...] = (1, 8)) -> Diagnosis:
    knowledge = read_knowledge(setting.loader.bundle)
    return diagnose(setting, knowledge, batches, seconds=0.001)


# --- what is measured ---------------------------------------------------------------------------


def test_examples_are_the_smallest_the_middle_and_the_largest_route(toy_bundle: Path) -> None:
    assert [route.last for route in example_routes(Bundle(toy_bundle).tree)] == [
        "tiny", "medium", "large",
    ]  # fmt: skip


def test_a_group_is_compared_with_the_same_network_in_one_piece(setting: Any) -> None:
    handoffs = {
        (each.ratio.route.nodes[-1], each.ratio.route.batch): each
        for each in found(setting(report())).handoffs
    }
    assert handoffs.keys() == {(n, b) for n in ("tiny", "medium", "large") for b in (1, 8)}
    for (tail, batch), each in handoffs.items():
        parts = MS["pioneer"] + MS[tail]
        assert each.whole_ms == pytest.approx(batch * (parts - CUT_MS))
        assert each.ratio.ratio == pytest.approx(parts / (parts - CUT_MS))
        assert each.beside_ms == pytest.approx(0)


def test_the_session_takes_what_the_runtime_takes_besides(setting: Any) -> None:
    """A clock that is read costs time here, as deciding does elsewhere."""
    made = setting(report())
    now = made.loader.clock.now_ms

    def reading() -> float:
        made.loader.clock.advance(0.125)
        return float(now())

    made.loader.clock.now_ms = reading
    joined = joined_segments(made.loader.bundle, [made.loader.plan])
    with loaded(made, joined) as engines:
        profiles = made.loader.profiles(engines.engines)
        knowledge = read_knowledge(made.loader.bundle)
        handoffs = measure_handoff(engines, profiles, knowledge, [8], seconds=0.001)
    assert len(handoffs) == len(joined)
    assert all(each.beside_ms >= 0.25 for each in handoffs)


def test_the_spread_is_from_the_fastest_to_the_largest_route(setting: Any) -> None:
    (spread,) = found(setting(report()), (8,)).spreads
    assert (spread.fastest, spread.fastest_accuracy) == ("tiny", 0.5)
    assert (spread.largest, spread.largest_accuracy) == ("large", 0.9)
    assert spread.ratio == pytest.approx(9 / 2)


def test_what_may_be_expected_follows_from_the_report(setting: Any) -> None:
    diagnosis = found(setting(report()), (8,))
    assert diagnosis.equal_macs == 0.012
    assert [point.static for point in diagnosis.points] == [
        "pioneer", "small", "medium", "medium", "large",
    ]  # fmt: skip
    # A part of 4 images, half of the group, takes half the time of a tail and gains all there is.
    assert [point.tail for point in diagnosis.points] == ["", "medium", "large", "large", "large"]
    assert diagnosis.worth is True
    assert diagnosis.verdict.startswith("Worth it here for groups of 8: up to +")


def test_without_a_report_the_verdict_is_open(setting: Any) -> None:
    diagnosis = found(setting(), (8,))
    assert diagnosis.points == []
    assert diagnosis.worth is None
    assert diagnosis.verdict.startswith("Not known: ")
    assert diagnosis.handoffs


def test_where_no_route_can_be_joined_the_reason_is_told(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        message = "onnx is not installed."
        raise BackendUnavailable(message)

    monkeypatch.setattr(doctor, "joined_segments", refuse)
    diagnosis = found(setting(report()), (8,))
    assert diagnosis.handoffs == []
    assert "onnx is not installed" in diagnosis.no_handoff
    assert diagnosis.worth is True


def test_all_of_it_is_plain_values(setting: Any) -> None:
    facts = found(setting(report())).to_dict()
    assert facts["threads"] == 1
    assert facts["engines"] == 5
    assert facts["monoliths"] == 3
    assert {row["batch"] for row in facts["deadlines"]} == {1, 8}
    assert facts["gain_by_batch"].keys() == facts["gain_over_range"].keys() == {"1", "8"}
    assert facts["handoff"][0]["pairs"] >= 5


# --- how it is judged ---------------------------------------------------------------------------


def point(batch: int, gain: float) -> Point:
    return Point(batch, 10.0, "small", 0.6, 0.6 + gain, "large", 0.5)


def spread(batch: int, ratio: float = 4.0) -> Spread:
    return Spread(batch, "tiny", 1.0, 0.5, "large", ratio, 0.9)


def handoff(batch: int, ratio: float) -> Handoff:
    row = Row("route", ("pioneer", "tiny"), "null", "null", 1, batch, (ratio,))
    return Handoff(Ratio(row, ratio, ratio, ratio), 1.0, 0.1)


def test_gains_are_means_by_group_size() -> None:
    found = gains([point(1, 0.0), point(1, 0.02), point(8, 0.03)])
    assert found == {1: pytest.approx(0.01), 8: pytest.approx(0.03)}


def test_it_is_worth_it_where_the_gain_is() -> None:
    worth, text = judge([], [], [point(1, 0.001), point(32, 0.02), point(100, 0.031)])
    assert worth is True
    assert text == (
        "Worth it here for groups of 32 and 100: up to +3.1 points expected over the best static "
        "route of the same deadline; not for single images."
    )


def test_sizes_are_named_as_people_do() -> None:
    worth, text = judge([], [], [point(1, 0.0), point(8, 0.0), point(32, 0.0), point(100, 0.01)])
    assert worth is True
    assert text.endswith("; not for single images and groups of 8 and 32.")


def test_it_is_not_worth_it_where_there_is_none_and_the_reasons_are_told() -> None:
    points = [point(1, -0.02), point(8, 0.004)]
    worth, text = judge([spread(1, 1.1), spread(8)], [handoff(1, 2.0), handoff(8, 1.1)], points)
    assert worth is False
    assert text == (
        "Not worth it here: at best +0.4 points expected over the best static route (groups of "
        "8); routes hardly differ in latency for single images, and deciding and handing on cost "
        "more than 15 % for single images."
    )
