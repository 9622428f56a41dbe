"""``opa-trt study``: a table, a JSON file and a picture; nothing where it cannot be made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opa_trt.builder import study
from opa_trt.builder.study import StudyPlan


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates, whatever a build would try."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(study, "QUICK", StudyPlan(counts=(2, 2), deep=2, groups=20, rounds=1))


def test_it_prints_a_table_and_writes_both_files(
    call: Any, recipe: Path, shared_photos: Path, here: Path
) -> None:
    called = call("study", recipe, "--data", shared_photos, "--quick", "--out", "made/here")
    assert called.code == 0
    folder = here / "made" / "here"
    assert sorted(path.name for path in folder.iterdir()) == ["study.json", "study.png"]
    found = json.loads((folder / "study.json").read_text())
    assert found["recipe"] == "tiny"
    rows = [line for line in called.out.splitlines() if " stage" in line and "kernel" in line]
    assert len(rows) == len(found["candidates"])
    (taken,) = [place for place, row in enumerate(rows) if row.endswith("← taken")]
    assert taken == found["chosen"]
    assert "torch eager" in called.out
    assert "of " in called.err
    assert "candidates" in called.err


def test_json_is_one_object_with_the_files(
    call: Any, recipe: Path, shared_photos: Path, here: Path
) -> None:
    found = call("study", recipe, "--data", shared_photos, "--quick", "--json").json()
    assert found["files"] == {"json": "tiny.study/study.json", "picture": "tiny.study/study.png"}
    assert all((here / place).is_file() for place in found["files"].values())
    assert found["candidates"][found["chosen"]]["stages"] == found["choice"]["stages"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--out", "file"), "lies below a file"),
        (("--checkpoint", "gone.safetensors"), "gone.safetensors does not exist"),
        ((), "none is named"),
    ],
    ids=["a file stands there", "no such weights", "no images"],
)
def test_what_cannot_be_studied_is_refused(
    call: Any, recipe: Path, shared_photos: Path, here: Path, arguments: tuple[str, ...], says: str
) -> None:
    (here / "file").write_text("notes")
    data = ("--data", shared_photos) if arguments else ()
    called = call("study", recipe, *data, "--quick", *arguments)
    assert called.code == 2
    assert says in called.err
    assert [path.name for path in here.iterdir()] == ["file"]
