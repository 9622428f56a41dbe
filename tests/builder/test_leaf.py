"""An augmented network as a tree: every route equals its configuration, engines are shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opa_trt.builder.canary import canary_arrays
from opa_trt.builder.leaf import LeafDeployment
from opa_trt.builder.network import logits_macs, walk
from opa_trt.errors import ConfigError
from opa_trt.supernet.fold import parity
from opa_trt.supernet.legacy import Augmented, Configuration
from opa_trt.supernet.legacy.folding import fold_traced
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.supernet.trace import trace
from opa_trt.training.exit_head import exit_head
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, TensorSpec, Tree
from tests.supernet.legacy.small_networks import CLASSES, small_augmented

SIDE, SIZE = 16, 20
ALL = [Configuration.numbered(3, number) for number in range(8)]
SOME = [Configuration.of(3), Configuration.of(3, (1,)), Configuration.of(3, (0, 1, 2))]
CHANNELS = (8, 32)  # after the first and the second phase


@pytest.fixture(scope="module")
def network() -> Augmented:
    return small_augmented()


@pytest.fixture(scope="module")
def preprocess() -> Preprocess:
    return Preprocess(SIZE, SIDE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def deploy(network: Augmented, preprocess: Preprocess) -> Callable[..., LeafDeployment]:
    """The deployment of some routes, with exit heads after some phases."""

    def made(routes: list[Configuration] = ALL, exits: tuple[int, ...] = (0,)) -> LeafDeployment:
        with torch.random.fork_rng():
            torch.manual_seed(2)
            heads = {place: exit_head(CHANNELS[place], 6, CLASSES).eval() for place in exits}
        return LeafDeployment(network, routes, preprocess, heads)

    return made


def pixels(count: int = 3) -> Tensor:
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8))


def along(tree: Tree, modules: Mapping[str, nn.Module], leaf: str) -> dict[str, Tensor]:
    """What a leaf's segment gives, the segments of its route run one after the other."""
    given = {IMAGES: pixels()}
    for name in tree.route_to(leaf).nodes:
        node = tree[name]
        made = modules[node.segment](given[node.source])
        values = made if isinstance(made, tuple) else (made,)
        given |= dict(zip(node.outputs, values, strict=True))
    return given


@pytest.mark.parametrize("routes", [ALL, SOME, SOME[1:2]], ids=["all", "some", "one"])
@pytest.mark.parametrize("exits", [(0,), (1,), (0, 1), ()])
@torch.no_grad()
def test_every_route_equals_its_configuration(
    deploy: Callable[..., LeafDeployment],
    network: Augmented,
    preprocess: Preprocess,
    routes: list[Configuration],
    exits: tuple[int, ...],
) -> None:
    made = deploy(routes, exits)
    for route in routes:
        found = along(made.tree, made.modules, made.node_of(route))[LOGITS]
        assert torch.equal(found, network(preprocess(pixels()), route)), str(route)


@torch.no_grad()
def test_walking_the_tree_equals_every_configuration(
    deploy: Callable[..., LeafDeployment], network: Augmented, preprocess: Preprocess
) -> None:
    made = deploy(ALL, (0, 1))
    logits = {
        node.name: given[LOGITS]
        for node, _, given in walk(made.tree, made.modules, pixels())
        if not node.successors
    }
    for route in ALL:
        wanted = network(preprocess(pixels()), route)
        assert torch.equal(logits[made.node_of(route)], wanted), str(route)


def test_the_canary_has_each_nodes_own_outputs(
    deploy: Callable[..., LeafDeployment], network: Augmented, preprocess: Preprocess
) -> None:
    made = deploy()
    spec = TensorSpec(IMAGES, (3, SIZE, SIZE), "uint8")
    arrays = canary_arrays(made.tree, made.modules, spec, (2,), seed=1)
    inputs = preprocess(torch.from_numpy(arrays[f"{IMAGES}/2"]))
    with torch.no_grad():
        for route in ALL:
            found = arrays[f"{made.node_of(route)}/2/{LOGITS}"]
            np.testing.assert_array_equal(found, network(inputs, route).numpy())


def test_a_level_has_two_engines_whatever_the_number_of_nodes(
    deploy: Callable[..., LeafDeployment],
) -> None:
    made = deploy()
    assert list(made.modules) == [
        "legacy1",
        "shallow1",
        "legacy2",
        "shallow2",
        "legacy3",
        "shallow3",
    ]
    assert len(made.tree.nodes) == 2 + 4 + 8
    assert {node.segment for node in made.tree.nodes.values()} == set(made.modules)
    first: dict[str, Node] = {}
    for node in made.tree.nodes.values():
        other = first.setdefault(node.segment, node)
        assert (other.outputs, other.source) == (node.outputs, node.source)
        assert other.name.split("-")[-1] == node.name.split("-")[-1]


