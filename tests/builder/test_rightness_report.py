"""What the held-out figures of rightness say, on records whose truth is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from opa_trt.builder.fit import Records
from opa_trt.builder.rightness_report import calibration_error, report_rightness
from opa_trt.policies import Rightness
from opa_trt.policies.evidence import READINGS

NODES = ("pioneer", "small", "large")
MACS = {"small": 10, "large": 20}
COUNT = 100
EASY = np.arange(COUNT) < 50  # the first half


def logits() -> npt.NDArray[np.float32]:
    """Of 40 classes (none is named): easy images are sure, the others are not."""
    made = np.zeros((COUNT, 40), dtype=np.float32)
    made[EASY, 0] = 30
    return made


def records(pioneer: object, small: object, large: object) -> Records:
    right = [np.broadcast_to(np.asarray(r, dtype=bool), COUNT) for r in (pioneer, small, large)]
    return Records(logits(), dict(zip(NODES, right, strict=True)), np.zeros(COUNT, dtype=np.int64))


def model(easy: list[float], hard: list[float]) -> Rightness:
    """One that believes this of sure images and of unsure ones, node by node."""
    odds = [np.log(np.array(p) / (1 - np.array(p))) for p in (easy, hard)]
    weight = np.zeros((len(READINGS), len(NODES)), dtype=np.float32)
    slope = (odds[0] - odds[1]) / (1 - 1 / 40)  # confidences are 1 and 1/40
    weight[READINGS.index("confidence")] = slope
    return Rightness(NODES, weight, (odds[1] - slope / 40).astype(np.float32))


SURE = model([0.99, 0.99, 0.99], [0.01, 0.01, 0.99])
TRUTH = records(EASY, EASY, True)


def test_choosing_image_by_image_gains_what_is_there() -> None:
    found = report_rightness(SURE, TRUTH, TRUTH, MACS)
    # The large tail for the hard half costs what the small one costs for all, and all are right.
    assert found["gains"] == pytest.approx({"small": 0.5, "large": 0.0})
    assert found["gain"] == pytest.approx(0.25)


def test_a_wrong_belief_costs_what_it_costs() -> None:
    truth = records(EASY, True, False)
    found = report_rightness(SURE, TRUTH, truth, MACS)
    assert found["gains"]["small"] == pytest.approx(0.5 - 0.5)  # it stays on the pioneer's level
    assert found["gains"]["large"] == pytest.approx(0.5)  # the easy ones did not go there


def test_shares_tell_how_many_are_right_as_ever_more_go_on() -> None:
    found = report_rightness(SURE, TRUTH, TRUTH, MACS)["shares"]
    # The hard half gains by the large tail, and goes first; nothing is lost or won after that.
    assert found["large"] == pytest.approx([min(1.0, 0.5 + step / 20) for step in range(21)])
    assert found["small"] == pytest.approx([0.5] * 21)


def test_log_loss_stands_beside_that_of_the_rate() -> None:
    found = report_rightness(SURE, TRUTH, TRUTH, MACS)
    assert found["log_loss"] == pytest.approx(-np.log(0.99), rel=1e-3)
    assert found["log_loss_base"] == pytest.approx(np.log(2) * 2 / 3, rel=1e-3)


def test_the_calibration_error_is_a_mean_over_nodes() -> None:
    # Half of what is believed of the pioneer comes true: 0.99 and 0.01 against 0 and 1.
    found = report_rightness(SURE, TRUTH, records(~EASY, EASY, True), MACS)
    assert found["calibration_error"] == pytest.approx((0.99 + 0.01 + 0.01) / 3, abs=1e-4)


@pytest.mark.parametrize(("believed", "error"), [(0.5, 0.0), (0.9, 0.4), (0.0, 0.5)])
def test_calibration_error_is_the_distance_from_what_came_true(
    believed: float, error: float
) -> None:
    right = np.arange(100) % 2 == 0
    values = np.full(100, believed, dtype=np.float32)
    assert calibration_error(values, right) == pytest.approx(error, abs=1e-6)


def test_calibration_of_fewer_images_than_bins() -> None:
    values = np.array([0.25, 0.75], dtype=np.float32)
    assert calibration_error(values, np.array([False, True])) == pytest.approx(0.25)
