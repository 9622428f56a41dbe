"""``opa-trt compare``: every policy on the same engines, images and load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opa_trt.builder import build, read_recipe
from opa_trt.store import EngineStore

QUICK = ("--groups", 2, "--group-size", 4, "--group-sizes", 2, "--load", 0, "--images", 20)
FILES = {"compare.json", "groups.csv", "records.safetensors"}


@pytest.fixture(autouse=True)
def _few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines need not be chosen well here, and no page is drawn."""
    from opa_trt.evaluate.compare import Settings

    few = Settings.__init__

    def init(self: Any, *args: Any, **values: Any) -> None:
        few(self, *args, **{"trials": 4, "warm_up": 1, "draws": 100, **values})

    monkeypatch.setattr(Settings, "__init__", init)
    monkeypatch.setattr("opa_trt.evaluate.compare.folder.PAGE", "opa_trt.no_such_page")


@pytest.fixture
def compared(call: Any, bundle: Path, shared_photos: Path, known_machine: None) -> Any:
    """The tiny bundle's comparison in ``out``."""
    return call("compare", bundle, "--data", shared_photos, *QUICK, "--out", "out")


def test_it_writes_a_folder_and_says_what_was_found(compared: Any, here: Path) -> None:
    assert compared.code == 0, compared.err
    assert {path.name for path in (here / "out").iterdir()} >= FILES
    assert "27 images trained and calibrated the networks" in compared.out
    assert "9 images are tested on, in" in compared.out
    assert "load 0: judged deadlines" in compared.out
    assert "branchynet is left out: this bundle has no nodes for branchynet." in compared.out
    table = [line for line in compared.out.splitlines() if line.startswith("   0  ")]
    assert [line.split()[1] for line in table] == [
        "opa_split", "opa", "dynamic_ofa", "static_best", "static_largest",
        "oracle", "oracle_cv", "random",
    ]  # fmt: skip
    verdicts = [line.split("  ")[0] for line in compared.out.splitlines() if "opa_split" in line]
    assert {"met", "not met", "unresolved"} >= {v for v in verdicts if v[:1] in "mnu" and v}
    assert "out: compare.json, groups.csv, records.safetensors" in compared.out


def test_json_is_the_report(
    call: Any, bundle: Path, shared_photos: Path, known_machine: None, here: Path
) -> None:
    called = call("compare", bundle, "--data", shared_photos, *QUICK, "--out", "out", "--json")
    found = called.json()
    assert found.pop("out") == "out"
    assert found == json.loads((here / "out" / "compare.json").read_text(encoding="utf-8"))
    assert found["partial"] is False
    assert found["seconds"] > 0
    assert found["settings"]["families"] == []
    assert found["split"]["source"] == str(shared_photos)
    assert found["split"]["same_data"] is True
    assert found["machine"]["versions"].keys() == {"torchscript"}


def test_a_replay_needs_neither_images_nor_engines(
    compared: Any, call: Any, bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("opa_trt.load", load)
    called = call("compare", bundle, "--replay", "out", "--out", "again")
    assert called.code == 0, called.err
    assert "replayed from out: no engine ran" in called.out
    once, again = (
        json.loads((here / name / "compare.json").read_text(encoding="utf-8"))
        for name in ("out", "again")
    )
    assert [(r["load"], r["deadline_ms"], r["arm"]) for r in once["results"]] == [
        (r["load"], r["deadline_ms"], r["arm"]) for r in again["results"]
    ]
    assert once["settings"] == again["settings"]


def test_an_output_that_exists_is_refused_before_anything_runs(
    call: Any, bundle: Path, shared_photos: Path, here: Path
) -> None:
    (here / "tiny-compare").mkdir()
    called = call("compare", bundle, "--data", shared_photos, *QUICK)
    assert called.code == 2
    assert called.err.startswith("Error: tiny-compare exists.")
    assert "--out" in called.err
    assert not any((here / "tiny-compare").iterdir())


def test_too_few_images_are_refused_with_the_number_needed(
    call: Any, bundle: Path, shared_photos: Path, known_machine: None, here: Path
) -> None:
    called = call("compare", bundle, "--data", shared_photos, "--load", 0)
    assert called.code == 2
    assert "has 9 test images." in called.err
    assert "at least 100" in called.err
    assert not list(here.iterdir())


def test_other_classes_are_refused(call: Any, bundle: Path, photos: Path, here: Path) -> None:
    for part in ("train", "test"):
        (photos / part / "owl").rename(photos / part / "hawk")
    called = call("compare", bundle, "--data", photos, *QUICK)
    assert called.code == 2
    assert "'hawk' unknown to the bundle and 'owl' missing" in called.err
    assert "the 3 classes of the bundle: 'cat', 'dog', 'owl'" in called.err
    assert not list(here.iterdir())


def test_a_bundle_of_a_folder_needs_data(call: Any, bundle: Path) -> None:
    called = call("compare", bundle)
    assert called.code == 2
    assert "--data FOLDER" in called.err


def test_deadlines_that_no_route_meets_are_refused(
    call: Any, bundle: Path, shared_photos: Path, known_machine: None
) -> None:
    called = call(
        "compare", bundle, "--data", shared_photos, *QUICK, "--deadlines", "0.00001,0.00002"
    )
    assert called.code == 2
    assert "deadlines 1e-05, 2e-05 ms: no route meets any of them." in called.err


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--deadlines", "5,fast", "'5,fast' is no list of numbers"),
        ("--load", "0.5", "'0.5' is no list of whole numbers"),
        ("--load", "-1", "load -1."),
        ("--group-sizes", "0", "group size 0."),
        ("--deadlines", "nan", "deadlines nan ms."),
        ("--families", "nois", "unknown degradation family 'nois'"),
    ],
)
def test_bad_options_are_refused(
    call: Any, bundle: Path, shared_photos: Path, option: str, value: str, told: str
) -> None:
    called = call("compare", bundle, "--data", shared_photos, option, value)
    assert called.code == 2
    assert told in called.err


