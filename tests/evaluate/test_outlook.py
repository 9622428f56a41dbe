"""Expected accuracy by deadline, from shares and profiles that are known exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from opa_trt.evaluate.outlook import DEADLINES, Outlook
from opa_trt.store import LatencyProfile
from opa_trt.tree import FEATURES, IMAGES, LOGITS, WHOLE, Node, Tree

# ms at batches 1 and 100; a batch of 50 takes half way between.
MS = {"pioneer": (1.0, 10.0), "small": (0.5, 5.0), "large": (2.0, 40.0), "whole": (1.5, 13.0)}
SHARES = {"small": [0.5, 0.7, 0.6], "large": [0.5, 0.8, 0.9]}  # at 0, a half, and all of them
BUCKETS = (1, 50, 100)


def tree(*more: Node) -> Tree:
    pioneer = Node("pioneer", "p", IMAGES, (FEATURES, LOGITS), ("small", "large"), accuracy=0.55)
    small = Node("small", "s", FEATURES, (LOGITS,), accuracy=0.65)
    return Tree((pioneer, small, replace(small, name="large", accuracy=0.95), *more))


WHOLE_NODE = Node("whole", "w", IMAGES, (LOGITS,), accuracy=0.85, system=WHOLE)


def profiles() -> dict[str, LatencyProfile]:
    def row(ms: float) -> tuple[float, ...]:
        return (ms, ms, ms)

    return {
        name: LatencyProfile(BUCKETS, (row(one), row((one + many) / 2), row(many)), (9, 9, 9))
        for name, (one, many) in MS.items()
    }


def outlook(
    *more: Node, shares: Any = SHARES, beside: float = 0.0, entries: bool = True
) -> Outlook:
    rightness = {"rightness": {"shares": shares}}
    manifest: Any = type("M", (), {})()
    manifest.buckets = BUCKETS
    manifest.report = {"fit": {"entries": {"pioneer": rightness}} if entries else rightness}
    return Outlook(tree(*more), profiles(), manifest, dict.fromkeys(BUCKETS, beside))


def test_deadlines_reach_from_the_pioneers_latency_to_the_largest_routes() -> None:
    points = outlook(beside=5.0).points(100)
    assert len(points) == DEADLINES
    assert points[0].deadline_ms == pytest.approx(1.2 * 15)
    assert points[-1].deadline_ms == pytest.approx(1.2 * 55)


def test_the_best_static_route_is_the_best_that_fits() -> None:
    points = outlook().points(100)
    assert [(p.static, p.static_accuracy) for p in points[:1]] == [("pioneer", 0.5)]
    assert [(p.static, p.static_accuracy) for p in points[-1:]] == [("large", 0.9)]
    fits_small = next(p for p in points if 15 <= p.deadline_ms < 50)
    assert (fits_small.static, fits_small.static_accuracy) == ("small", 0.6)


def test_a_part_goes_where_it_gains_most_in_its_bucket() -> None:
    found = {round(p.deadline_ms): p for p in outlook().points(100)}
    # 24 ms: 14 after the pioneer, where 50 by small (2.75 ms) fit, and half of large (21) does not.
    assert (found[24].tail, found[24].sent, found[24].accuracy) == ("small", 0.5, 0.7)
    # 36 ms: 26 after the pioneer, in which half of the images go to large.
    assert (found[36].tail, found[36].sent, found[36].accuracy) == ("large", 0.5, 0.8)
    assert (found[60].tail, found[60].sent, found[60].accuracy) == ("large", 1.0, 0.9)
    assert found[36].gain == pytest.approx(0.2)


def test_images_that_lose_by_it_are_not_sent_though_there_is_time() -> None:
    points = outlook(shares={"small": [0.5, 0.7, 0.6]}).points(100)
    assert {point.accuracy for point in points[1:]} == {0.7}
    assert {point.sent for point in points[1:]} == {0.5}


def test_what_the_runtime_takes_comes_off_the_time() -> None:
    def sent(beside: float) -> float:
        made = outlook(beside=beside)
        return made._point(100, 32.0).sent if made.known else -1.0

    assert sent(0.0) == 0.5  # to large: 10 + 21 ms
    assert outlook(beside=2.0)._point(100, 32.0).tail == "small"


def test_a_whole_network_counts_as_a_static_route() -> None:
    # The others were 0.05 better on the fitting images than on those held out.
    point = outlook(WHOLE_NODE)._point(100, 14.0)
    assert point.static == "whole"
    assert point.static_accuracy == pytest.approx(0.85 - 0.05)
    assert point.gain < 0


def test_over_a_range_one_static_route_has_to_meet_the_tightest() -> None:
    made = outlook()
    points = made.points(100)
    mean = sum(p.accuracy for p in points) / len(points)
    assert made.tightest(points) == pytest.approx(mean - 0.5)


def test_a_report_without_entries_of_their_own_is_read_too() -> None:
    assert outlook(entries=False).points(100) == outlook().points(100)


@pytest.mark.parametrize("shares", [{}, {"small": 0.5}, {"small": [0.5]}])
def test_without_shares_nothing_is_known(shares: Any) -> None:
    made = outlook(shares=shares)
    assert not made.known
    assert made.points(100) == []
