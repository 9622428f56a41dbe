"""A whole build: the bundle that it makes, and what is left when it is stopped or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

import opa_trt
from opa_trt.backends import backend
from opa_trt.builder import STAGES, build
from opa_trt.builder.network import run_batches
from opa_trt.builder.pooling import draw
from opa_trt.builder.sources import load_splits, source_of
from opa_trt.bundle import Bundle, Manifest
from opa_trt.errors import ArchError, BundleError, CheckpointError, OpaError, RecipeError
from opa_trt.runtime import Session
from opa_trt.runtime.session import read_knowledge
from opa_trt.store import EngineStore
from opa_trt.supernet import Arch, load
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.fold import TOLERANCE
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.tree import PlanEntry

TAILS = [f"tail{i + 1}" for i in range(8)]
NULL = {"backends": ["null"]}
FEW = {"count": 2, "candidates": 3}  # tails, where the end of a build is looked at
FOUND = "(found before)"

Logits = npt.NDArray[np.float32]


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden things too."""
    return sorted(path.name for path in folder.iterdir())


# --- the bundle ---------------------------------------------------------------------------------


def test_the_bundle_opens(built: Any) -> None:
    assert Bundle(built.path).manifest.to_json() == built.manifest.to_json()


def test_there_are_as_many_tails_as_the_recipe_says(built: Any) -> None:
    assert list(built.manifest.tree.nodes) == ["pioneer", *TAILS]


def test_every_stage_is_heard_in_order(built: Any) -> None:
    assert list(built.heard.lines) == [*STAGES, "pack"]


def test_nothing_is_left_beside_the_bundle(built: Any) -> None:
    assert names(built.path.parent) == ["cache", "tiny.opa"]


def test_the_manifest_holds_recipe_and_classes(built: Any) -> None:
    assert built.manifest.recipe == built.recipe.to_dict()
    assert built.manifest.recipe_sha256 == built.recipe.digest()
    assert built.manifest.classes == tuple("0123456789")


def test_the_manifest_says_what_images_it_takes(built: Any) -> None:
    images, data = built.manifest.images, built.recipe.data
    assert (images.size, images.dtype) == (data.size, "uint8")
    assert (images.mean, images.std) == (data.mean, data.std)


def test_no_two_tails_are_one(built: Any) -> None:
    codes = [node.code for node in built.manifest.nodes]
    assert len(set(codes[1:])) == len(TAILS)


def test_a_nodes_code_is_that_of_its_arch(built: Any) -> None:
    space = built.recipe.make_space()
    decoded = [space.decode(node.code) for node in built.manifest.nodes[1:]]
    assert decoded == tail_archs(built)


def test_every_tail_continues_the_pioneer(built: Any) -> None:
    space, wanted = built.recipe.make_space(), built.recipe.pioneer
    pioneer = space.decode(built.manifest.nodes[0].code)
    assert pioneer.depths[: wanted.stages] == (wanted.depth,) * wanted.stages
    for arch in tail_archs(built):
        assert space.graft(pioneer, arch, wanted.stages) == arch


def test_macs_of_trunk_and_tail_add_up_to_those_of_the_whole(built: Any) -> None:
    space = built.recipe.make_space()
    first = built.recipe.pioneer.stages + 1
    for node, arch in zip(built.manifest.nodes[1:], tail_archs(built), strict=True):
        trunk = sum(cost.macs for cost in list(space.costs(arch).values())[:first])
        assert trunk + node.macs == space.macs(arch)


def test_tails_come_by_ascending_macs(built: Any) -> None:
    macs = [node.macs for node in built.manifest.nodes[1:]]
    assert macs == sorted(macs)


def test_every_backend_has_an_engine_of_every_segment(built: Any) -> None:
    found = {(engine.target.backend, engine.segment) for engine in built.manifest.engines}
    wanted = built.recipe.compile.backends
    assert found == {(name, node) for name in wanted for node in ["pioneer", *TAILS]}


