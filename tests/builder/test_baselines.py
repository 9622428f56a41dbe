"""A build with every system that opa is compared with: nodes, segments, answers, thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import opa_trt
from opa_trt.builder import build
from opa_trt.builder.deployment import spread
from opa_trt.builder.pipeline import prepare
from opa_trt.bundle import Bundle
from opa_trt.errors import RecipeError
from opa_trt.policies import policy_names
from opa_trt.runtime import Session
from opa_trt.runtime.session import read_knowledge
from opa_trt.store import EngineStore
from opa_trt.supernet import Arch

BASELINES = {"whole": 3, "cascade": 2, "branchynet": 3}
SMALL = {"tails": {"count": 4, "candidates": 5, "complete": True}, "baselines": BASELINES}
SYSTEMS = {
    "opa": [
        *("pioneer", "tail1", "tail2", "tail3", "tail4"),
        *("pioneer-complete", "tail1-complete", "tail2-complete"),
    ],
    "whole": ["whole1", "whole2", "whole3"],
    "cascade": ["cascade1", "cascade2"],
    "branchynet": ["exit1", "exit2", "exit3"],
}


@pytest.fixture(scope="module")
def compared(make_recipe: Any, heard_by: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundle, where its latencies are kept, and what was heard. Interrupted once on its way."""
    folder = tmp_path_factory.mktemp("compared")
    recipe, store, heard = make_recipe(**SMALL), EngineStore(folder / "cache"), heard_by()
    with pytest.raises(KeyboardInterrupt):
        build(recipe, folder / "all.opa", store=store, progress=heard_by("measure"))
    build(recipe, folder / "all.opa", store=store, progress=heard)
    return folder / "all.opa", store, heard


@pytest.fixture(scope="module")
def bundle(compared: Any) -> Bundle:
    return Bundle(compared[0])


@pytest.fixture
def session(compared: Any) -> Any:
    with opa_trt.load(compared[0], store=compared[1], threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(5).integers(0, 256, (20, 3, 16, 16), dtype=np.uint8)


def test_every_system_has_its_nodes(bundle: Bundle) -> None:
    found: dict[str, list[str]] = {}
    for node in bundle.manifest.nodes:
        found.setdefault(node.system, []).append(node.name)
    assert found == SYSTEMS


def test_a_build_goes_on_with_all_of_them(compared: Any) -> None:
    lines = compared[2].lines
    assert [s for s, line in lines.items() if not line.endswith("(found before)")] == [
        "fit", "pack",
    ]  # fmt: skip
    assert "exit heads of exit2" in lines["calibrate"]


def test_a_cascade_and_the_first_exit_share_segments(bundle: Bundle) -> None:
    nodes = bundle.tree.nodes
    assert [nodes[name].segment for name in SYSTEMS["cascade"]] == ["whole1", "whole3"]
    assert nodes["exit1"].segment == "pioneer"
    names = [*SYSTEMS["opa"][:5], *SYSTEMS["whole"], "exit2", "exit3"]
    assert list(bundle.manifest.segments) == names


def test_complete_networks_run_from_the_fewest_to_the_most_macs(bundle: Bundle) -> None:
    nodes = bundle.tree.nodes
    macs = [nodes[name].macs for name in SYSTEMS["whole"]]
    assert macs == sorted(macs)
    assert len({nodes[name].code for name in SYSTEMS["whole"]}) == 3


def test_the_smallest_complete_network_is_a_pioneer_of_the_others(bundle: Bundle) -> None:
    nodes = bundle.tree.nodes
    first = nodes["pioneer-complete"]
    assert (first.segment, first.outputs) == ("whole1", ("logits",))
    assert first.successors == ("tail1-complete", "tail2-complete")
    rest = [nodes[name] for name in first.successors]
    assert [(node.segment, node.source) for node in rest] == [
        ("whole2", "images"), ("whole3", "images"),
    ]  # fmt: skip
    for node in (first, *rest):
        assert node.accuracy == nodes[node.segment].accuracy


def test_both_pioneers_have_models_and_typical_images(bundle: Bundle) -> None:
    knowledge = read_knowledge(bundle)
    both = {"pioneer", "pioneer-complete"}
    assert knowledge.rightness.keys() == knowledge.typical.keys() == both
    assert knowledge.estimators.keys() == both
    ends = knowledge.rightness["pioneer-complete"].nodes
    assert ends == ("pioneer-complete", "tail1-complete", "tail2-complete")


@pytest.mark.parametrize("name", ["pioneer", "pioneer-complete"])
def test_opa_goes_on_from_either_pioneer(session: Session, images: Any, name: str) -> None:
    tails = session.tree[name].successors
    for tail in tails:
        session.use(f"static:{tail}")
        found = session.infer(images, float("inf"))
        assert [step.node for step in found.steps[:2]] == [name, tail]


def test_macs_of_the_exits_add_up_to_the_network_and_its_heads(bundle: Bundle) -> None:
    nodes, report = bundle.tree.nodes, bundle.manifest.report
    head = report["calibrate"]["exits"]["exit2"]["head_macs"]
    assert head > 0
    assert nodes["exit2"].macs + nodes["exit3"].macs - head == nodes["tail4"].macs
    assert nodes["exit1"].macs == nodes["pioneer"].macs


def logits_at(session: Session, node: str, images: Any) -> Any:
    session.use(f"static:{node}")
    found = session.infer(images, float("inf"))
    assert set(found.nodes) == {node}
    return found.logits


def test_complete_networks_answer_as_the_super_network_s_do(
    make_recipe: Any, bundle: Bundle, session: Session, images: Any
) -> None:
    recipe = make_recipe(**SMALL)
    parts = prepare(recipe)
    space, archs = parts.supernet.space, bundle.manifest.report["wholes"]["archs"]
    for name, arch in zip(SYSTEMS["whole"], map(Arch.from_dict, archs), strict=True):
        node, side = session.tree[name], arch.resolution
        assert (node.macs, node.resolution) == (space.macs(arch), side)
        seen = parts.pools.calibration(side, recipe.calibrate.images)
        network = nn.Sequential(parts.preprocess(side), parts.uncut.calibrated_tail(arch, seen))
        with torch.no_grad():
            wanted = network(torch.from_numpy(images)).numpy()
        found = logits_at(session, name, images)
        np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))


