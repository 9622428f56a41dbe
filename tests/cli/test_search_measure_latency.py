"""``opa-trt search measure-latency``: a tiny space's table, searched with, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opa_trt.builder import read_recipe
from opa_trt.search import bench
from opa_trt.search.accuracy_predictor import AccuracyPredictor
from opa_trt.search.bench import Bench
from opa_trt.search.latency_table import read_latency
from opa_trt.search.subjects import Subjects

Arguments = tuple[object, ...]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small(altered: Callable[[str, str], Path]) -> Path:
    """The tiny recipe with fewer operators."""
    return altered("kernel_choices = [3, 5]", "kernel_choices = [3]")


@pytest.fixture
def arguments(small: Path) -> Arguments:
    """The small recipe's space, measured in a hurry."""
    quick = ("--seconds", 1e-5, "--networks", 4, "--threads", 1)
    return ("search", "measure-latency", "--space", small, "--out", "t.json", *quick)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C before the group that begins at a number; a negative one lets go."""
    time_group = Bench._time_group
    monkeypatch.setattr(bench, "GROUP", 10)

    def at(stop: int) -> None:
        def interrupted(self: Bench, group: Any, yardstick: Any, before: int) -> None:
            if before == stop:
                raise KeyboardInterrupt
            time_group(self, group, yardstick, before)

        monkeypatch.setattr(Bench, "_time_group", interrupted)

    return at


def test_a_table_of_torchscript_engines_can_be_searched(
    call: Any, arguments: Arguments, small: Path, here: Path
) -> None:
    called = call(*arguments, "--backend", "torchscript", "--batch", 2)
    assert called.code == 0, called.err
    assert names(here) == ["t.json"]
    space = read_recipe(small).make_space()
    table = read_latency(here / "t.json")
    assert table.space == space
    assert table.by_resolution[16].keys() == Subjects(space, ()).operators.keys()
    assert (table.facts["backend"], table.facts["batch"]) == ("torchscript", 2)
    assert "as the table predicts" in called.out
    assert "next: opa-trt search run --space" in called.out

    inputs = space.genome.one_hot(np.zeros((1, len(space.genome)), dtype=np.int16)).shape[1]
    weight = np.random.default_rng(0).normal(0, 0.02, (1, inputs)).astype(np.float32)
    layer = (weight, np.array([0.7], dtype=np.float32))
    AccuracyPredictor("random", [layer], (16,), space).save(here / "a.safetensors")
    largest, _ = table.cost(space.genome).largest
    found = call(
        *("search", "run", "--accuracy", "a.safetensors", "--latency", "t.json"),
        *("--targets", f"{largest},{largest + 1}", "--generations", 3, "--population", 8, "--json"),
    )
    assert found.code == 0, found.err
    assert [answer["unit"] for answer in json.loads(found.out)] == ["ms", "ms"]


def test_one_json_object_and_no_lines(call: Any, arguments: Arguments, here: Path) -> None:
    called = call(*arguments, "--backend", "null", "--json")
    found = called.json()
    assert called.err == ""
    assert found["table"] == "t.json"
    assert found["operators"] == len(read_latency(here / "t.json").by_resolution[16])
    assert set(found["errors"]) == {"alone", "sum", "corrected"}
    assert (found["backend"], found["threads"], found["held_out"]) == ("null", 1, 2)


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(
    call: Any, arguments: Arguments, interrupt: Callable[[int], None], here: Path
) -> None:
    interrupt(20)
    stopped = call(*arguments, "--backend", "null")
    assert stopped.code == 130
    assert "The same command goes on" in stopped.err
    assert names(here) == ["t.json.work"]
    kept = (here / "t.json.work").read_text().splitlines()
    assert len(kept) == 3  # the header and two groups
    interrupt(-1)
    assert call(*arguments, "--backend", "null").code == 0
    assert names(here) == ["t.json"]


def test_auto_goes_on_with_the_backend_that_it_began_with(
    call: Any, arguments: Arguments, interrupt: Callable[[int], None], here: Path
) -> None:
    interrupt(10)
    assert call(*arguments, "--backend", "null").code == 130
    interrupt(-1)
    assert call(*arguments).code == 0
    assert read_latency(here / "t.json").facts["backend"] == "null"


def test_the_measurements_of_another_run_are_refused(
    call: Any, arguments: Arguments, interrupt: Callable[[int], None], here: Path
) -> None:
    interrupt(10)
    call(*arguments, "--backend", "null")
    called = call(*arguments, "--backend", "null", "--batch", 2)
    assert called.code == 2
    assert "t.json.work holds measurements of another run (other target)" in called.err
    assert "target.max_batch = 1." in called.err
    assert "delete it" in called.err
    assert names(here) == ["t.json.work"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("--backend", "nothing"), "backend"),
        (("--backend", "tensorrt_of_nobody"), "backend"),
        (("--resolutions", "24"), "resolution 24 is none of mobilenet_v3's"),
        (("--resolutions", "16;24"), "not a list of whole numbers"),
        (("--batch", "0"), "--batch"),
        (("--networks", "1"), "--networks"),
        (("--seconds", "0"), "--seconds"),
        (("--space", "nowhere"), "nowhere"),
        (("--width", "1.2"), "width 1.2"),
        (("--out", "t.yaml"), "ends in .json"),
        (("--out", "folder.json"), "is a folder"),
        (("--out", "file/t.json"), "file"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    call: Any, arguments: Arguments, here: Path, changed: tuple[str, str], says: str
) -> None:
    (here / "folder.json").mkdir()
    (here / "file").write_text("")
    called = call(*arguments, "--backend", "null", *changed)
    assert called.code == 2
    assert says in called.err
    assert names(here) == ["file", "folder.json"]


def test_a_backend_that_does_not_work_here_is_refused(
    call: Any, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    from opa_trt.backends import Availability
    from opa_trt.backends.openvino import OpenVinoBackend

    missing = Availability(reason="openvino is not installed.", install="pip install it")
    monkeypatch.setattr(OpenVinoBackend, "availability", lambda self: missing)
    called = call(*arguments, "--backend", "openvino")
    assert called.code == 2
    assert "openvino is not installed" in called.err
    assert "pip install it" in called.err
    assert names(here) == []


def test_without_a_space_it_says_what_to_add(call: Any, here: Path) -> None:
    called = call("search", "measure-latency", "--backend", "null")
    assert called.code == 2
    assert "add --space NAME" in called.err
    assert names(here) == []


def test_a_folder_that_cannot_be_written_is_refused(
    call: Any, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    called = call(*arguments, "--backend", "null")
    assert called.code == 2
    assert "cannot be written" in called.err
