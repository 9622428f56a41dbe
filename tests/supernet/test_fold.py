"""Folding batch norm away: the same outputs without it, or a refusal that names what is left."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from opa_trt.errors import ParityError
from opa_trt.supernet.fold import TOLERANCE, fold, parity
from opa_trt.supernet.layers import Residual

IMAGES = torch.rand((3, 4, 8, 8), generator=torch.Generator().manual_seed(1))


def norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm none of whose numbers is 0 or 1."""
    draw = torch.Generator().manual_seed(channels)
    layer = nn.BatchNorm2d(channels, eps=1e-3)
    with torch.no_grad():
        layer.weight.copy_(0.5 + torch.rand(channels, generator=draw))
        layer.bias.copy_(torch.randn(channels, generator=draw))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(torch.randn(channels, generator=draw))
    layer.running_var.copy_(0.1 + torch.rand(channels, generator=draw))
    return layer


def network() -> nn.Sequential:
    """Every kind of convolution that a space has, one of them inside a residual block."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        body = nn.Sequential(
            nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False), norm(6), nn.Hardswish()
        )
        return nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=1), norm(6), nn.ReLU(inplace=True),
            Residual(body), nn.Conv2d(6, 5, 1, bias=False), norm(5), nn.Flatten(1),
        ).eval()  # fmt: skip


class Shifted(nn.Module):
    """``x + by``, twice."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + self.by


def test_no_batch_norm_is_left() -> None:
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fold(network()).modules())


def test_a_folded_network_computes_the_same() -> None:
    whole = network()
    torch.testing.assert_close(fold(whole)(IMAGES), whole(IMAGES), rtol=1e-5, atol=1e-5)


def test_the_original_keeps_its_batch_norm() -> None:
    whole = network()
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    fold(whole)
    after = whole.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_network_without_batch_norm_stays_as_it_is() -> None:
    plain = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU())
    assert torch.equal(fold(plain)(IMAGES), plain(IMAGES))


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (lambda: nn.Sequential(norm(4), nn.Conv2d(4, 2, 1)), "0"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), norm(4)), "2"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), norm(4), norm(4)), "2"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), Residual(norm(4))), "1.body"),
    ],
    ids=["first", "after an activation", "twice", "in another module"],
)
def test_a_batch_norm_without_its_convolution_is_named(
    module: Callable[[], nn.Module], named: str
) -> None:
    with pytest.raises(ParityError, match=f"batch norm {named} does not follow") as caught:
        fold(module().eval())
    assert "convolution, then batch norm" in caught.value.expected


def test_parity_is_the_largest_difference_of_all_outputs() -> None:
    found = parity("it", Shifted(5e-5), Shifted(0.0), IMAGES)
    assert found == pytest.approx(5e-5, rel=1e-2)


def test_parity_is_relative_to_values_above_one() -> None:
    found = parity("it", Shifted(5e-3), Shifted(0.0), 1000 * torch.ones(2, 2))
    assert found == pytest.approx(5e-6, rel=5e-2)


def test_too_large_a_difference_is_refused() -> None:
    with pytest.raises(ParityError, match="it differs from its reference by 1") as caught:
        parity("it", Shifted(1.0), Shifted(0.0), torch.zeros(2, 2))
    assert f"{TOLERANCE:.0e}" in caught.value.expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ParityError):
        parity("it", Shifted(bad), Shifted(0.0), IMAGES)


def test_outputs_that_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        parity("it", nn.Identity(), Shifted(0.0), IMAGES)
