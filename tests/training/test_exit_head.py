"""The pioneer's exit head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from opa_trt.training.exit_head import ExitHeadPlan, exit_head, train_exit_head

PLAN = ExitHeadPlan(width=16, epochs=8, batch_size=32)


@pytest.fixture(scope="module")
def task() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features whose brighter channel is the class, and a teacher that is nearly sure."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (256,), generator=draw)
    features = torch.randn(256, 4, 6, 6, generator=draw)
    features[torch.arange(256), labels] += 1.0
    soft = torch.full((256, 2), 0.05)
    soft[torch.arange(256), labels] = 0.95
    return features, labels, soft


def test_head_maps_features_to_logits() -> None:
    assert exit_head(4, 16, 3).eval()(torch.zeros(5, 4, 6, 6)).shape == (5, 3)


def test_trained_head_is_right_far_more_often_than_chance(
    task: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, labels, soft = task
    head = train_exit_head(features, labels, soft, PLAN, seed=0)
    assert (head(features).argmax(1) == labels).float().mean() > 0.95


def test_same_seed_gives_the_same_head_and_leaves_the_global_generator_alone(
    task: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    before = torch.get_rng_state()
    first = train_exit_head(*task, PLAN, seed=3)
    second = train_exit_head(*task, PLAN, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_trained_head_is_frozen_calibrated_and_in_evaluation_mode(
    task: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    features, labels, soft = task
    head = train_exit_head(features, labels, soft, PLAN, seed=0)
    norm = next(layer for layer in head if isinstance(layer, nn.BatchNorm2d))
    assert not head.training
    assert not any(parameter.requires_grad for parameter in head.parameters())
    batches = [head[0](part).mean((0, 2, 3)) for part in features.split(PLAN.batch_size)]
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.stack(batches).mean(0))
