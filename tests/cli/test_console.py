"""Tables, lines and JSON: the same to a terminal and to a pipe, nothing cut off, nothing read."""

from __future__ import annotations

import json
import math

import pytest

from opa_trt_cli.console import StageLines, say, say_json, say_table

COLUMNS = (("file", "left"), ("answer", "right"))


def test_a_table_has_its_headings_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(COLUMNS, [("a.png", "cat"), ("b.png", "elephant")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["file", "answer"], ["a.png", "cat"], ["b.png", "elephant"]]


def test_a_table_has_its_title_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(COLUMNS, [("a.png", "cat")], title="answers")
    assert capsys.readouterr().out.splitlines()[0].strip() == "answers"


@pytest.mark.parametrize("name", ["[final].png", "[/b].png", "[red]x[/red]", ":smile:.png"])
def test_a_name_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], name: str) -> None:
    say_table(COLUMNS, [(name, "cat")])
    say(name)
    say(name, err=True)
    written = capsys.readouterr()
    assert written.out.count(name) == 2
    assert written.err.strip() == name


def test_piped_nothing_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    path = "folder/" * 60 + "a.png"
    say_table(COLUMNS, [(path, "cat")])
    say(path)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "file",
        path,
        path,
    ]


def test_json_is_one_object_without_nan(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"nan": math.nan, "deep": [{"inf": math.inf}], "tuple": (1, 2.5), 3: "key"})
    found = json.loads(capsys.readouterr().out)
    assert found == {"nan": None, "deep": [{"inf": None}], "tuple": [1, 2.5], "3": "key"}


def test_a_finished_stage_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with StageLines() as lines:
        lines.start("tails", 10)
        lines.advance(3, "tail3")
        lines.finish("tails", "3 of 10 [best]")
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.split()[:5] == ["tails", "3", "of", "10", "[best]"]
    assert written.err.rstrip().endswith(" s")


def test_quiet_stages_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StageLines(quiet=True) as lines:
        lines.start("tails")
        lines.finish("tails", "found")
    written = capsys.readouterr()
    assert (written.out, written.err) == ("", "")


def test_an_advance_before_any_stage_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    with StageLines() as lines:
        lines.advance(1)
    assert capsys.readouterr().err == ""
