"""From a recipe of a legacy network to a bundle, and what runs from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from opa_trt.builder import Recipe, build, recipe_from_dict
from opa_trt.builder.legacy_network import augmented
from opa_trt.bundle import Bundle, Manifest
from opa_trt.errors import CheckpointError, ConfigError, OpaError, RecipeError, UnknownNameError
from opa_trt.runtime import Session, load
from opa_trt.store import EngineStore
from opa_trt.supernet.legacy import Augmented, Configuration, load_shallow, save_shallow
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.tree import CASCADE, FEATURES, LOGITS, OPA, WHOLE
from tests.builder.conftest import TINY, Heard, TickingClock, merged
from tests.supernet.legacy.small_networks import PHASES, Small, scrambled, small

LEGACY: dict[str, Any] = {
    **{key: value for key, value in TINY.items() if key != "space"},
    "name": "legacy",
    "checkpoint": "shallow.safetensors",
    "legacy": {
        "network": "tests.builder.test_legacy:trained",
        "classes": 10,
        "phases": list(PHASES),
        "ratio": 0.5,
        "divisor": 2,
    },
    "pioneer": {"stages": 1, "head_width": 8, "images": 150, "epochs": 2},
    "tails": {"count": 5, "candidates": 5, "images": 56},
    "baselines": {"whole": 3, "cascade": 2},
}
SIZE = TINY["data"]["size"]


def trained(classes: int) -> nn.Module:
    """One's own network, which brings its weights."""
    return small(classes)


def unfit(classes: int) -> int:
    """What is no network."""
    return classes


