"""``opa-trt bench``: nodes, routes and monoliths, by backend, batch size and threads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import opa_trt
from opa_trt.bundle import Bundle
from opa_trt.store import EngineStore

QUICK = ("--seconds", 0.001)
COLUMNS = "what backend threads batch p50 ms p95 ms p99 ms images/s runs"


@pytest.fixture
def nodes(bundle: Path) -> list[str]:
    return [node.name for node in Bundle(bundle).manifest.nodes]


@pytest.fixture
def routes(nodes: list[str]) -> list[str]:
    return [f"{nodes[0]} → {name}" for name in nodes[1:]]


def table(out: str) -> list[list[str]]:
    """The rows of the first table, cell by cell; its head first."""
    lines = out.split("\n\n")[0].splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def test_the_table_has_a_row_for_every_node_and_route(
    call: Any, bundle: Path, nodes: list[str], routes: list[str], known_machine: None
) -> None:
    called = call("bench", bundle, *QUICK)
    assert called.code == 0
    head, *rows = table(called.out)
    assert " ".join(head) == COLUMNS
    assert sorted(row[0] for row in rows) == sorted(2 * [*nodes, *routes])
    assert {tuple(row[1:3]) for row in rows} == {("torchscript", "1")}
    assert [row[3] for row in rows] == ["1"] * (len(rows) // 2) + ["8"] * (len(rows) // 2)
    for row in rows:
        low, middle, high = map(float, row[4:7])
        assert 0 < low <= middle <= high
        assert int(row[8]) >= 10


def test_what_was_loaded_is_told_with_its_memory(
    call: Any, bundle: Path, known_machine: None
) -> None:
    called = call("bench", bundle, *QUICK, "--batch", 1, "--monolith")
    head, *rows = (re.split(r"\s{2,}", x.strip()) for x in called.out.split("\n\n")[2].splitlines())
    assert head[2:] == ["engines of", "engine files", "portable forms", "process grew by"]
    version = f"torchscript {torch.__version__}"
    assert [row[:3] for row in rows] == [[version, "1", "segments"], [version, "1", "monoliths"]]
    for row in rows:
        assert all(re.fullmatch(r"-?\d+\.\d\d MB", cell) for cell in row[3:])


def test_the_last_lines_tell_of_few_runs_and_the_machine(
    call: Any, bundle: Path, known_machine: None
) -> None:
    lines = call("bench", bundle, *QUICK).out.splitlines()
    assert "p99 of 10 runs is little else than the slowest: more --seconds" in lines
    assert any(line.startswith(f"{os.cpu_count()} cores of ") for line in lines)


def test_json_is_one_object(
    call: Any, bundle: Path, nodes: list[str], routes: list[str], known_machine: None
) -> None:
    found = call("bench", bundle, *QUICK, "--json").json()
    assert found["bundle"] == str(bundle)
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["opa_trt"] == opa_trt.__version__
    (made,) = found["sets"]
    assert made["versions"] == {"torchscript": torch.__version__}
    assert made["memory"]["engine_bytes"] > 0
    assert (made["monolith_memory"], made["left_out"]) == (None, {})
    by_kind = {kind: {r["name"] for r in found["rows"] if r["kind"] == kind} for kind in
               ("node", "route", "monolith")}  # fmt: skip
    assert by_kind == {"node": set(nodes), "route": set(routes), "monolith": set()}
    row = found["rows"][0]
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
    assert row["runs"] >= 10
    assert found["ratios"] == []
    assert found["picture"] is None


def test_monoliths_are_compared_with_their_routes(
    call: Any, bundle: Path, routes: list[str], known_machine: None
) -> None:
    called = call("bench", bundle, *QUICK, "--monolith", "--batch", 8)
    first, second, *_ = called.out.split("\n\n")
    whats = [row[0] for row in table(first)]
    assert [what for what in whats if "as one engine" in what] == [
        f"{route} as one engine" for route in routes
    ]
    _, head, *rows = second.splitlines()
    assert head.split() == ["route", "backend", "threads", "batch", "8"]
    cells = [re.split(r"\s{2,}", row.strip()) for row in rows]
    assert [cell[:3] for cell in cells] == [[route, "auto", "1"] for route in routes]
    for cell in cells:
        assert re.fullmatch(r"\d+\.\d{3} \[\d+\.\d{3}, \d+\.\d{3}\]", cell[3])


def test_json_has_ratios_by_tail_and_batch(
    call: Any, bundle: Path, nodes: list[str], known_machine: None
) -> None:
    found = call("bench", bundle, *QUICK, "--monolith", "--json").json()
    places = [(ratio["batch"], ratio["tail"]) for ratio in found["ratios"]]
    assert places == [(batch, tail) for batch in (1, 8) for tail in nodes[1:]]
    middle = {(r["kind"], r["name"], r["batch"]): r["p50_ms"] for r in found["rows"]}
    for ratio in found["ratios"]:
        key = (ratio["name"], ratio["batch"])
        wanted = middle["route", *key] / middle["monolith", *key]
        assert ratio["ratio"] == pytest.approx(wanted)
    assert found["sets"][0]["monolith_memory"]["engine_bytes"] > 0


def test_monoliths_are_verified_and_kept(call: Any, bundle: Path, nodes: list[str]) -> None:
    assert call("bench", bundle, *QUICK, "--monolith", "--batch", 1).code == 0
    kept = {entry.stamp.segment for entry in EngineStore().entries() if entry.stamp}
    assert kept == {f"{nodes[0]}+{tail}" for tail in nodes[1:]}  # the bundle has the others
    found = call("engines", "verify", "--json").json()
    assert all(engine["verified"] for engine in found["engines"])


def test_backends_and_batches_may_be_repeated(call: Any, bundle: Path, known_machine: None) -> None:
    several = ("--backend", "torchscript", "--backend", "null", "--backend", "null")
    found = call("bench", bundle, *QUICK, *several, "--batch", 5, "--batch", 2, "--json").json()
    places = dict.fromkeys((row["batch"], row["chosen"]) for row in found["rows"])
    assert list(places) == [(2, "torchscript"), (2, "null"), (5, "torchscript"), (5, "null")]


def test_threads_may_be_repeated(call: Any, bundle: Path) -> None:
    several = ("--threads", 2, "--threads", 1)
    found = call("bench", bundle, *QUICK, "--backend", "null", *several, "--json").json()
    assert list(dict.fromkeys(row["threads"] for row in found["rows"])) == [2, 1]


def test_auto_beside_a_named_backend_says_what_it_is(
    call: Any, bundle: Path, known_machine: None
) -> None:
    chosen = ("--backend", "auto", "--backend", "null", "--batch", 1)
    _, *rows = table(call("bench", bundle, *QUICK, *chosen).out)
    assert {row[1] for row in rows} == {"auto: torchscript", "null"}


def test_a_picture_is_drawn_where_it_is_asked_for(
    call: Any, here: Path, bundle: Path, known_machine: None
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    called = call("bench", bundle, *QUICK, "--picture", "bench.png")
    assert "picture: bench.png" in called.out
    assert (here / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in here.iterdir()] == ["bench.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch", 9), "1 to 8, the largest"),
        (("--batch", 0), "--batch"),
        (("--threads", 0), "--threads"),
        (("--seconds", 0), "--seconds"),
        (("--seconds", "nan"), "--seconds"),
        (("--backend", "openvion"), "openvino"),
        (("--picture", "nowhere/bench.png"), "the folder nowhere does not exist"),
        (("--picture", "."), "name a file"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    call: Any, bundle: Path, arguments: tuple[object, ...], said: str
) -> None:
    called = call("bench", bundle, *arguments)
    assert called.code == 2
    assert said in called.err
    assert called.out == ""
    assert not EngineStore().root.exists()


def test_a_backend_that_does_not_work_here_says_what_installs_it(
    call: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    called = call("bench", bundle, "--backend", "inductor")
    assert called.code == 2
    assert "Remedy    install g++" in called.err


def test_a_backend_that_cannot_read_the_bundle_says_what_it_reads(
    call: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")  # inductor finds a compiler
    called = call("bench", bundle, "--backend", "inductor")
    assert called.code == 2
    assert "Expected  pt2, which backend inductor reads." in called.err


def test_a_bundle_that_does_not_exist_is_refused(call: Any) -> None:
    called = call("bench", "nowhere.opa")
    assert called.code == 2
    assert "nowhere.opa" in called.err


def test_ctrl_c_leaves_nothing_half_written(
    call: Any, here: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, known_machine: None
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("opa_trt.evaluate.bench._in_turns", interrupted)
    called = call("bench", bundle, *QUICK, "--picture", "bench.png")
    assert called.code == 130
    assert called.out == ""
    assert list(here.iterdir()) == []
