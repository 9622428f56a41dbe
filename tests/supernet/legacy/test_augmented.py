"""Configurations of an augmented network: named, run together, counted, written and read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from opa_trt.errors import CheckpointError, ConfigError
from opa_trt.supernet.cost import Cost
from opa_trt.supernet.legacy import Augmented, Configuration, augment, load_shallow, save_shallow
from tests.supernet.legacy.small_networks import PHASES, images, small, small_augmented

BITS = st.lists(st.booleans(), min_size=1, max_size=6).map(tuple)
SETS = st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True)


@pytest.fixture(scope="module")
def network() -> Augmented:
    return small_augmented()


@given(BITS)
def test_a_configuration_is_told_by_its_shallow_places(bits: tuple[bool, ...]) -> None:
    configuration = Configuration(bits)
    assert Configuration.of(len(bits), configuration.places) == configuration
    assert configuration.is_legacy == (sum(bits) == 0)


def test_configurations_read_as_in_the_paper() -> None:
    assert [str(Configuration.of(4, places)) for places in ((), (2, 0))] == ["{}", "{0, 2}"]


def test_configurations_are_numbered_from_legacy_to_all_shallow(network: Augmented) -> None:
    found = [*network.configurations()]
    assert found[0] == network.legacy_configuration == Configuration.of(3)
    assert found[-1] == Configuration.of(3, range(3))
    assert [Configuration.numbered(3, number) for number in range(8)] == found
    assert len(set(found)) == 8


@pytest.mark.parametrize("places", [(3,), (-1,)])
def test_a_place_that_is_no_phase_is_refused(places: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="places 0 to 2"):
        Configuration.of(3, places)


def test_a_configuration_of_other_phases_is_refused(network: Augmented) -> None:
    for call in (
        lambda: network(images(1, 16), Configuration.of(2)),
        lambda: network.forward_many(images(1, 16), [Configuration.of(2)]),
    ):
        with pytest.raises(ConfigError, match="one of 3 phases"):
            call()
    with pytest.raises(ConfigError, match="at least one"):
        network.forward_many(images(1, 16), [])


@settings(max_examples=15)
@given(SETS)
def test_many_at_once_give_what_each_gives_alone(network: Augmented, numbers: list[int]) -> None:
    inputs = images(3, 16, seed=1)
    chosen = [Configuration.numbered(3, number) for number in numbers]
    with torch.no_grad():
        together = network.forward_many(inputs, chosen)
        alone = torch.stack([network(inputs, each) for each in chosen])
    torch.testing.assert_close(together, alone)


def test_batch_norms_in_training_see_all_configurations_together() -> None:
    network = small_augmented().train()
    seen: list[int] = []
    for phase in network.shallow:
        first = next(m for m in phase.modules() if isinstance(m, nn.BatchNorm2d))
        first.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    network.forward_many(images(3, 16), [*network.configurations()])
    assert seen == [3, 6, 12]  # behind one, two and four ways to get there


def test_costs_add_up_over_parts(network: Augmented) -> None:
    costs = network.costs(16)
    for configuration in network.configurations():
        parts = [*costs.links]
        parts += [
            (costs.shallow if s else costs.legacy)[i] for i, s in enumerate(configuration.shallow)
        ]
        assert costs.of(configuration) == sum(parts, Cost(0, 0))
    stem, classifier = costs.links[0], costs.links[-1]
    assert stem.macs == 9 * 3 * 8 * 16 * 16
    assert classifier == Cost(16 * 5, 17 * 5)


def test_macs_grow_with_the_image_and_parameters_do_not(network: Augmented) -> None:
    small_one, large = network.costs(16).legacy[0], network.costs(32).legacy[0]
    assert large.macs == 4 * small_one.macs
    assert large.params == small_one.params


# --- on disk ------------------------------------------------------------------------------------


def test_shallow_phases_come_back_as_they_were(tmp_path: Path) -> None:
    network, other = small_augmented(), augment(small(), PHASES, ratio=0.5, divisor=2, seed=7)
    with torch.no_grad():
        network.forward_many(images(4, 16), [*network.train().configurations()])
    save_shallow(network.eval(), tmp_path / "leaf.safetensors", notes={"steps": 1})
    load_shallow(other, tmp_path / "leaf.safetensors")
    for configuration in network.configurations():
        one, two = (n(images(2, 16), configuration) for n in (network, other))
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: augment(small(seed=1), PHASES, ratio=0.5, divisor=2), "other weights"),
        (lambda: augment(small(), PHASES[:2], ratio=0.5, divisor=2), "other phases"),
        (
            lambda: augment(small(), PHASES, ratio=0.25, divisor=2),
            r"(?s)other ratio .*ratio = 0.25",
        ),
    ],
)
def test_shallow_phases_of_another_network_are_refused(
    tmp_path: Path, network: Augmented, other: object, message: str
) -> None:
    save_shallow(network, tmp_path / "leaf.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_shallow(other(), tmp_path / "leaf.safetensors")  # type: ignore[operator]


def test_a_file_of_something_else_is_refused(tmp_path: Path, network: Augmented) -> None:
    path = tmp_path / "leaf.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_shallow(network, path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_shallow(network, path)
