"""Which pioneer is tried, how it is judged, which is taken, and a build that does so itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opa_trt
from opa_trt.builder import build
from opa_trt.builder.entries import Shape
from opa_trt.builder.foretelling import Foretold
from opa_trt.builder.study import Candidate, StudyPlan, Subject, choose, study_recipe
from opa_trt.builder.study_shapes import draw_shapes, most_stages
from opa_trt.errors import RecipeError
from opa_trt.evaluate.study_picture import draw_study
from opa_trt.store import EngineStore
from opa_trt.supernet import space_from_dict

PLAN = StudyPlan(counts=(2, 3, 2), deep=3, groups=40, rounds=2)
SMALL = {"pioneer": {"images": 60, "epochs": 1}, "fit": {"group_size": 12}}


@pytest.fixture(scope="module")
def studied(make_recipe: Any, heard_by: Any, ticking: Any) -> Any:
    heard = heard_by()
    return study_recipe(make_recipe(**SMALL), None, PLAN, clock=ticking(), progress=heard), heard


# --- shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1,), (2, 2), (3, 5, 9), (100, 100)])
def test_there_are_as_many_shapes_as_asked_for_and_as_there_are(
    make_recipe: Any, counts: tuple[int, ...]
) -> None:
    recipe = make_recipe(pioneer={"stages": 0})
    space = recipe.make_space()
    found = draw_shapes(space, recipe, counts, 20)
    for stages, count in enumerate(counts[:2], 1):  # a third stage would leave no tail
        own = [shape for shape in found if shape.stages == stages]
        assert len({shape.arch(space, 20) for shape in own}) == len(own) == min(count, 8)
    assert {shape.stages for shape in found} <= {1, 2}


def test_the_smallest_and_the_largest_shape_are_tried(make_recipe: Any) -> None:
    recipe = make_recipe(pioneer={"stages": 0})
    found = draw_shapes(recipe.make_space(), recipe, (2,), 20)
    assert found == [Shape(1, 1, 3, 1.0), Shape(1, 2, 5, 2.0)]


def test_the_recipes_own_shape_is_tried(make_recipe: Any) -> None:
    recipe = make_recipe()
    found = draw_shapes(recipe.make_space(), recipe, (2, 2), 20)
    assert found.count(Shape.of(recipe.pioneer)) == 1
    assert len(found) == 5


def test_a_seed_draws_the_same_shapes(make_recipe: Any) -> None:
    recipe = make_recipe(pioneer={"stages": 0})
    one, two, other = (
        draw_shapes(recipe.make_space(), replace(recipe, seed=seed), (4, 4), 20)
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_a_space_without_kernels_has_shapes(make_recipe: Any) -> None:
    space = space_from_dict({"name": "resnet50d", "classes": 10, "resolutions": [32]})
    recipe = make_recipe(pioneer={"stages": 0})
    found = draw_shapes(space, recipe, (9, 9), 32)
    assert len({shape.arch(space, 32) for shape in found}) == 18


def test_exits_leave_fewer_stages_to_a_pioneer(make_recipe: Any) -> None:
    space = make_recipe().make_space()  # of three stages
    assert most_stages(space, make_recipe(baselines={"branchynet": 3})) == 2
    assert most_stages(space, make_recipe(baselines={"branchynet": 4})) == 1
    with pytest.raises(RecipeError, match=r"(?s)branchynet = 5.*at most 4"):
        most_stages(space, make_recipe(baselines={"branchynet": 5}))


# --- the choice ---------------------------------------------------------------------------------


def candidate(r2: float, ms: float, low: float = 0.0, macs: int = 1) -> Candidate:
    subject = Subject("r20", macs, ms, 0.5)
    return Candidate(Shape(1, 1, 3, 1.0), subject, Foretold(r2, low, 1.0, (r2,)))


def test_the_fastest_within_the_interval_of_the_best_is_taken() -> None:
    found = [candidate(0.4, 1), candidate(0.61, 3), candidate(0.62, 2), candidate(0.7, 9, 0.6)]
    assert choose(found) == 2


def test_a_narrow_interval_leaves_the_best() -> None:
    assert choose([candidate(0.61, 1), candidate(0.7, 9, 0.69)]) == 1


def test_equally_fast_ones_go_by_macs() -> None:
    assert choose([candidate(0.7, 2, 0.5, macs=9), candidate(0.69, 2, macs=4)]) == 1


# --- the study ----------------------------------------------------------------------------------


def test_every_candidate_is_judged(studied: Any) -> None:
    found = studied[0]
    assert [one.shape.stages for one in found.candidates] == [1, 1, 2, 2, 2, 2]  # the last: its own
    for one in found.candidates:
        assert one.foretold.low <= one.foretold.r2 <= one.foretold.high <= 1
        assert len(one.foretold.by_deep) == len(found.deep) == 3
        assert 0 < one.subject.accuracy < 1
        assert one.subject.ms == 20.0  # as the clock ticks


def test_the_deep_ones_come_by_ascending_macs_and_foretell_themselves(studied: Any) -> None:
    deep = studied[0].deep
    assert [one.macs for one in deep] == sorted(one.macs for one in deep)
    assert np.diag(studied[0].pairwise) == pytest.approx(np.ones(3))
    assert np.diag(studied[0].correlation) == pytest.approx(np.ones(3))


def test_a_pioneers_macs_are_those_of_its_part_and_its_head(studied: Any, make_recipe: Any) -> None:
    recipe = make_recipe(**SMALL)
    space, own = recipe.make_space(), Shape.of(recipe.pioneer)
    (found,) = [one for one in studied[0].candidates if one.shape == own]
    trunk = [cost.macs for cost in space.costs(own.arch(space, 20)).values()][: own.stages + 1]
    assert found.subject.macs > sum(trunk)
    assert found.subject.arch == str(own.arch(space, 20))


def test_the_study_is_json_and_says_what_its_figures_are(studied: Any) -> None:
    found = json.loads(json.dumps(studied[0].to_dict()))
    taken = found["candidates"][found["chosen"]]
    assert found["choice"] == {key: taken[key] for key in found["choice"]}
    assert Shape(**found["choice"]) == studied[0].taken.shape
    assert "torch eager" in found["latency"]
    assert (found["batch"], found["group_size"], found["groups"]) == (8, 12, 40)
    assert found["resolution"] == 20


def test_it_tells_what_it_takes(studied: Any) -> None:
    found, heard = studied
    assert list(heard.lines) == ["data", "study"]
    assert str(found.taken.shape) in heard.lines["study"]
    assert "of 6 candidates" in heard.lines["study"]


def test_a_resolution_that_the_space_lacks_is_refused(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r"pioneer\.resolutions = \[18\]"):
        study_recipe(make_recipe(pioneer={"resolutions": [18]}), None, PLAN)


def test_it_is_drawn(studied: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_study(tmp_path / "study.png", studied[0], title="tiny")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


# --- a build that chooses -----------------------------------------------------------------------


def test_a_build_takes_what_its_study_chose(
    make_recipe: Any, heard_by: Any, ticking: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(
        pioneer={"stages": 0, "resolutions": [16, 20], "images": 60, "epochs": 1},
        tails={"count": 2, "candidates": 3},
        compile={"backends": ["null"]},
    )
    store, out = EngineStore(tmp_path / "cache"), tmp_path / "out.opa"
    with pytest.raises(KeyboardInterrupt):
        build(recipe, out, store=store, clock=ticking(), progress=heard_by("pioneer"))
    heard = heard_by()
    manifest = build(recipe, out, store=store, clock=ticking(), progress=heard)
    assert list(heard.lines)[:4] == ["data", "supernet", "study", "pioneer"]
    assert heard.lines["study"].endswith("(found before)")
    shape, space = Shape(**manifest.report["study"]["choice"]), recipe.make_space()
    assert manifest.report["study"]["resolution"] == 20
    for node in manifest.tree.entries:
        assert space.decode(node.code) == shape.arch(space, node.resolution)
    with opa_trt.load(out, store=store) as session:
        images = np.zeros((3, 3, 16, 16), dtype=np.uint8)
        assert session.infer(images, 1000.0).logits.shape == (3, 10)


def test_too_many_exits_are_refused_before_anything_runs(make_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"branchynet = 5"):
        build(make_recipe(pioneer={"stages": 0}, baselines={"branchynet": 5}), tmp_path / "out.opa")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_names_its_pioneer_makes_no_study(built: Any) -> None:
    assert "study" not in built.manifest.report
