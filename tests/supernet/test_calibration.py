"""Batch-norm statistics, against sums written out here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from opa_trt.errors import ConfigError
from opa_trt.supernet.calibration import calibrate


def batches(*sizes: int, seed: int = 0) -> list[Tensor]:
    """Batches of 2-channel images whose level differs from batch to batch."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 2, 4, 4, generator=draw) * (i + 1) + i for i, n in enumerate(sizes)]


def norm(channels: int = 2, momentum: float | None = 0.1) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=momentum).eval()


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), norm(3), nn.ReLU(), nn.Conv2d(3, 4, 1), norm(4)).eval()
    with torch.no_grad():
        for layer in (net[1], net[4]):
            layer.weight.uniform_(0.5, 2)
            layer.bias.uniform_(-1, 1)
            layer.running_mean.fill_(9)  # what calibration must not read
            layer.running_var.fill_(0.01)
    return net


def weighted(parts: list[Tensor], images: list[Tensor]) -> Tensor:
    total = sum(len(batch) for batch in images)
    return sum(p * len(b) for p, b in zip(parts, images, strict=True)) / total


# --- what is measured ---------------------------------------------------------------------------


def test_means_are_weighted_by_images() -> None:
    layer, given = norm(), batches(7, 3, 1)
    calibrate(layer, given)
    expected = weighted([b.mean((0, 2, 3)) for b in given], given)
    torch.testing.assert_close(layer.running_mean, expected)


def test_variances_are_biased_and_weighted_by_images() -> None:
    layer, given = norm(), batches(7, 3, 1)
    calibrate(layer, given)
    expected = weighted([b.var((0, 2, 3), correction=0) for b in given], given)
    torch.testing.assert_close(layer.running_var, expected)


def test_the_batch_size_matters() -> None:
    (images,) = batches(8)
    images = images + torch.arange(8.0).view(8, 1, 1, 1)
    whole, halves = norm(), norm()
    calibrate(whole, [images])
    calibrate(halves, images.split(4))
    torch.testing.assert_close(whole.running_mean, halves.running_mean)
    assert (whole.running_var > halves.running_var).all()


@torch.no_grad()
def test_every_layer_normalises_by_its_own_batch() -> None:
    net, given = two_layers(), batches(5, 2)
    means, variances = [], []
    for batch in given:
        first = net[0](batch)
        centred = first - first.mean((0, 2, 3), keepdim=True)
        scaled = centred / (first.var((0, 2, 3), keepdim=True, correction=0) + net[1].eps).sqrt()
        inner = scaled * net[1].weight.view(1, -1, 1, 1) + net[1].bias.view(1, -1, 1, 1)
        second = net[3](inner.relu())
        means.append(second.mean((0, 2, 3)))
        variances.append(second.var((0, 2, 3), correction=0))
    calibrate(net, given)
    torch.testing.assert_close(net[4].running_mean, weighted(means, given))
    torch.testing.assert_close(net[4].running_var, weighted(variances, given))


@torch.no_grad()
def test_one_batch_makes_evaluation_equal_to_normalising_by_it() -> None:
    net, (batch,) = two_layers(), batches(6)
    net.train()
    expected = net(batch)
    net.eval()
    calibrate(net, [batch])
    torch.testing.assert_close(net(batch), expected, atol=1e-4, rtol=1e-4)


def test_calibrating_again_gives_the_same_statistics() -> None:
    net, given = two_layers(), batches(4, 3)
    calibrate(net, given)
    first = [net[4].running_mean.clone(), net[4].running_var.clone()]
    calibrate(net, given)
    torch.testing.assert_close([net[4].running_mean, net[4].running_var], first)


def test_the_images_seen_are_counted() -> None:
    assert calibrate(norm(), iter(batches(7, 3, 1))) == 11


# --- what is left alone -------------------------------------------------------------------------


def test_weights_do_not_move() -> None:
    net = two_layers()
    before = [p.detach().clone() for p in net.parameters()]
    calibrate(net, batches(4))
    torch.testing.assert_close(list(net.parameters()), before)


@pytest.mark.parametrize("momentum", [0.1, 0.37, None])
def test_momentum_and_mode_are_restored(momentum: float | None) -> None:
    layer = norm(momentum=momentum)
    calibrate(layer, batches(3))
    assert layer.momentum == momentum
    assert not layer.training


def failing() -> Iterator[Tensor]:
    yield from batches(3)
    message = "the disk is gone"
    raise OSError(message)


def test_a_failing_pass_restores_momentum_mode_and_hooks() -> None:
    net = two_layers()
    with pytest.raises(OSError, match="the disk is gone"):
        calibrate(net, failing())
    for layer in (net[1], net[4]):
        assert (layer.momentum, layer.training) == (0.1, False)
        assert not layer._forward_pre_hooks


def test_a_failing_pass_leaves_the_statistics() -> None:
    net = two_layers()
    with pytest.raises(OSError, match="the disk is gone"):
        calibrate(net, failing())
    torch.testing.assert_close(net[1].running_mean, torch.full((3,), 9.0))
    torch.testing.assert_close(net[1].running_var, torch.full((3,), 0.01))


def test_no_batches_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no images to calibrate with"):
        calibrate(norm(), [])


def test_no_batches_leave_the_statistics() -> None:
    layer = norm()
    with pytest.raises(ConfigError):
        calibrate(layer, [])
    torch.testing.assert_close(layer.running_mean, torch.zeros(2))


def test_a_network_without_norms_is_only_run() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1)).eval()
    before = net[0].weight.detach().clone()
    assert calibrate(net, batches(4, 1)) == 5
    torch.testing.assert_close(net[0].weight, before)
