"""What finished stages leave for a build that goes on: whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from opa_trt.builder.work import ARRAYS, BLOBS, FACTS, Finding, Work

FOUND = Finding(
    "a line",
    {"number": 1.5, "names": ["a", "b"], "nested": {"deep": None}},
    {"floats": np.arange(6, dtype=np.float32).reshape(2, 3), "flags": np.array([True, False])},
    {"one.pt": b"\x00\x01", "two.pt": b""},
)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "out.work", "key")


def test_a_new_work_makes_no_folder(work: Work) -> None:
    assert not work.folder.exists()


def test_what_was_never_saved_is_none(work: Work) -> None:
    assert work.load("stage") is None


def test_line_facts_and_blobs_come_back(work: Work) -> None:
    work.save("stage", FOUND)
    found = work.load("stage")
    assert found is not None
    assert (found.line, found.facts, found.blobs) == (FOUND.line, FOUND.facts, FOUND.blobs)


def test_arrays_come_back(work: Work) -> None:
    work.save("stage", FOUND)
    found = work.load("stage")
    assert found is not None
    assert found.arrays.keys() == FOUND.arrays.keys()
    for name, values in FOUND.arrays.items():
        assert found.arrays[name].dtype == values.dtype
        assert np.array_equal(found.arrays[name], values)


def test_an_array_of_one_number_keeps_its_shape(work: Work) -> None:
    work.save("stage", Finding("line", arrays={"count": np.array(7)}))
    found = work.load("stage")
    assert found is not None
    assert found.arrays["count"].shape == ()


def test_arrays_in_another_order_of_memory_come_back(work: Work) -> None:
    turned = np.arange(6.0).reshape(2, 3).T
    work.save("stage", Finding("line", arrays={"turned": turned}))
    found = work.load("stage")
    assert found is not None
    assert np.array_equal(found.arrays["turned"], turned)


def test_a_finding_may_be_a_line_alone(work: Work) -> None:
    work.save("stage", Finding("line"))
    assert work.load("stage") == Finding("line")


def test_stages_do_not_mix(work: Work) -> None:
    work.save("one", Finding("first"))
    work.save("two", Finding("second"))
    assert [getattr(work.load(stage), "line", None) for stage in ("one", "two")] == [
        "first",
        "second",
    ]


def test_saving_again_replaces(work: Work) -> None:
    work.save("stage", FOUND)
    work.save("stage", Finding("new"))
    assert work.load("stage") == Finding("new")


def test_findings_of_another_key_are_not_read(work: Work) -> None:
    work.save("stage", FOUND)
    assert Work(work.folder, "other").load("stage") is None


def test_findings_are_there_for_the_next_process(work: Work) -> None:
    work.save("stage", FOUND)
    assert Work(work.folder, "key").load("stage") is not None


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no facts": lambda place: (place / FACTS).unlink(),
    "cut facts": lambda place: (place / FACTS).write_text("{"),
    "facts of another kind": lambda place: (place / FACTS).write_text(json.dumps({"key": "key"})),
    "facts that are no text": lambda place: (place / FACTS).write_bytes(b"\xff\xfe"),
    "no arrays": lambda place: (place / ARRAYS).unlink(),
    "cut arrays": lambda place: (place / ARRAYS).write_bytes(b"\x10\x00"),
    "no blob": lambda place: (place / BLOBS / "one.pt").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_finding_is_none(work: Work, damage: Callable[[Path], object]) -> None:
    work.save("stage", FOUND)
    damage(work.folder / "stage")
    assert work.load("stage") is None


def test_facts_that_are_no_object_are_none(work: Work) -> None:
    work.save("stage", FOUND)
    (work.folder / "stage" / FACTS).write_text("[]")
    assert work.load("stage") is None


def test_a_finding_that_cannot_be_written_leaves_nothing(work: Work) -> None:
    with pytest.raises(TypeError):
        work.save("stage", Finding("line", {"path": Path()}))
    assert list(work.folder.iterdir()) == []


def test_a_finding_that_cannot_be_written_leaves_the_old_one(work: Work) -> None:
    work.save("stage", Finding("old"))
    with pytest.raises(TypeError):
        work.save("stage", Finding("line", {"path": Path()}))
    assert work.load("stage") == Finding("old")


def test_discarding_deletes_everything(work: Work) -> None:
    work.save("stage", FOUND)
    work.discard()
    assert not work.folder.exists()


def test_discarding_nothing_is_fine(work: Work) -> None:
    work.discard()
    assert not work.folder.exists()
