"""Legacy networks by name, and their weights on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from opa_trt.errors import CheckpointError, ConfigError, UnknownNameError
from opa_trt.supernet.legacy import augment
from opa_trt.supernet.legacy.cost import measured_cost
from opa_trt.supernet.legacy.networks import (
    SMALL_RESNET,
    load_weights,
    make_network,
    phases_of,
    save_weights,
)


@pytest.mark.parametrize("name", [SMALL_RESNET, "some.module:network"])
def test_weights_by_name_are_torchvision_s_alone(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no weights called 'best\.pth'"):
        make_network(name, 10, weights="best.pth")


def test_an_unknown_network_is_told_before_its_weights() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'small_resnet'"):
        make_network("smal_resnet", 10, weights="best.pth")


def test_the_small_network_has_four_phases() -> None:
    module = make_network(SMALL_RESNET, 10)
    assert phases_of(SMALL_RESNET) == ("layer1", "layer2", "layer3", "layer4")
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert not module.training
    given = torch.empty((1, 3, 32, 32), device="meta")
    # stem 442,368, first phase 9,437,184, three times 8,388,608, classifier 1,280
    assert measured_cost(module, given)[0].macs == 35_046_656


def test_its_phases_can_be_replaced() -> None:
    module = make_network(SMALL_RESNET, 10, widths=(8, 16), blocks=1)
    network = augment(module, ("layer1", "layer2"), divisor=2)
    assert len([*network.configurations()]) == 4


def test_weights_are_random_by_seed() -> None:
    first, again, other = (make_network(SMALL_RESNET, 4, seed=seed) for seed in (1, 1, 2))
    key = "classifier.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_an_unknown_network_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'small_resnet'"):
        make_network("smal_resnet", 10)


def test_phases_of_ones_own_are_named() -> None:
    assert phases_of("mine:make", ["a", "b"]) == ("a", "b")
    with pytest.raises(ConfigError, match="no ready phases"):
        phases_of("mine:make")


def test_weights_are_read_back_in_float32(tmp_path: Path) -> None:
    module, path = make_network(SMALL_RESNET, 10, seed=3), tmp_path / "w.safetensors"
    save_weights(module, path)
    other = make_network(SMALL_RESNET, 10, seed=4)
    load_weights(other, path)
    for key, value in module.state_dict().items():
        found = other.state_dict()[key]
        assert found.dtype == value.dtype
        if value.is_floating_point():
            assert torch.equal(found, value.half().float())


@pytest.mark.parametrize("content", [None, b"no safetensors"])
def test_weights_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        load_weights(make_network(SMALL_RESNET, 10), path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(3, 2), path)
    with pytest.raises(CheckpointError, match="lacks"):
        load_weights(make_network(SMALL_RESNET, 10), path)
    save_weights(make_network(SMALL_RESNET, 4), path)
    with pytest.raises(CheckpointError, match=r"misshapen .*classifier"):
        load_weights(make_network(SMALL_RESNET, 10), path)


def test_torchvisions_networks_are_made_by_name() -> None:
    module = make_network("resnet18", 7)
    assert module.fc.out_features == 7
    with pytest.raises(ConfigError, match="no resnet18 with weights 'NONE_V1'"):
        make_network("resnet18", 7, weights="NONE_V1")