def test_the_fastest_backend_is_the_bundles(built: Any) -> None:
    ms = built.manifest.report["compile"]["ms"]
    rows = [row for by_batch in ms.values() for row in by_batch.values()]
    means = {
        name: np.mean([np.log(row[name] / min(row.values())) for row in rows if name in row])
        for name in rows[0]  # later rows lack those that were hopeless in the first
    }
    assert built.manifest.backend == min(means, key=means.get)


def test_the_plan_names_who_runs_every_segment(built: Any) -> None:
    whole = (PlanEntry(built.manifest.backend, "fp32", 1, 8),)
    assert built.manifest.plan == dict.fromkeys(["pioneer", *TAILS], whole)


def test_every_segment_has_its_portable_forms(built: Any) -> None:
    for name, segment in built.manifest.segments.items():
        assert segment.forms == {
            "torchscript": f"segments/{name}.pt",
            "onnx": f"segments/{name}.onnx",
        }


def test_the_canary_holds_the_smallest_and_the_largest_batch(built: Any) -> None:
    canary = Bundle(built.path).arrays("canary.safetensors")
    assert {key for key in canary if key.startswith("images/")} == {"images/1", "images/8"}
    assert canary["tail8/8/logits"].shape == (8, 10)


def test_policies_can_read_what_was_learned(built: Any) -> None:
    knowledge = read_knowledge(Bundle(built.path))
    codes = np.stack([knowledge.codes[name] for name in TAILS])
    predicted = knowledge.predictor.accuracies(0.5, codes)
    assert predicted.shape == (len(TAILS),)
    assert np.isfinite(predicted).all()


# --- the report ---------------------------------------------------------------------------------


def test_every_stage_reports_its_line(built: Any) -> None:
    report = Bundle(built.path).manifest.report
    assert {stage: report[stage]["line"] for stage in STAGES} == {
        stage: built.heard.lines[stage] for stage in STAGES
    }


@pytest.mark.parametrize("stage", ["fold", "trace"])
def test_the_report_has_the_parity_of_every_segment(built: Any, stage: str) -> None:
    parity = built.manifest.report[stage]["parity"]
    assert list(parity) == ["pioneer", *TAILS]
    assert all(0 <= value <= TOLERANCE for value in parity.values())


@pytest.mark.parametrize("key", ["judgement", "judgement_base", "rmse", "r2"])
def test_the_report_has_held_out_figures(built: Any, key: str) -> None:
    assert np.isfinite(built.manifest.report["fit"][key])


def test_the_report_says_how_many_images_were_held_out(built: Any) -> None:
    conditions = 1 + 3 * len(built.recipe.data.degradations)
    images = built.recipe.fit.images // conditions * conditions
    assert built.manifest.report["fit"]["images"] == images


def test_the_report_has_the_accuracy_of_every_node(built: Any) -> None:
    accuracy = built.manifest.report["measure"]["accuracy"]
    assert accuracy == {node.name: node.accuracy for node in built.manifest.nodes}
    assert all(0 <= value <= 1 for value in accuracy.values())


def test_the_report_has_the_latency_of_every_node(built: Any) -> None:
    latency = Bundle(built.path).manifest.report["measure"]["latency"]
    assert list(latency) == ["pioneer", *TAILS]
    assert all(profile["batches"] == [1, 8] for profile in latency.values())


def test_the_report_names_every_candidate(built: Any) -> None:
    found = built.manifest.report["tails"]["candidates"]["pioneer"]
    assert len(found) == built.recipe.tails.candidates
    assert {str(arch) for arch in tail_archs(built)} <= {entry["arch"] for entry in found}


# --- the same answers as the network in one piece -----------------------------------------------


def tail_archs(built: Any) -> list[Arch]:
    """The archs that the report names."""
    return [Arch.from_dict(values) for values in built.manifest.report["tails"]["archs"]["pioneer"]]