def test_the_first_phase_with_an_exit_head_is_the_pioneer(
    deploy: Callable[..., LeafDeployment],
) -> None:
    made = deploy(SOME, (1,))
    entries = [node.name for node in made.tree.entries]
    assert entries == ["legacy1-legacy2", "legacy1-shallow2", "shallow1-shallow2"]
    assert all(node.outputs == (FEATURES, LOGITS) for node in made.tree.entries)
    assert {node.resolution for node in made.tree.nodes.values()} == {SIDE}


def test_without_exit_heads_only_leaves_have_logits(
    deploy: Callable[..., LeafDeployment],
) -> None:
    tree = deploy(SOME, ()).tree
    assert [route.last for route in tree.routes()] == [
        "legacy1-legacy2-legacy3",
        "legacy1-shallow2-legacy3",
        "shallow1-shallow2-shallow3",
    ]
    assert all(node.outputs == (FEATURES,) for node in tree.nodes.values() if node.successors)


def test_only_the_routes_are_deployed(deploy: Callable[..., LeafDeployment]) -> None:
    made = deploy(SOME)
    assert made.tree["legacy1"].successors == ("legacy1-legacy2", "legacy1-shallow2")
    assert made.tree["shallow1-shallow2"].successors == ("shallow1-shallow2-shallow3",)
    with pytest.raises(ConfigError, match=r"route \{0\} is not deployed"):
        made.node_of(Configuration.of(3, (0,)))


def test_macs_add_up_along_a_route(
    deploy: Callable[..., LeafDeployment], network: Augmented
) -> None:
    made, costs, heads = deploy(ALL, (0, 1)), network.costs(SIDE), 0
    for name in ("legacy1", "legacy1-legacy2"):
        given = along(made.tree, made.modules, name)
        module: Any = made.modules[made.tree[name].segment]
        heads += logits_macs(module.head, given[FEATURES])
    for route in ALL:
        nodes = made.tree.route_to(made.node_of(route)).nodes
        total = sum(made.tree[name].macs for name in nodes)
        assert total == costs.of(route).macs + heads


def test_codes_tell_routes_apart(deploy: Callable[..., LeafDeployment]) -> None:
    tree = deploy().tree
    leaves = [node for node in tree.nodes.values() if not node.successors]
    assert len({node.code for node in leaves}) == 8
    assert tree["legacy1-shallow2"].code == (0.0, 1.0, 1.0)


@torch.no_grad()
def test_segments_can_be_traced(deploy: Callable[..., LeafDeployment]) -> None:
    made = deploy(SOME, (0, 1))
    for node, source, given in walk(made.tree, made.modules, pixels()):
        found = trace(made.modules[node.segment], source)(source[:1])
        values = found if isinstance(found, tuple) else (found,)
        for output, value in zip(node.outputs, values, strict=True):
            torch.testing.assert_close(value, given[output][:1], rtol=1e-4, atol=1e-5)


def test_folded_segments_give_the_same(deploy: Callable[..., LeafDeployment]) -> None:
    made = deploy(SOME, (0, 1))
    for node, source, _ in walk(made.tree, made.modules, pixels()):
        folded = fold_traced(made.modules[node.segment])
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
        assert parity(node.name, folded, made.modules[node.segment], source) < 1e-4


@pytest.mark.parametrize("exits", [(0,), ()])
def test_a_session_takes_every_route(
    deploy: Callable[..., LeafDeployment],
    machine: Any,
    invent: Callable[[tuple[Node, ...]], Path],
    exits: tuple[int, ...],
) -> None:
    made = deploy(SOME, exits)
    machine.ms = {name: float(place) for place, name in enumerate(made.modules, 1)}
    path = invent(tuple(made.tree.nodes.values()))
    for route in SOME:
        leaf = made.node_of(route)
        with machine.load(path, policy=f"static:{leaf}") as session:
            images = np.zeros((8, 3, 16, 16), dtype=np.uint8)
            result = session.infer(images, deadline_ms=1000)
        steps = made.tree.route_to(leaf).nodes
        assert [step.node for step in result.steps] == list(steps)
        ms = sum(machine.ms[made.tree[name].segment] for name in steps)
        assert result.measured_ms == pytest.approx(ms)


def test_bad_deployments_are_refused(network: Augmented, preprocess: Preprocess) -> None:
    head = exit_head(8, 6, CLASSES)
    for routes, exits, message in (
        ([], {}, "routes none"),
        ([ALL[0], ALL[0]], {}, "each once"),
        ([Configuration.of(2)], {}, r"route \{\} of 2 phases"),
        (ALL, {2: head}, "0 to 1: the network ends in its own"),
        (ALL, {-1: head}, "0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            LeafDeployment(network, routes, preprocess, exits)
    with pytest.raises(ConfigError, match="in training mode"):
        LeafDeployment(small_augmented().train(), ALL, preprocess)


def test_routes_may_come_in_any_order(deploy: Callable[..., LeafDeployment]) -> None:
    there, back = (deploy(routes).tree for routes in (SOME, SOME[::-1]))
    assert there.nodes.keys() == back.nodes.keys()
