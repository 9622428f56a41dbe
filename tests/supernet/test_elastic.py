"""Elastic kernels, blocks and norms, against formulas written out here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from opa_trt.supernet.elastic import BlockSpec, ElasticBlock, ElasticKernel, copy_norm, sliced_norm
from opa_trt.supernet.layers import Residual


def spec(inputs: int = 16, outputs: int = 16, stride: int = 1, se: bool = False) -> BlockSpec:
    return BlockSpec(inputs, outputs, stride, "relu", se, eps=1e-5, momentum=0.1)


@pytest.fixture
def kernels() -> ElasticKernel:
    """Kernels 3, 5, 7 of four channels with matrices that are not the identity."""
    torch.manual_seed(0)
    layer = ElasticKernel(4, (3, 5, 7))
    with torch.no_grad():
        for matrix in layer.matrices.values():
            matrix.copy_(torch.randn(matrix.shape))
    return layer


# --- kernel sizes -------------------------------------------------------------------------------


def transformed(weight: np.ndarray, matrix: np.ndarray, small: int) -> np.ndarray:
    """OFA: the centre, flattened row by row, times the transposed matrix, channel by channel."""
    edge = (weight.shape[-1] - small) // 2
    centre = weight[:, 0, edge : edge + small, edge : edge + small]
    rows = [channel.reshape(-1) @ matrix.T for channel in centre]
    return np.stack(rows).reshape(len(weight), 1, small, small)


def test_the_largest_kernel_is_stored(kernels: ElasticKernel) -> None:
    torch.testing.assert_close(kernels(4, 7), kernels.weight)


def test_5x5_is_the_transformed_centre_of_7x7(kernels: ElasticKernel) -> None:
    weight, matrix = kernels.weight.detach().numpy(), kernels.matrices["7to5"].detach().numpy()
    expected = transformed(weight, matrix, 5)
    np.testing.assert_allclose(kernels(4, 5).detach(), expected, atol=1e-5)


def test_3x3_is_the_transformed_centre_of_that_5x5(kernels: ElasticKernel) -> None:
    first, second = (kernels.matrices[k].detach().numpy() for k in ("7to5", "5to3"))
    five = transformed(kernels.weight.detach().numpy(), first, 5)
    expected = transformed(five, second, 3)
    np.testing.assert_allclose(kernels(4, 3).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_fewer_channels_are_the_first_ones(kernels: ElasticKernel, kernel: int) -> None:
    torch.testing.assert_close(kernels(3, kernel), kernels(4, kernel)[:3])


def test_matrices_are_one_a_step_whatever_the_channels() -> None:
    shapes = {key: tuple(m.shape) for key, m in ElasticKernel(64, (3, 5, 7)).matrices.items()}
    assert shapes == {"7to5": (25, 25), "5to3": (9, 9)}


@pytest.mark.parametrize("kernel", [3, 5])
def test_matrices_start_as_the_identity(kernel: int) -> None:
    layer, edge = ElasticKernel(4, (3, 5, 7)), (7 - kernel) // 2
    centre = layer.weight[:, :, edge : 7 - edge, edge : 7 - edge]
    torch.testing.assert_close(layer(4, kernel), centre)


def test_a_single_kernel_size_needs_no_matrix() -> None:
    assert len(ElasticKernel(4, (3,)).matrices) == 0


# --- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "residual"),
    [(16, 16, 1, True), (16, 16, 2, False), (16, 24, 1, False), (16, 24, 2, False)],
)
def test_residual_only_at_stride_1_and_equal_channels(
    inputs: int, outputs: int, stride: int, residual: bool
) -> None:
    block = ElasticBlock(spec(inputs, outputs, stride), (3,), (2,))
    assert block.spec.residual == residual
    assert isinstance(block.extract(3, 2), Residual) == residual


def test_a_residual_block_adds_its_input() -> None:
    block = ElasticBlock(spec(), (3,), (2,)).eval()
    nn.init.zeros_(block.project.weight)
    x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x, 3, 2), x)


@pytest.mark.parametrize(("ratio", "middle"), [(1, 16), (1.5, 24), (3, 48), (6, 96)])
def test_the_middle_is_the_rounded_expansion(ratio: float, middle: int) -> None:
    assert spec().middle(ratio) == middle


def test_the_middle_of_an_odd_product_rounds_to_a_multiple_of_8() -> None:
    assert spec(inputs=24).middle(1.4) == 32


@pytest.mark.parametrize("se", [False, True])
def test_a_block_without_expansion_starts_with_the_depthwise_convolution(se: bool) -> None:
    block = ElasticBlock(spec(outputs=24, se=se), (3,), (1,), expansion=False).eval()
    x = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    plain = block.extract(3, 1).eval()
    assert plain[0].groups == 16
    torch.testing.assert_close(plain(x), block(x, 3, 1))


# --- sorting ------------------------------------------------------------------------------------


def importance(block: ElasticBlock) -> torch.Tensor:
    return block.project.weight.detach().abs().sum((0, 2, 3))


def descends(values: torch.Tensor) -> bool:
    return bool((values[1:] <= values[:-1]).all())


def test_level_0_sorts_all_middle_channels() -> None:
    block = ElasticBlock(spec(), (3,), (1, 2, 4))
    block.sort_channels(0)
    assert descends(importance(block))


@pytest.mark.parametrize(("level", "bounds"), [(1, (0, 32, 64)), (2, (0, 16, 32, 64))])
def test_a_later_level_sorts_within_the_widths_already_trained(
    level: int, bounds: tuple[int, ...]
) -> None:
    block = ElasticBlock(spec(), (3,), (1, 2, 4))
    before = importance(block)
    block.sort_channels(level)
    after = importance(block)
    for low, high in itertools.pairwise(bounds):
        assert descends(after[low:high])
        torch.testing.assert_close(after[low:high], before[low:high].sort(descending=True).values)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_hidden_channels_of_the_attention_are_all_sorted(level: int) -> None:
    block = ElasticBlock(spec(se=True), (3,), (1, 2, 4))
    block.sort_channels(level)
    assert block.squeeze_excite is not None
    assert descends(block.squeeze_excite.expand.weight.detach().abs().sum((0, 2, 3)))


# --- norms --------------------------------------------------------------------------------------


def test_in_training_only_the_channels_used_move_their_statistics() -> None:
    norm = nn.BatchNorm2d(4).train()
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)) + 5
    sliced_norm(norm, x)
    torch.testing.assert_close(norm.running_mean[:3], 0.1 * x.mean((0, 2, 3)))
    assert norm.running_mean[3] == 0
    assert norm.running_var[3] == 1


def test_a_copied_norm_keeps_eps_and_momentum() -> None:
    copied = copy_norm(nn.BatchNorm2d(4, eps=0.5, momentum=0.25), 2)
    assert (copied.num_features, copied.eps, copied.momentum) == (2, 0.5, 0.25)
