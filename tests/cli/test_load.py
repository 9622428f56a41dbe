"""``opa-trt load``: what it says of the applications that it starts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from opa_trt.evaluate import background


def test_it_says_what_it_started_and_when_that_ended(call: Any) -> None:
    called = call("load", "--apps", 2, "--seconds", 0.05)
    assert called.code == 0
    first, *ended = called.out.splitlines()
    pids = re.findall(r"\d+", first.partition("process ")[2])
    assert first.startswith("started 2 cpu applications for 0.05 s")
    assert len(pids) == 2
    for pid, line in zip(pids, ended, strict=True):
        assert re.fullmatch(
            rf"process {pid} ended at its limit after \d+\.\d s and [\d,]+ runs", line
        )


def test_it_writes_one_json_object(call: Any) -> None:
    found = call("load", "--seconds", 0.05, "--json").json()
    assert (found["kind"], found["seconds"]) == ("cpu", 0.05)
    (row,) = found["applications"]
    assert sorted(row) == ["how", "pid", "runs", "seconds"]
    assert row["how"] == "limit"


def test_ctrl_c_ends_them_and_says_so(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: background.Applications) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(background.Applications, "wait", interrupted)
    called = call("load", "--seconds", 600)
    assert called.code == 130
    assert re.search(r"process \d+ was ended", called.out)


def test_without_a_gpu_there_is_none_to_load(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "has_gpu", lambda: False)
    called = call("load", "--kind", "cuda")
    assert called.code == 2
    assert "no GPU that torch can use" in called.err
    assert called.out == ""


@pytest.mark.parametrize(
    "arguments", [("--apps", 0), ("--apps", 65), ("--seconds", "nan"), ("--kind", "tpu")]
)
def test_what_cannot_be_is_bad_input(call: Any, arguments: tuple[object, ...]) -> None:
    assert call("load", *arguments).code == 2
