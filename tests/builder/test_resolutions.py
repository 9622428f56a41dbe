"""A build with two resolutions: a pioneer for each, its own tails, and what is known of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import opa_trt
from opa_trt.builder import build
from opa_trt.builder.network import run_batches
from opa_trt.builder.sources import load_splits, source_of
from opa_trt.bundle import PROFILE, Bundle
from opa_trt.errors import RecipeError
from opa_trt.runtime import Session
from opa_trt.runtime.session import read_knowledge
from opa_trt.store import EngineStore
from opa_trt.supernet import Arch, load
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.preprocess import Preprocess

SIDES = (16, 20)
PIONEERS = ["pioneer-16", "pioneer-20"]
TAILS = {side: [f"tail{i}-{side}" for i in (1, 2, 3)] for side in SIDES}
OPA = [name for side in SIDES for name in (f"pioneer-{side}", *TAILS[side])]
CHANGES: dict[str, Any] = {
    "pioneer": {"resolutions": [20, 16]},
    "tails": {"count": 3, "candidates": 5},
    "baselines": {"whole": 5, "cascade": 2, "branchynet": 2},
}


@pytest.fixture(scope="module")
def made(make_recipe: Any, heard_by: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Recipe, bundle, store and what was heard. Interrupted once on its way."""
    folder = tmp_path_factory.mktemp("resolutions")
    recipe, store, heard = make_recipe(**CHANGES), EngineStore(folder / "cache"), heard_by()
    with pytest.raises(KeyboardInterrupt):
        build(recipe, folder / "two.opa", store=store, progress=heard_by("trace"))
    build(recipe, folder / "two.opa", store=store, progress=heard)
    return recipe, Bundle(folder / "two.opa"), store, heard


@pytest.fixture(scope="module")
def bundle(made: Any) -> Bundle:
    found: Bundle = made[1]
    return found


@pytest.fixture
def session(made: Any) -> Any:
    with opa_trt.load(made[1].path, store=made[2], threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (12, 3, 16, 16), dtype=np.uint8)


# --- the tree -----------------------------------------------------------------------------------


def test_every_resolution_has_a_pioneer_and_its_tails(bundle: Bundle) -> None:
    nodes = [node for node in bundle.manifest.nodes if node.system == "opa"]
    assert [node.name for node in nodes] == OPA
    assert {n.name: n.successors for n in nodes if n.successors} == {
        f"pioneer-{side}": tuple(TAILS[side]) for side in SIDES
    }
    assert [n.resolution for n in nodes] == [side for side in SIDES for _ in range(4)]
    assert [n.segment for n in nodes] == OPA


def test_a_nodes_arch_is_at_its_resolution(made: Any) -> None:
    space = made[0].make_space()
    for node in made[1].manifest.nodes:
        assert space.decode(node.code).resolution == node.resolution


def test_a_smaller_resolution_takes_fewer_macs(bundle: Bundle) -> None:
    macs = [bundle.tree[name].macs for name in PIONEERS]
    assert macs[0] < macs[1]


def test_every_node_was_measured(bundle: Bundle) -> None:
    latency = bundle.manifest.report["measure"]["latency"]
    assert list(latency) == [node.name for node in bundle.manifest.nodes]
    assert all(0 < node.accuracy < 1 for node in bundle.manifest.nodes)