def monolith(built: Any, arch: Arch) -> nn.Sequential:
    """The whole network of ``arch``: extracted and calibrated again, nothing folded or traced."""
    recipe, data = built.recipe, built.recipe.data
    path = recipe.checkpoint_path()
    network = load(path).extract(arch)
    train = load_splits(recipe, None).train
    inputs = list(
        source_of(recipe).inputs(
            train, recipe.calibrate.images, recipe.calibrate.batch, arch.resolution, recipe.seed
        )
    )
    cut = recipe.pioneer.stages + 1
    trunk, tail = network[:cut], network[cut:]
    calibrate(trunk, inputs)
    calibrate(tail, run_batches(trunk, inputs))
    return nn.Sequential(Preprocess(data.size, arch.resolution, data.mean, data.std), network)


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    """Twenty: two full chunks and a smaller one."""
    return np.random.default_rng(5).integers(0, 256, (20, 3, 16, 16), dtype=np.uint8)


@pytest.fixture(scope="module")
def whole(built: Any, images: npt.NDArray[np.uint8]) -> dict[str, Logits]:
    """Logits of every tail's network in one piece."""
    with torch.no_grad():
        return {
            name: monolith(built, arch)(torch.from_numpy(images)).numpy()
            for name, arch in zip(TAILS, tail_archs(built), strict=True)
        }


@pytest.fixture(scope="module", params=["torchscript", "openvino", "onnxruntime"])
def session(built: Any, request: pytest.FixtureRequest) -> Iterator[Session]:
    """The bundle, loaded on each backend."""
    state = backend(request.param).availability()
    if not state:
        pytest.skip(f"{request.param} does not work here: {state.reason}")
    with opa_trt.load(built.path, backend=request.param, store=built.store, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("tail", TAILS)
def test_pioneer_and_tail_answer_as_the_network_in_one_piece(
    session: Session, images: npt.NDArray[np.uint8], whole: dict[str, Logits], tail: str
) -> None:
    session.use(f"static:{tail}")
    answered = session.infer(images, float("inf"))
    assert set(answered.nodes) == {tail}
    scale = max(1.0, float(np.abs(whole[tail]).max()))
    assert np.abs(answered.logits - whole[tail]).max() <= 1e-4 * scale


def test_no_other_tail_would_pass_for_it(whole: dict[str, Logits]) -> None:
    for i, one in enumerate(TAILS):
        for other in TAILS[i + 1 :]:
            assert np.abs(whole[one] - whole[other]).max() > 1e-2 * np.abs(whole[one]).max()


def test_a_tails_accuracy_is_that_of_the_network_in_one_piece(built: Any) -> None:
    recipe = built.recipe
    held_out = load_splits(recipe, None).fit
    fitting = held_out.select(np.arange(1, len(held_out), 2))
    pixels, labels, _ = draw(fitting, source_of(recipe), recipe.fit.images, recipe.seed + 1)
    with torch.no_grad():
        found = monolith(built, tail_archs(built)[-1])(torch.from_numpy(pixels)).argmax(1).numpy()
    near = pytest.approx((found == labels).mean(), abs=1.5 / len(labels))  # one may lie on the edge
    assert built.manifest.nodes[-1].accuracy == near


def test_the_held_out_figures_are_those_of_the_test_images(built: Any, session: Session) -> None:
    recipe = built.recipe
    test = load_splits(recipe, None).test
    pixels, labels, _ = draw(test, source_of(recipe), recipe.fit.images, recipe.seed + 1)
    session.use("static:pioneer")
    logits = session.infer(pixels, float("inf")).logits
    right = logits.argmax(axis=1) == labels
    judged = read_knowledge(Bundle(built.path)).estimators["pioneer"].right(logits)
    reported, edge = built.manifest.report["fit"], 1.5 / len(labels)  # one may lie on the edge
    assert reported["judgement"] == pytest.approx((judged == right).mean(), abs=edge)
    assert reported["judgement_base"] == pytest.approx(
        max(right.mean(), 1 - right.mean()), abs=edge
    )


def test_the_build_machines_profiles_are_found_again(built: Any) -> None:
    measured = built.manifest.report["measure"]["latency"]
    with opa_trt.load(built.path, store=built.store, threads=1) as session:
        found = {name: profile.ms for name, profile in session.profiles.items()}
    assert found == {name: tuple(map(tuple, each["ms"])) for name, each in measured.items()}


# --- stopped and called again -------------------------------------------------------------------


@dataclass(frozen=True)
class Stop:
    """What one call told before it was interrupted, and what then lay in the folder."""

    lines: dict[str, str]
    beside: list[str]
    kept: list[str]


@dataclass(frozen=True)
class Stopped:
    """A build that was interrupted as each stage finished, and then went through."""

    stops: dict[str, Stop]
    manifest: Manifest
    lines: dict[str, str]
    beside: list[str]


@pytest.fixture(scope="module")
def stopped(
    make_recipe: Any, heard_by: Any, ticking: Any, tmp_path_factory: pytest.TempPathFactory
) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    recipe, out, stops = make_recipe(compile=NULL), folder / "out.opa", {}
    store = EngineStore(tmp_path_factory.mktemp("store"))
    for stage in STAGES:
        heard = heard_by(stage)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, out, progress=heard, store=store, clock=ticking())
        stops[stage] = Stop(heard.lines, names(folder), names(folder / "out.opa.work"))
    heard = heard_by()
    manifest = build(recipe, out, progress=heard, store=store, clock=ticking())
    return Stopped(stops, manifest, heard.lines, names(folder))