def test_a_cascade_runs_the_same_networks(session: Session, images: Any) -> None:
    for share in SYSTEMS["cascade"]:
        found = logits_at(session, session.tree[share].segment, images)
        np.testing.assert_array_equal(logits_at(session, share, images), found)


def test_the_last_exit_is_the_largest_network(session: Session, images: Any) -> None:
    wanted = logits_at(session, "tail4", images)
    found = logits_at(session, "exit3", images)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
    assert np.abs(logits_at(session, "exit2", images) - wanted).max() > 1e-2


@pytest.mark.parametrize("policy", policy_names())
def test_every_policy_answers(session: Session, images: Any, policy: str) -> None:
    session.use(policy)
    for deadline in (0.01, float("inf")):
        result = session.infer(images, deadline)
        assert result.logits.shape == (20, 10)
        assert np.isfinite(result.logits).all()
        assert sum(step.answered for step in result.steps) == 20


def test_the_profile_knows_what_thresholds_bring(bundle: Bundle) -> None:
    chains, nodes = read_knowledge(bundle).chains, bundle.tree.nodes
    assert chains.keys() == {"cascade", "branchynet"}
    for system, chain in chains.items():
        first, last = (nodes[SYSTEMS[system][place]] for place in (0, -1))
        assert chain.reach.shape == (len(chain.accuracy), len(SYSTEMS[system]))
        assert chain.accuracy[0] == pytest.approx(first.accuracy, abs=1e-6)
        assert chain.accuracy.max() >= last.accuracy - 1e-6


def test_every_node_has_its_canary_and_its_latency(bundle: Bundle) -> None:
    canary = bundle.arrays("canary.safetensors")
    for node in bundle.manifest.nodes:
        for output in node.outputs:
            assert f"{node.name}/8/{output}" in canary
    assert list(bundle.manifest.report["measure"]["latency"]) == [*bundle.tree.nodes]


# --- recipes ------------------------------------------------------------------------------------


def test_none_is_built_where_none_is_asked_for(make_recipe: Any) -> None:
    wanted = make_recipe().baselines
    assert (wanted.whole, wanted.cascade, wanted.branchynet) == (0, 0, 0)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"whole": 1}, "baselines.whole = 1"),
        ({"whole": 99}, "2 to tails.candidates"),
        ({"whole": -1}, "baselines.whole = -1"),
        ({"whole": 4, "cascade": 4}, "baselines.cascade = 4"),
        ({"whole": 2, "cascade": 3}, "at most baselines.whole, which is 2"),
        ({"cascade": 2}, "at most baselines.whole, which is 0"),
        ({"branchynet": 1}, "2 or more exits"),
        ({"branchynet": -3}, "2 or more exits"),
        ({"wohle": 2}, "did you mean 'baselines.whole'"),
    ],
)
def test_what_cannot_be_is_refused(make_recipe: Any, wanted: dict[str, int], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe(baselines=wanted)


def test_a_complete_pioneer_needs_complete_networks(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match="at least 2 complete sub-networks"):
        make_recipe(tails={"complete": True}, baselines={})


def test_more_exits_than_the_network_has_stages_are_refused(
    make_recipe: Any, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"(?s)baselines\.branchynet = 4.*at most 3"):
        build(make_recipe(baselines={"branchynet": 4}), tmp_path / "out.opa")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", range(2, 20))
def test_what_is_spread_is_distinct_and_has_both_ends(count: int) -> None:
    for wanted in range(2, count + 1):
        places = spread(count, wanted)
        assert len(set(places)) == wanted
        assert (places[0], places[-1]) == (0, count - 1)