def test_one_resolution_has_plain_names_at_any_size(
    make_recipe: Any, heard_by: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(
        pioneer={"resolutions": [16]},
        tails={"count": 2, "candidates": 3},
        compile={"backends": ["null"]},
    )
    manifest = build(recipe, tmp_path / "one.opa", store=EngineStore(tmp_path / "cache"))
    assert {node.name: node.resolution for node in manifest.nodes} == {
        "pioneer": 16, "tail1": 16, "tail2": 16,
    }  # fmt: skip


def test_no_resolution_is_the_largest_of_the_space(
    make_recipe: Any, heard_by: Any, tmp_path: Path
) -> None:
    heard = heard_by("pioneer")
    with pytest.raises(KeyboardInterrupt):
        build(make_recipe(pioneer={"resolutions": []}), tmp_path / "o.opa", progress=heard)
    assert "(r20 " in heard.lines["pioneer"]


# --- the same answers as the networks in one piece ----------------------------------------------


def monolith(recipe: Any, arch: Arch) -> nn.Sequential:
    """The whole network of ``arch``: extracted and calibrated again, nothing folded or traced."""
    network, data, wanted = load(recipe.checkpoint_path()).extract(arch), recipe.data, recipe
    inputs = source_of(recipe).inputs(
        load_splits(recipe, None).train, wanted.calibrate.images, wanted.calibrate.batch,
        arch.resolution, recipe.seed,
    )  # fmt: skip
    batches, cut = list(inputs), recipe.pioneer.stages + 1
    trunk, tail = network[:cut], network[cut:]
    calibrate(trunk, batches)
    calibrate(tail, run_batches(trunk, batches))
    return nn.Sequential(Preprocess(data.size, arch.resolution, data.mean, data.std), network)


@pytest.mark.parametrize("side", SIDES)
def test_pioneer_and_tail_answer_as_the_network_in_one_piece(
    made: Any, session: Session, images: npt.NDArray[np.uint8], side: int
) -> None:
    space = made[0].make_space()
    for name in TAILS[side]:
        session.use(f"static:{name}")
        answered = session.infer(images, float("inf"))
        assert [step.node for step in answered.steps[:2]] == [f"pioneer-{side}", name]
        arch = space.decode(session.tree[name].code)
        with torch.no_grad():
            whole = monolith(made[0], arch)(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(
            answered.logits, whole, atol=1e-4 * max(1.0, float(np.abs(whole).max()))
        )


# --- what it is compared with -------------------------------------------------------------------


def test_complete_networks_come_from_all_resolutions(bundle: Bundle) -> None:
    report = bundle.manifest.report["wholes"]
    tried = {row["arch"].split()[0] for row in report["candidates"]}
    assert tried >= {f"r{side}" for side in SIDES}
    wholes = [node for node in bundle.manifest.nodes if node.system == "whole"]
    assert len(wholes) == 5
    assert [node.macs for node in wholes] == sorted(node.macs for node in wholes)


def test_exits_lie_along_the_largest_resolution(bundle: Bundle) -> None:
    tree = bundle.tree
    exits = [node for node in bundle.manifest.nodes if node.system == "branchynet"]
    assert [node.segment for node in exits] == ["pioneer-20", "exit2"]
    assert {node.resolution for node in exits} == {20}
    assert exits[-1].macs == tree["tail3-20"].macs


@pytest.mark.parametrize("policy", ["opa", "opa_split", "dynamic_ofa", "cascade", "branchynet"])
def test_every_policy_answers(session: Session, images: npt.NDArray[np.uint8], policy: str) -> None:
    session.use(policy)
    for deadline in (0.01, float("inf")):
        result = session.infer(images, deadline)
        assert np.isfinite(result.logits).all()
        assert sum(step.answered for step in result.steps) == len(images)


# --- what is known ------------------------------------------------------------------------------


def test_every_pioneer_has_its_own_estimator_and_models(bundle: Bundle) -> None:
    knowledge = read_knowledge(bundle)
    assert list(knowledge.estimators) == PIONEERS
    one, other = knowledge.estimators.values()
    assert not np.array_equal(one.weight, other.weight)
    assert {source: model.nodes for source, model in knowledge.rightness.items()} == {
        f"pioneer-{side}": (f"pioneer-{side}", *TAILS[side]) for side in SIDES
    }


def test_the_profile_holds_all_that_is_known(bundle: Bundle) -> None:
    arrays, knowledge = bundle.arrays(PROFILE), read_knowledge(bundle)
    found = knowledge.to_arrays()
    assert found.keys() == arrays.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, arrays[name])


def test_the_predictor_tells_the_resolutions_apart(bundle: Bundle) -> None:
    knowledge = read_knowledge(bundle)
    codes = np.stack([knowledge.codes["tail3-16"], knowledge.codes["tail3-20"]])
    small, large = knowledge.predictor.accuracies(0.5, codes)
    assert small != large


def test_the_report_has_figures_of_every_pioneer_and_their_mean(bundle: Bundle) -> None:
    facts = bundle.manifest.report["fit"]
    assert list(facts["entries"]) == PIONEERS
    for key in ("judgement", "rmse", "r2"):
        assert facts[key] == pytest.approx(np.mean([facts["entries"][n][key] for n in PIONEERS]))
    losses = [facts["entries"][name]["rightness"]["log_loss"] for name in PIONEERS]
    assert facts["rightness"]["log_loss"] == pytest.approx(np.mean(losses))
    assert list(facts["rightness"]["gains"]) == [n for side in SIDES for n in TAILS[side]]


def test_lines_tell_of_every_pioneer(made: Any) -> None:
    lines = made[3].lines
    assert "r16 " in lines["pioneer"]
    assert "r20 " in lines["pioneer"]
    assert "pioneer-16 " in lines["measure"]
    assert "pioneer-20 " in lines["measure"]
    assert "mean of 2 pioneers" in lines["fit"]
    assert lines["tails"].startswith("6 of 10 candidates")


# --- refused ------------------------------------------------------------------------------------


def test_a_repeated_resolution_is_refused(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match="every resolution once") as caught:
        make_recipe(pioneer={"resolutions": [16, 20, 16]})
    assert "pioneer.resolutions = [16, 20, 16]" in str(caught.value)


def test_the_key_for_one_resolution_is_none(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'pioneer\.resolutions'"):
        make_recipe(pioneer={"resolution": 16})


def test_a_resolution_that_the_space_lacks_is_refused_before_anything_runs(
    make_recipe: Any, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"pioneer\.resolutions = \[32\]") as caught:
        build(make_recipe(pioneer={"resolutions": [16, 32]}), tmp_path / "out.opa")
    assert caught.value.expected == "some of space.resolutions: 16, 20."
    assert list(tmp_path.iterdir()) == []
