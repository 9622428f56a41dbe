"""Torchvision's networks, augmented: the counts that the paper states; and their import."""

from __future__ import annotations

import importlib
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from opa_trt.errors import BackendUnavailable
from opa_trt.supernet.legacy import (
    PHASES,
    Augmented,
    Configuration,
    augment,
    require_torchvision,
    torchvision_import,
)
from tests.supernet.legacy.small_networks import images


@pytest.fixture(scope="module")
def models() -> Any:
    """``torchvision.models``; where CI runs it must be there."""
    try:
        return require_torchvision().models
    except BackendUnavailable as exc:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(exc.received)


def augmented(models: Any, name: str) -> tuple[Any, Augmented]:
    """A network of random weights, and what becomes of it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = getattr(models, name)(num_classes=1000).eval()
    return module, augment(module, name)


@pytest.mark.parametrize(
    ("name", "phases", "added", "share", "macs"),
    [
        ("resnet50", 4, 3_523_648, 0.1379, (4_089_184_256, 688_455_680)),
        ("mobilenet_v2", 5, 272_544, 0.0778, (300_774_272, 148_576_352)),
    ],
)
def test_the_counts_are_the_papers(
    models: Any, name: str, phases: int, added: int, share: float, macs: tuple[int, int]
) -> None:
    module, network = augmented(models, name)
    configurations = [*network.configurations()]
    assert len(configurations) == len(set(configurations)) == 2**phases
    costs = network.costs(224)
    legacy = sum(parameter.numel() for parameter in module.parameters())
    assert costs.added_params == added
    assert costs.added_params == sum(p.numel() for p in network.parameters()) - legacy
    assert round(added / legacy, 4) == share
    assert (costs.of(configurations[0]).macs, costs.of(configurations[-1]).macs) == macs
    assert costs.of(configurations[0]).params == legacy


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "mobilenet_v2"])
def test_the_legacy_configuration_is_the_original_to_the_bit(models: Any, name: str) -> None:
    module, network = augmented(models, name)
    given = images(1, 64, seed=2)
    with torch.no_grad():
        legacy, shallow = (
            network(given, Configuration.of(len(PHASES[name]), places))
            for places in ((), range(len(PHASES[name])))
        )
        assert torch.equal(legacy, module(given))
    assert shallow.shape == legacy.shape


def test_resnet101_has_a_phase_map(models: Any) -> None:
    network = augment(models.resnet101().eval(), "resnet101", example=images(1, 32))
    assert network.phases == ("layer1", "layer2", "layer3", "layer4")


def test_grouped_convolutions_are_named(models: Any) -> None:
    module = models.resnext50_32x4d().eval()
    with pytest.raises(ValueError, match=r"phase layer1: 0\.conv2 \(Conv2d\) has 32 groups"):
        augment(module, "resnet50", example=images(1, 32))


# --- the import ---------------------------------------------------------------------------------


def pretend(monkeypatch: pytest.MonkeyPatch, *answers: object) -> list[str]:
    """Importing torchvision answers one of these after the other; what was defined meanwhile."""
    left, defined = [*answers], []

    def found(name: str) -> object:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(torchvision_import, "import_module", found)
    monkeypatch.setattr(torchvision_import, "_schemas", lambda: defined.append("schemas"))
    return defined


NO_NMS = RuntimeError("operator torchvision::nms does not exist")


def test_an_import_that_works_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace()
    defined = pretend(monkeypatch, package)
    assert require_torchvision() is package
    assert defined == []


def test_missing_operators_are_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace()
    defined = pretend(monkeypatch, NO_NMS, package)
    assert require_torchvision() is package
    assert defined == ["schemas"]


def test_a_missing_package_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ImportError("no"))
    with pytest.raises(BackendUnavailable, match=r"(?s)not installed.*opa-trt\[legacy\]"):
        require_torchvision()


@pytest.mark.parametrize(
    "answers", [(RuntimeError("something else"),), (NO_NMS, RuntimeError("something else"))]
)
def test_another_failure_is_told(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[Exception, ...]
) -> None:
    pretend(monkeypatch, *answers)
    with pytest.raises(BackendUnavailable, match=r"does not work with torch .*: something else"):
        require_torchvision()


def test_it_can_be_imported_again(models: Any) -> None:
    assert require_torchvision().models is models
    assert importlib.import_module("torchvision").models is models
