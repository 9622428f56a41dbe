"""The adaptive loss: each configuration's own mean, which is a constant, over a window."""

from __future__ import annotations

import pytest
import torch

from opa_trt.supernet.legacy import Configuration
from opa_trt.training.adaptive_loss import AdaptiveLoss

ONE, TWO = Configuration.of(2, (0,)), Configuration.of(2, (1,))


def weigh(loss: AdaptiveLoss, *values: float) -> torch.Tensor:
    return loss(torch.tensor(values), [ONE, TWO][: len(values)])


def test_each_loss_is_divided_by_its_mean() -> None:
    loss = AdaptiveLoss(100)
    assert weigh(loss, 4.0, 0.1).item() == pytest.approx(1)
    # (2 / mean(4, 2) + 0.3 / mean(0.1, 0.3)) / 2
    assert weigh(loss, 2.0, 0.3).item() == pytest.approx((2 / 3 + 0.3 / 0.2) / 2)


def test_the_mean_is_that_of_the_last_steps_alone() -> None:
    loss = AdaptiveLoss(2)
    for value in (9.0, 1.0, 3.0):
        found = weigh(loss, value)
    assert found.item() == pytest.approx(3 / 2)


def test_a_configuration_that_was_not_drawn_keeps_its_mean() -> None:
    loss = AdaptiveLoss(100)
    weigh(loss, 1.0, 8.0)
    weigh(loss, 1.0)
    assert loss(torch.tensor([4.0]), [TWO]).item() == pytest.approx(4 / 6)


def test_no_gradient_flows_through_the_mean() -> None:
    loss = AdaptiveLoss(100)
    weigh(loss, 1.0, 4.0)
    values = torch.tensor([3.0, 2.0], requires_grad=True)
    loss(values, [ONE, TWO]).backward()
    torch.testing.assert_close(values.grad, torch.tensor([1 / 2, 1 / 3]) / 2)


def test_a_loss_of_nothing_weighs_nothing() -> None:
    assert weigh(AdaptiveLoss(100), 0.0).item() == 0


def test_what_is_remembered_comes_back() -> None:
    loss, other = AdaptiveLoss(3), AdaptiveLoss(3)
    for step in range(5):
        weigh(loss, 0.1 * step + 0.1, 1.7)
    other.take(loss.tensors())
    assert weigh(other, 0.3, 0.4).item() == weigh(loss, 0.3, 0.4).item()
