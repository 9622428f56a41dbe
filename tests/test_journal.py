"""What was added stays, half a line goes, and another run's file or a damaged one is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from opa_trt.errors import DataError
from opa_trt.journal import Journal, Kind, number, read_run

KIND = Kind("tests.lengths", 2, "lengths", DataError)
FIRST = b'{"format": "tests.lengths", "version": 2, "run": {"seed": 0}}\n'


def journal(path: Path, kind: Kind = KIND, **run: Any) -> Journal:
    return Journal(path, kind, run or {"seed": 0})


def length(line: Any) -> float:
    return number(line["m"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of two results."""
    path = tmp_path / "file"
    made = journal(path)
    made.resume(length)
    made.append({"m": 1.5})
    made.append({"m": 2})
    return path


def test_a_new_file_says_what_its_results_depend_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    assert read_run(path, KIND) is None
    assert journal(path).resume(length) == []
    assert path.read_bytes() == FIRST
    assert read_run(path, KIND) == {"seed": 0}


def test_results_are_read_back_in_order(path: Path) -> None:
    before = path.read_bytes()
    assert journal(path).resume(length) == [1.5, 2.0]
    assert path.read_bytes() == before == FIRST + b'{"m": 1.5}\n{"m": 2}\n'


def test_a_result_is_on_disk_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_bytes()))
    journal(path).append({"m": 3})
    assert [text.splitlines()[-1] for text in synced] == [b'{"m": 3}']


def test_half_a_line_is_dropped_and_adding_goes_on(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    again = journal(path)
    assert again.resume(length) == [1.5]
    again.append({"m": 4})
    assert path.read_bytes() == FIRST + b'{"m": 1.5}\n{"m": 4}\n'


@pytest.mark.parametrize("kept", [0, 9, len(FIRST) - 1])
def test_half_a_first_line_is_begun_again(path: Path, kept: int) -> None:
    path.write_bytes(FIRST[:kept])
    assert journal(path).resume(length) == []
    assert path.read_bytes() == FIRST


def test_a_file_can_be_discarded(path: Path) -> None:
    journal(path).discard()
    journal(path).discard()
    assert not path.exists()


@pytest.mark.parametrize(
    ("run", "says", "expected"),
    [
        ({"seed": 1}, r"\(other seed\): seed = 0\.", "seed = 1."),
        ({"seed": 0, "of": {"a": 1}}, r"\(other of\): of = None\.", "of = {'a': 1}."),
        ({"of": [1]}, r"\(other of, seed\): of = None\.", "of = [1]."),
        ({"of": "x" * 900}, r"\(other of, seed\)", "of = " + "x" * 200 + " …."),
    ],
)
def test_another_runs_file_is_refused(
    path: Path, run: dict[str, Any], says: str, expected: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(DataError, match="file holds lengths of another run " + says) as caught:
        journal(path, **run).resume(length)
    assert caught.value.expected == expected
    assert "delete it" in caught.value.remedy
    assert path.read_bytes() == before


def test_what_differs_is_named_by_its_keys(tmp_path: Path) -> None:
    journal(tmp_path / "file", of={"a": 1, "b": {"c": 2}}).resume(length)
    with pytest.raises(DataError, match=r"\(other of\): of.b.c = 2\."):
        journal(tmp_path / "file", of={"a": 1, "b": {"c": 3}}).resume(length)


def test_a_run_is_compared_as_json_keeps_it(tmp_path: Path) -> None:
    for _ in range(2):
        journal(tmp_path / "file", sides=(1, 2), of={3: None}).resume(length)


@pytest.mark.parametrize(
    "text",
    [
        b"my notes",
        b"my notes\n",
        b"\xff\n",
        b"[1]\n",
        b"[" * 100_000 + b"\n",
        b'{"format": "tests.lengths"}\n',
        b'{"format": "other", "version": 1, "run": {"seed": 0}}\n',
        b'{"format": "tests.lengths", "version": 3, "run": {"seed": 0}}\n',
        b'{"format": "tests.lengths", "version": Infinity, "run": {"seed": 0}}\n',
        b'{"format": "tests.lengths", "version": 2, "run": 0}\n',
    ],
)
def test_a_file_of_another_kind_is_refused_and_stays(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(DataError, match="file is no file of lengths") as caught:
        journal(path).resume(length)
    assert caught.value.expected == "'tests.lengths', version 2 at most."
    assert path.read_bytes() == text
    if text.endswith(b"\n"):
        with pytest.raises(DataError, match="file is no file of lengths"):
            read_run(path, KIND)


def test_an_earlier_version_is_read(path: Path) -> None:
    later = Kind(KIND.format, 3, KIND.what, KIND.error)
    assert journal(path, later).resume(length) == [1.5, 2.0]


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"m": -1}'])
def test_a_damaged_line_is_named_and_stays(path: Path, line: bytes) -> None:
    text = FIRST + b'{"m": 1}\n' + line + b'\n{"m": 2}\n{"m"'
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"line 3 of .*file is damaged") as caught:
        journal(path).resume(length)
    assert len(caught.value.received) < 600 + len(str(path))
    assert "delete that line" in caught.value.remedy
    assert path.read_bytes() == text


def test_what_is_wrong_with_a_line_is_said(path: Path) -> None:
    path.write_bytes(FIRST + b'{"m": -1}\n')
    with pytest.raises(DataError, match=r"damaged \(-1 is no number from 0 to inf\): '\{"):
        journal(path).resume(length)


@pytest.mark.parametrize("value", [0, 1, 0.5, 1.0])
def test_numbers(value: Any) -> None:
    found = number(value, most=1.0)
    assert (found, type(found)) == (value, float)


@pytest.mark.parametrize(
    "value", [-1e-9, 1.1, float("nan"), float("inf"), True, "1", None, [0], {}]
)
def test_what_is_no_number_in_range(value: Any) -> None:
    with pytest.raises(ValueError, match="is no number from 0 to 1"):
        number(value, most=1.0)