class UnsteadyClock:
    """Engines take as long as chance has it: others are on the front at each batch size."""

    def __init__(self) -> None:
        self.now, self.draw = 0.0, np.random.default_rng(3)

    def now_ms(self) -> float:
        self.now += self.draw.exponential(20.0)
        return self.now


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    return recipe_from_dict(merged(LEGACY, changes), folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shallow phases of ``trained`` lie."""
    place = tmp_path_factory.mktemp("legacy")
    network = augmented(recipe_in(place), 10)
    scrambled(network.shallow, 5)
    save_shallow(network, place / "shallow.safetensors")
    return place


@pytest.fixture(scope="module")
def network(folder: Path) -> Augmented:
    found = augmented(recipe_in(folder), 10)
    load_shallow(found, folder / "shallow.safetensors")
    return found.eval()


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def store(folder: Path) -> EngineStore:
    return EngineStore(folder / "store")


@pytest.fixture(scope="module")
def manifest(folder: Path, heard: Heard, store: EngineStore) -> Manifest:
    """A bundle that is built once."""
    return build(
        recipe_in(folder), folder / "legacy.opa", progress=heard, store=store, clock=UnsteadyClock()
    )


@pytest.fixture
def session(folder: Path, manifest: Manifest, store: EngineStore) -> Iterator[Session]:
    with load(folder / "legacy.opa", store=store, clock=TickingClock()) as opened:
        yield opened


def pixels(count: int = 8) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(4)
    return draw.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def configuration_of(route: str) -> Configuration:
    """``legacy1-shallow2`` as a configuration."""
    return Configuration(tuple(part.startswith("shallow") for part in route.split("-")))


# --- what is built ------------------------------------------------------------------------------


def test_every_stage_is_told(manifest: Manifest, heard: Heard) -> None:
    assert [*heard.lines] == [
        "data", "network", "configurations", "pioneer", "fold", "trace", "compile", "routes",
        "measure", "fit", "pack",
    ]  # fmt: skip
    assert "3 phases" in heard.lines["network"]
    assert "8 tried" in heard.lines["configurations"]
    assert "basic, exit head {} " in heard.lines["pioneer"]


def test_every_route_gives_what_its_configuration_gives(
    session: Session, network: Augmented
) -> None:
    data = TINY["data"]
    inputs = Preprocess(SIZE, SIZE, tuple(data["mean"]), tuple(data["std"]))(
        torch.from_numpy(pixels())
    )
    leaves = [n for n in session.tree.nodes.values() if n.system == OPA and not n.successors]
    assert len(leaves) > 1
    for leaf in leaves:
        session.use(f"static:{leaf.name}")
        found = session.infer(pixels(), 1e6)
        assert set(found.nodes) == {leaf.name}
        wanted = network(inputs, configuration_of(leaf.name)).detach().numpy()
        np.testing.assert_allclose(found.logits, wanted, rtol=1e-3, atol=1e-3)


def test_complete_networks_give_the_same(session: Session, network: Augmented) -> None:
    data = TINY["data"]
    inputs = Preprocess(SIZE, SIZE, tuple(data["mean"]), tuple(data["std"]))(
        torch.from_numpy(pixels())
    )
    wholes = [node for node in session.tree.nodes.values() if node.system == WHOLE]
    assert len(wholes) == 3
    for node in wholes:
        session.use(f"static:{node.name}")
        shallow = Configuration(tuple(bit > 0 for bit in node.code))
        wanted = network(inputs, shallow).detach().numpy()
        found = session.infer(pixels(), 1e6).logits
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_complete_networks_are_of_the_front_first(manifest: Manifest) -> None:
    found = manifest.report["configurations"]
    best = [tuple(row["shallow"]) for row in found["tried"] if row["front"]]
    kept = [tuple(bits) for bits in found["wholes"]]
    assert len(set(kept)) == 3
    assert set(best[:1] + best[-1:]) <= set(kept)
    assert set(best) <= set(kept) or set(kept) <= set(best)


def test_accuracies_are_those_of_each_nodes_own_way(manifest: Manifest, session: Session) -> None:
    """Segments are shared, answers are not."""
    accuracy = {node.name: node.accuracy for node in manifest.nodes if LOGITS in node.outputs}
    leaves = [name for name in accuracy if name.endswith("legacy3")]
    assert len(leaves) > 1
    assert len({accuracy[name] for name in leaves}) > 1
    assert all(node.accuracy == 0 for node in manifest.nodes if LOGITS not in node.outputs)


def test_the_routes_are_those_on_the_measured_fronts(manifest: Manifest) -> None:
    report = manifest.report["routes"]
    tried = {str(configuration(row)): row for row in manifest.report["configurations"]["tried"]}
    on_fronts = set()
    for batch, names in report["fronts"].items():
        ms = report["ms"][batch]
        for name in names:
            beaten = [
                other
                for other in tried
                if ms[other] <= ms[name] and tried[other]["accuracy"] > tried[name]["accuracy"]
            ]
            assert not beaten
        on_fronts |= set(names)
    deployed = {str(configuration({"shallow": bits})) for bits in report["routes"]}
    assert deployed <= on_fronts
    assert len(deployed) == min(5, len(on_fronts))
    leaves = {n.name for n in manifest.nodes if n.system == OPA and not n.successors}
    assert {str(configuration_of(name)) for name in leaves} == deployed


def configuration(row: dict[str, Any]) -> Configuration:
    return Configuration(tuple(bool(bit) for bit in row["shallow"]))


def test_alternatives_are_compiled_once_and_shared(folder: Path, manifest: Manifest) -> None:
    used = {node.segment for node in manifest.nodes}
    assert set(manifest.segments) == used
    assert {entry.segment for entry in manifest.engines} == used
    later = [node for node in manifest.nodes if node.source == FEATURES]
    assert len({node.segment for node in later}) < len(later)
    assert Bundle(folder / "legacy.opa").manifest.nodes == manifest.nodes


def test_a_stopped_build_goes_on(folder: Path, store: EngineStore, manifest: Manifest) -> None:
    out = folder / "again.opa"
    with pytest.raises(KeyboardInterrupt):
        build(recipe_in(folder), out, progress=Heard("routes"), store=store, clock=UnsteadyClock())
    heard = Heard()
    again = build(recipe_in(folder), out, progress=heard, store=store, clock=TickingClock())
    assert heard.lines["routes"].endswith("(found before)")
    assert again.nodes == manifest.nodes


# --- what runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["opa", "opa_split", "dynamic_ofa", "cascade", "static"])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_every_policy_answers_every_image(session: Session, policy: str, count: int) -> None:
    session.use(policy)
    for deadline in (1.0, 90.0, 1e6):
        result = session.infer(pixels(count), deadline)
        assert len(result.labels) == count
        assert all(LOGITS in session.tree[name].outputs for name in result.nodes)
        if policy == "cascade":
            assert {session.tree[name].system for name in result.nodes} == {CASCADE}


def test_the_first_phase_is_the_pioneer(session: Session) -> None:
    session.use("opa")
    result = session.infer(pixels(), 1e6)
    first, *rest = result.steps
    assert first.node in ("legacy1", "shallow1")
    assert first.decision is not None
    assert [step.node.count("-") for step in rest] == [1, 2]


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pioneer": {"stages": 3}}, RecipeError, "pioneer.stages = 3"),
        ({"pioneer": {"stages": 0}}, RecipeError, "1 to 2: phases before the first exit"),
        ({"pioneer": {"resolutions": [16]}}, RecipeError, "reads data.size"),
        ({"baselines": {"branchynet": 2}}, RecipeError, "one exit head"),
        ({"legacy": {"classes": 9}}, RecipeError, r"10 classes, \[legacy\] of recipe legacy"),
        ({"legacy": {"ratio": 0.25}}, CheckpointError, "has other ratio than this network"),
        ({"legacy": {"phases": ["basic", "inverted"]}}, CheckpointError, "has other phases"),
        ({"legacy": {"phases": []}}, ConfigError, "has no ready phases"),
        ({"legacy": {"phases": ["inverted", "basic"]}}, ConfigError, "basic"),
        ({"legacy": {"network": "resnet19"}}, UnknownNameError, "resnet19"),
        ({"legacy": {"network": "no_such_package:it"}}, ConfigError, "cannot be imported"),
        ({"legacy": {"network": "json:dumps"}}, ConfigError, "gives a str"),
        (
            {"legacy": {"network": "tests.builder.test_legacy:unfit"}},
            ConfigError,
            "gives a int",
        ),
        ({"legacy": {"network": "small_resnet"}}, CheckpointError, "names no weights"),
        ({"legacy": {"weights": "none.safetensors"}}, CheckpointError, "does not exist"),
        ({"checkpoint": "none.safetensors"}, CheckpointError, "does not exist"),
        ({"baselines": {"whole": 6}}, RecipeError, "baselines.whole = 6"),
    ],
)
def test_what_cannot_be_built_is_told_first(
    folder: Path, tmp_path: Path, changes: dict[str, Any], error: type[OpaError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(recipe_in(folder, **changes), tmp_path / "out.opa", store=EngineStore(tmp_path / "s"))
    assert not (tmp_path / "out.opa").exists()


def test_a_recipe_is_of_a_space_or_of_a_legacy_network(tmp_path: Path) -> None:
    for values in (
        {**LEGACY, "space": TINY["space"]},
        {key: value for key, value in LEGACY.items() if key != "legacy"},
    ):
        with pytest.raises(RecipeError, match=r"\[space\] and \[legacy\]"):
            recipe_from_dict(values, tmp_path)


def test_a_recipe_of_a_legacy_network_has_no_space(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="describes a legacy network"):
        recipe_in(tmp_path).make_space()


def test_weights_of_another_place_are_found(tmp_path: Path, folder: Path) -> None:
    moved = recipe_in(folder, legacy={"weights": "own.safetensors"}).with_checkpoint(
        tmp_path / "elsewhere.safetensors"
    )
    assert moved.checkpoint_path() == tmp_path / "elsewhere.safetensors"
    found = moved.folder / moved.legacy.weights
    assert found.resolve() == (folder / "own.safetensors").resolve()
    assert (
        json.loads(json.dumps(moved.to_dict()))["legacy"]["network"] == LEGACY["legacy"]["network"]
    )


def test_small_is_what_is_augmented() -> None:
    assert isinstance(trained(10), Small)