def test_a_replay_of_nothing_is_refused(call: Any, bundle: Path) -> None:
    called = call("compare", bundle, "--replay", "nowhere")
    assert called.code == 2
    assert "nowhere has no records.safetensors" in called.err


@pytest.mark.parametrize(
    "option",
    [("--threads", 1), ("--backend", "onnxruntime"), ("--images", 9), ("--skip-bad-images",)],
)
def test_a_replay_refuses_what_would_say_nothing(
    call: Any, bundle: Path, option: tuple[object, ...]
) -> None:
    called = call("compare", bundle, "--replay", "earlier", *option)
    assert called.code == 2
    assert f"--replay runs no engines: {option[0]} would say nothing" in " ".join(
        called.err.split()
    )


def test_ctrl_c_keeps_what_is_finished(
    call: Any,
    bundle: Path,
    shared_photos: Path,
    known_machine: None,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from opa_trt.evaluate.compare.runner import Runner

    def interrupted(self: Any, load: int, *rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "_frontier", interrupted)
    called = call("compare", bundle, "--data", shared_photos, *QUICK, "--out", "out")
    assert called.code == 130
    assert "What was finished is in out, marked as partial." in called.err
    found = json.loads((here / "out" / "compare.json").read_text(encoding="utf-8"))
    assert found["partial"] is True
    assert len(found["results"]) > 0
    assert found["frontier"] is None


def test_ctrl_c_before_anything_is_finished_leaves_nothing(
    call: Any,
    bundle: Path,
    shared_photos: Path,
    known_machine: None,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from opa_trt.evaluate.compare.runner import Runner

    def interrupted(self: Any, load: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "_under", interrupted)
    called = call("compare", bundle, "--data", shared_photos, *QUICK, "--out", "out")
    assert called.code == 130
    assert "Nothing half-written was left behind." in called.err
    assert not list(here.iterdir())


def test_help_opens_with_an_example(call: Any) -> None:
    called = call("compare", "--help")
    assert called.code == 0
    first = called.out.index("opa-trt compare digits.opa --load 0,2 --out comparison")
    assert first < called.out.index("Options:")


def test_digits_bring_their_own_images(
    call: Any, digits_recipe: Path, tmp_path: Path, here: Path
) -> None:
    path = tmp_path / "little.opa"
    build(read_recipe(digits_recipe), path, store=EngineStore())
    size = ("--groups", 3, "--load", 0, "--group-sizes", "1,50", "--images", 700)
    called = call("compare", path, *size, "--out", "out", "--json")
    assert called.code == 0, called.err
    found = called.json()
    assert found["split"]["source"] == "digits"
    assert found["split"]["tested"]["images"] == 400
    assert found["settings"]["families"] == ["noise", "contrast"]
    assert {row["groups"] for row in found["results"]} == {3}
    assert {row["size"] for row in found["group_sizes"]} == {1, 50}
