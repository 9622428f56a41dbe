"""``opa-trt train``: a few steps of every phase, interrupted and taken up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opa_trt.builder import read_recipe
from opa_trt.supernet import load, read_notes
from opa_trt_cli.console import StageLines

PHASES = ["full", "kernel", "depth1", "width1"]

Arguments = tuple[object, ...]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def arguments(recipe: Path, shared_photos: Path) -> Arguments:
    """Six steps and as many phases as there are."""
    return ("train", recipe, "--data", shared_photos, "--steps", 6, "--threads", 1)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Ctrl-C as a phase finishes; an empty name lets go."""
    finish = StageLines.finish

    def at(stop: str) -> None:
        def interrupted(self: StageLines, stage: str, found: str) -> None:
            finish(self, stage, found)
            if stage == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(StageLines, "finish", interrupted)

    return at


def told(err: str) -> list[str]:
    return [line.split()[0] for line in err.splitlines() if line.startswith(" ")]


def test_train_writes_weights_and_nothing_else(
    call: Any, arguments: Arguments, recipe: Path, here: Path
) -> None:
    called = call(*arguments, "--out", "w.safetensors")
    assert called.code == 0
    assert names(here) == ["w.safetensors"]
    space = read_recipe(recipe).make_space()
    assert load(here / "w.safetensors", expected=space).space == space


def test_train_tells_every_phase(call: Any, arguments: Arguments) -> None:
    called = call(*arguments)
    assert told(called.err) == ["data", *PHASES]
    assert "smallest" in called.err
    assert called.out.startswith("tiny.safetensors, ")


def test_the_weights_are_named_after_the_recipe(
    call: Any, arguments: Arguments, here: Path
) -> None:
    call(*arguments)
    assert names(here) == ["tiny.safetensors"]


def test_train_writes_one_json_object_and_is_quiet(
    call: Any, arguments: Arguments, here: Path
) -> None:
    called = call(*arguments, "--json")
    found = called.json()
    assert [entry["phase"] for entry in found["log"]] == PHASES
    assert found["bytes"] == (here / "tiny.safetensors").stat().st_size
    assert called.err == ""


def test_the_steps_are_shared_out_between_the_phases(call: Any, arguments: Arguments) -> None:
    log = call(*arguments, "--steps", 12, "--json").json()["log"]
    assert [entry["steps"] for entry in log] == [3, 3, 3, 3]


def test_the_weights_say_how_they_were_made(
    call: Any, arguments: Arguments, recipe: Path, here: Path
) -> None:
    call(*arguments)
    notes = read_notes(here / "tiny.safetensors")
    assert notes["classes"] == ["cat", "dog", "owl"]
    assert notes["recipe"]["name"] == read_recipe(recipe).name
    assert len(notes["log"]) == len(PHASES)


def test_training_twice_gives_the_same_weights(call: Any, arguments: Arguments, here: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        call(*arguments, "--out", name)
    one, two = (load(here / name).state_dict() for name in names(here))
    assert all(one[key].equal(two[key]) for key in one)


def test_ctrl_c_says_how_to_go_on(
    call: Any, arguments: Arguments, here: Path, interrupt: Callable[[str], None]
) -> None:
    interrupt("kernel")
    called = call(*arguments)
    assert called.code == 130
    assert "The same command goes on" in called.err.splitlines()[-1]
    assert names(here) == ["tiny.safetensors.training"]


def test_the_same_command_goes_on(
    call: Any, arguments: Arguments, here: Path, interrupt: Callable[[str], None]
) -> None:
    interrupt("kernel")
    call(*arguments)
    interrupt("")
    called = call(*arguments)
    assert called.code == 0
    assert told(called.err) == ["data", "depth1", "width1"]
    assert names(here) == ["tiny.safetensors"]


def test_in_pieces_the_weights_are_the_same(
    call: Any, arguments: Arguments, here: Path, interrupt: Callable[[str], None]
) -> None:
    call(*arguments, "--out", "whole.safetensors")
    interrupt("depth1")
    call(*arguments, "--out", "pieces.safetensors")
    interrupt("")
    call(*arguments, "--out", "pieces.safetensors")
    whole, pieces = (load(here / f"{n}.safetensors") for n in ("whole", "pieces"))
    states = whole.state_dict(), pieces.state_dict()
    assert all(states[0][key].equal(states[1][key]) for key in states[0])


def test_the_elastic_phases_begin_with_given_weights(
    call: Any, arguments: Arguments, recipe: Path, here: Path
) -> None:
    start = recipe.with_suffix(".safetensors")
    called = call(*arguments, "--start-from", start)
    assert called.code == 0
    assert told(called.err) == ["data", *PHASES[1:]]
    assert read_notes(here / "tiny.safetensors")["start"] == read_notes(start)


def test_a_run_from_given_weights_goes_on(
    call: Any, arguments: Arguments, recipe: Path, here: Path, interrupt: Callable[[str], None]
) -> None:
    words = (*arguments, "--start-from", recipe.with_suffix(".safetensors"))
    interrupt("kernel")
    call(*words)
    interrupt("")
    assert told(call(*words).err) == ["data", "depth1", "width1"]
    assert names(here) == ["tiny.safetensors"]


def test_weights_that_were_there_stay_until_the_end(
    call: Any, arguments: Arguments, here: Path, interrupt: Callable[[str], None]
) -> None:
    (here / "tiny.safetensors").write_bytes(b"old")
    interrupt("width1")
    call(*arguments)
    assert (here / "tiny.safetensors").read_bytes() == b"old"


def test_train_leaves_out_bad_images_if_asked(
    call: Any, arguments: Arguments, photos: Path
) -> None:
    (photos / "train" / "cat" / "3.png").write_bytes(b"")
    assert call(*arguments, "--data", photos, "--skip-bad-images").code == 0


def test_what_is_trained_can_be_built(
    call: Any, arguments: Arguments, recipe: Path, shared_photos: Path, here: Path
) -> None:
    call(*arguments, "--out", "w.safetensors")
    words = ("--data", shared_photos, "--checkpoint", "w.safetensors", "--backend", "null")
    assert call("build", recipe, *words).code == 0
    assert names(here) == ["tiny.opa", "w.safetensors"]
