"""The folder that a comparison leaves."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from opa_trt.errors import BackendUnavailable, ConfigError
from opa_trt.evaluate.compare import Comparison, check_new, write
from opa_trt.evaluate.compare.folder import COLUMNS, PAGE

FILES = {"compare.json", "groups.csv", "records.safetensors"}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Path]]:
    """Takes the place of the page; what it was given."""
    given: list[tuple[dict[str, Any], Path]] = []
    module = ModuleType(PAGE)
    module.write_page = lambda report, out: given.append((report, out))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, PAGE, module)
    return given


def test_all_files_are_written(compared: Comparison, tmp_path: Path, page: Any) -> None:
    out = tmp_path / "deep" / "comparison"
    assert write(compared, out) == ""
    assert {path.name for path in out.iterdir()} == FILES
    report = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert page == [(report, out)]
    assert [path.name for path in out.parent.iterdir()] == ["comparison"]


def test_the_csv_has_a_row_for_each_group_and_arm(
    compared: Comparison, tmp_path: Path, page: Any
) -> None:
    write(compared, tmp_path / "out")
    with (tmp_path / "out" / "groups.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    cells = compared.findings.cells
    assert len(rows) == sum(cell.groups * len(cell.taken) for cell in cells)
    assert {row["phase"] for row in rows} == {"stream", "frontier", "size"}


def test_without_matplotlib_the_figures_stand(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_page(report: Any, out: Path) -> None:
        message = "plots need matplotlib."
        raise BackendUnavailable(message)

    module = ModuleType(PAGE)
    module.write_page = write_page  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, PAGE, module)
    assert write(compared, tmp_path / "out") == "plots need matplotlib."
    assert {path.name for path in (tmp_path / "out").iterdir()} >= FILES


@pytest.mark.parametrize("kind", ["file", "empty", "full"])
def test_what_exists_is_refused(compared: Comparison, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine", encoding="utf-8")
    else:
        out.mkdir()
    if kind == "full":
        (out / "mine.txt").write_text("mine", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    for refuse in (check_new, lambda place: write(compared, place)):
        with pytest.raises(ConfigError, match="exists") as error:
            refuse(out)
        assert error.value.expected == "a new folder."
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ConfigError, match="cannot be written to"):
        check_new(tmp_path / "new" / "folder")


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="lies below a file"):
        check_new(tmp_path / "file" / "out")