@pytest.fixture(scope="module")
def through(make_recipe: Any, ticking: Any, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same build, never interrupted."""
    folder = tmp_path_factory.mktemp("through")
    store = EngineStore(folder / "store")
    return build(make_recipe(compile=NULL), folder / "out.opa", store=store, clock=ticking())


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_build_leaves_its_findings_alone(stopped: Stopped, stage: str) -> None:
    stop, finished = stopped.stops[stage], list(STAGES)[: list(STAGES).index(stage) + 1]
    assert stop.beside == ["out.opa.work"]
    assert stop.kept == sorted(finished)


@pytest.mark.parametrize("stage", STAGES)
def test_the_next_call_finds_what_was_finished(stopped: Stopped, stage: str) -> None:
    lines = stopped.stops[stage].lines
    before = [name for name, line in lines.items() if line.endswith(FOUND)]
    assert before == list(STAGES)[: list(STAGES).index(stage)]


def test_a_stage_that_was_found_tells_the_same_line(stopped: Stopped) -> None:
    for stage, stop in stopped.stops.items():
        assert stopped.lines[stage] == f"{stop.lines[stage]} {FOUND}"


def test_the_last_call_ends_with_the_bundle_alone(stopped: Stopped) -> None:
    assert stopped.beside == ["out.opa"]


def test_a_build_in_pieces_gives_the_same_segments(stopped: Stopped, through: Manifest) -> None:
    assert {name: segment.content for name, segment in stopped.manifest.segments.items()} == {
        name: segment.content for name, segment in through.segments.items()
    }


def test_a_build_in_pieces_gives_the_same_manifest(stopped: Stopped, through: Manifest) -> None:
    plain = [json.loads(replace(m, files={}).to_json()) for m in (stopped.manifest, through)]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("file", ["profile.safetensors", "canary.safetensors"])
def test_a_build_in_pieces_gives_the_same_arrays(
    stopped: Stopped, through: Manifest, file: str
) -> None:
    assert stopped.manifest.files[file] == through.files[file]


def test_the_backends_do_not_change_the_segments(built: Any, through: Manifest) -> None:
    assert {name: segment.content for name, segment in built.manifest.segments.items()} == {
        name: segment.content for name, segment in through.segments.items()
    }


def test_interrupted_within_a_stage_nothing_of_it_is_kept(
    make_recipe: Any, heard_by: Any, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(make_recipe(), tmp_path / "out.opa", progress=heard_by(advance="tail3"))
    assert names(tmp_path) == ["out.opa.work"]
    assert names(tmp_path / "out.opa.work") == ["data", "pioneer", "supernet", "tails"]


def test_a_damaged_finding_is_made_again(make_recipe: Any, heard_by: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(make_recipe(), tmp_path / "out.opa", progress=heard_by("pioneer"))
    (tmp_path / "out.opa.work" / "pioneer" / "arrays.safetensors").write_bytes(b"")
    heard = heard_by("pioneer")
    with pytest.raises(KeyboardInterrupt):
        build(make_recipe(), tmp_path / "out.opa", progress=heard)
    assert [line.endswith(FOUND) for line in heard.lines.values()] == [True, True, False]


# --- what makes old findings worthless ----------------------------------------------------------


@pytest.fixture
def begun(
    make_recipe: Any, heard_by: Any, weights: Path, tmp_path: Path
) -> Callable[..., dict[str, str]]:
    """Begins the build of a folder of images and stops it after its first stage: its lines."""
    shutil.copy(weights / "two.safetensors", tmp_path / "weights.safetensors")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    recipe = make_recipe(data={"source": "folder"}, space={"classes": 2})
    recipe = replace(recipe, folder=tmp_path, checkpoint="weights.safetensors")

    def begin(**changes: Any) -> dict[str, str]:
        heard = heard_by("data")
        with pytest.raises(KeyboardInterrupt):
            build(
                replace(recipe, **changes),
                tmp_path / "out.opa",
                data=tmp_path / "photos",
                progress=heard,
            )
        return dict(heard.lines)

    return begin


def test_nothing_changed_finds_what_there_was(begun: Callable[..., dict[str, str]]) -> None:
    begun()
    assert begun()["data"].endswith(FOUND)


def test_another_recipe_begins_anew(begun: Callable[..., dict[str, str]]) -> None:
    begun()
    assert not begun(seed=9)["data"].endswith(FOUND)


def test_another_number_of_threads_begins_anew(
    begun: Callable[..., dict[str, str]], make_recipe: Any
) -> None:
    begun()
    threads = make_recipe(compile={"threads": 2}).compile
    assert not begun(compile=threads)["data"].endswith(FOUND)


def test_other_weights_begin_anew(
    begun: Callable[..., dict[str, str]], weights: Path, tmp_path: Path
) -> None:
    begun()
    shutil.copy(weights / "other.safetensors", tmp_path / "weights.safetensors")
    assert not begun()["data"].endswith(FOUND)


@pytest.mark.parametrize("part", ["train", "test"])
def test_another_image_begins_anew(
    begun: Callable[..., dict[str, str]], tmp_path: Path, part: str
) -> None:
    begun()
    path = tmp_path / "photos" / part / "cat" / "0.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert not begun()["data"].endswith(FOUND)


# --- what stands at the place -------------------------------------------------------------------


def test_a_bundle_that_stands_there_is_replaced(
    built: Any, make_recipe: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.opa"
    shutil.copytree(built.path, out)
    build(make_recipe(compile=NULL, tails=FEW), out)
    assert Bundle(out).manifest.backend == "null"
    assert {path.suffix for path in (out / "engines").iterdir()} == {".null"}
    assert names(tmp_path) == ["out.opa"]


def test_a_bundle_that_stands_there_stays_until_the_end(
    built: Any, make_recipe: Any, heard_by: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.opa"
    shutil.copytree(built.path, out)
    with pytest.raises(KeyboardInterrupt):
        build(make_recipe(compile=NULL, tails=FEW), out, progress=heard_by(start="pack"))
    assert Bundle(out).manifest.to_json() == built.manifest.to_json()


def test_interrupted_as_it_is_packed_the_bundle_is_whole(
    make_recipe: Any, heard_by: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.opa"
    with pytest.raises(KeyboardInterrupt):
        build(make_recipe(compile=NULL, tails=FEW), out, progress=heard_by("pack"))
    assert Bundle(out).manifest.backend == "null"


def test_an_empty_folder_may_become_the_bundle(
    make_recipe: Any, heard_by: Any, tmp_path: Path
) -> None:
    (tmp_path / "out.opa").mkdir()
    with pytest.raises(KeyboardInterrupt):
        build(make_recipe(), tmp_path / "out.opa", progress=heard_by("data"))
    assert names(tmp_path) == ["out.opa", "out.opa.work"]


def folder_of_photos(place: Path) -> None:
    place.mkdir()
    (place / "holiday.jpg").write_bytes(b"jpeg")


def text_file(place: Path) -> None:
    place.write_text("notes", encoding="utf-8")


@pytest.mark.parametrize("stand", [folder_of_photos, text_file])
def test_what_is_no_bundle_is_never_replaced(
    make_recipe: Any, tmp_path: Path, stand: Callable[[Path], None]
) -> None:
    out = tmp_path / "out.opa"
    stand(out)
    with pytest.raises(BundleError, match="is no bundle") as caught:
        build(make_recipe(), out)
    assert caught.value.expected
    assert names(tmp_path) == ["out.opa"]
    assert out.is_file() or names(out) == ["holiday.jpg"]


# --- refused ------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], type[OpaError], str]] = {
    "no checkpoint named": ({"checkpoint": ""}, CheckpointError, "names no checkpoint"),
    "no such checkpoint": ({"checkpoint": "gone.safetensors"}, CheckpointError, "does not exist"),
    "another space": (
        {"space": {"feature_width": 32}}, CheckpointError, "disagree on the space's feature_width",
    ),
    "another number of classes": ({"space": {"classes": 7}}, RecipeError, "have 10 classes"),
    "a kernel that is not offered": ({"pioneer": {"kernel_size": 7}}, ArchError, "kernel size"),
    "a resolution that is none": (
        {"pioneer": {"resolutions": [16, 18]}}, RecipeError, "pioneer.resolutions = [18]",
    ),
    "a pioneer of all stages": ({"pioneer": {"stages": 3}}, RecipeError, "pioneer.stages = 3"),
    "an unknown backend": ({"compile": {"backends": ["tensorflow"]}}, OpaError, "tensorflow"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_built_is_refused(
    make_recipe: Any, tmp_path: Path, changes: dict[str, Any], kind: type[OpaError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        build(make_recipe(**changes), tmp_path / "out.opa")
    assert says in str(caught.value)
    assert caught.value.expected


@pytest.mark.parametrize("changes", [each[0] for each in REFUSED.values()], ids=REFUSED.keys())
def test_what_is_refused_leaves_nothing(
    make_recipe: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(OpaError):
        build(make_recipe(**changes), tmp_path / "out.opa")
    assert names(tmp_path) == []


# --- other builds -------------------------------------------------------------------------------


def test_a_bundle_of_the_null_backend_answers(
    make_recipe: Any, tmp_path: Path, images: npt.NDArray[np.uint8]
) -> None:
    build(make_recipe(compile=NULL, tails=FEW), tmp_path / "out.opa")
    with opa_trt.load(tmp_path / "out.opa") as session:
        assert session.backend == "null"
        assert session.infer(images, 1000.0).logits.shape == (20, 10)


def test_float_images_without_degradations_are_built_and_answered(
    weights: Path, make_recipe: Any, tmp_path: Path, images: npt.NDArray[np.uint8]
) -> None:
    recipe = make_recipe(
        data={"float_images": True, "degradations": []},
        pioneer={"images": 40, "epochs": 1},
        tails={"count": 2, "candidates": 3},
    )
    build(recipe, tmp_path / "out.opa")
    with opa_trt.load(tmp_path / "out.opa") as session:
        answered = session.infer((images / 255).astype(np.float32), 1000.0)
    assert answered.logits.shape == (20, 10)


def test_torchs_own_choice_of_threads_follows_the_recipe(
    make_recipe: Any, heard_by: Any, tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        build(make_recipe(), tmp_path / "out.opa", progress=heard_by("data"))
    assert torch.get_num_threads() == 1


def test_a_folder_of_images_is_built(
    heard_by: Any, make_recipe: Any, tmp_path: Path, begun: Callable[..., dict[str, str]]
) -> None:
    """The folder of ``begun``, one of whose images cannot be read."""
    recipe = make_recipe(
        checkpoint="two.safetensors",
        data={"source": "folder"},
        space={"classes": 2},
        tails={"count": 2, "candidates": 3},
        compile=NULL,
    )
    (tmp_path / "photos" / "train" / "cat" / "5.png").write_bytes(b"")
    heard = heard_by()
    made = build(
        recipe, tmp_path / "o.opa", data=tmp_path / "photos", skip_bad_images=True, progress=heard
    )
    assert made.classes == ("cat", "dog")
    assert "1 unreadable ones left out" in heard.lines["data"]
    assert made.report["data"]["skipped"] == ["5.png"]
