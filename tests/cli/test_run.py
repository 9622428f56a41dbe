"""``opa-trt run``: every picture below a folder is answered, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("known_machine")

NODES = {"pioneer", "tail1", "tail2", "tail3"}
COLUMNS = ["file", "answer", "confidence", "node", "group", "truth"]


@pytest.fixture
def run(call: Any, bundle: Path, shared_photos: Path) -> Any:
    """``opa-trt run`` of the test images, with a minute for each group."""

    def with_options(*arguments: object, images: Path = shared_photos / "test") -> Any:
        return call("run", bundle, images, "--deadline-ms", 60_000, *arguments)

    return with_options


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_picture_has_a_row(run: Any, shared_photos: Path) -> None:
    called = run()
    assert called.code == 0
    files = sorted(map(str, (shared_photos / "test").rglob("*.png")))
    assert [line.split()[0] for line in called.out.splitlines()[1:10]] == files


def test_several_groups_are_counted(run: Any) -> None:
    assert run("--group", 4).out.splitlines()[-1].startswith("9 images in 3 groups")


def test_the_summary_tells_accuracy_and_deadlines(run: Any) -> None:
    last = run().out.splitlines()[-1]
    assert last.startswith("9 images in 1 group ")
    assert "% right" in last
    assert "100.0% of deadlines of 60000 ms met" in last


def test_csv_has_a_row_for_every_picture(run: Any) -> None:
    called = run("--csv")
    rows = table(called.out)
    assert list(rows[0]) == COLUMNS
    assert len(rows) == 9
    assert {row["truth"] for row in rows} == {"cat", "dog", "owl"}


def test_with_csv_the_summary_goes_to_stderr(run: Any) -> None:
    assert run("--csv").err.splitlines()[-1].startswith("9 images in 1 group ")


def test_json_is_one_object(run: Any) -> None:
    found = run("--json").json()
    assert sorted(found) == ["predictions", "summary"]
    assert len(found["predictions"]) == found["summary"]["images"] == 9


def test_answers_are_classes_with_confidences(run: Any) -> None:
    for row in run("--json").json()["predictions"]:
        assert row["answer"] in ("cat", "dog", "owl")
        assert 1 / 3 <= row["confidence"] <= 1
        assert row["node"] in NODES


def test_the_accuracy_is_that_of_the_rows(run: Any) -> None:
    found = run("--json").json()
    right = [row["answer"] == row["truth"] for row in found["predictions"]]
    assert found["summary"]["accuracy"] == pytest.approx(sum(right) / 9)


def test_every_way_of_writing_says_the_same(run: Any) -> None:
    fixed = ("--policy", "static:tail1")  # others may choose by the latencies of the moment
    rows = run(*fixed, "--json").json()["predictions"]
    found = table(run(*fixed, "--csv").out)
    assert [{key: str(row[key]) for key in COLUMNS} for row in rows] == found


def test_groups_are_as_large_as_asked(run: Any) -> None:
    found = run("--group", 4, "--json").json()
    assert [row["group"] for row in found["predictions"]] == [0] * 4 + [1] * 4 + [2]


def test_groups_larger_than_the_largest_batch_are_answered(run: Any) -> None:
    assert run("--group", 9, "--json").json()["summary"]["groups"] == 1


@pytest.mark.parametrize("tail", ["tail1", "tail3"])
def test_a_static_policy_answers_with_its_node(run: Any, tail: str) -> None:
    found = run("--policy", f"static:{tail}", "--json").json()
    assert found["summary"]["nodes"] == {tail: 9}


def test_explain_tells_every_group_on_stderr(run: Any) -> None:
    called = run("--explain", "--group", 5, "--csv")
    assert "Group" not in called.out
    groups = [line for line in called.err.splitlines() if line.startswith("Group ")]
    assert [line.split(":")[0] for line in groups] == [
        "Group 1, images 1 to 5", "Group 2, images 6 to 9",
    ]  # fmt: skip
    assert all(line.endswith("deadline 60000 ms met") for line in groups)


def test_explain_tells_what_was_predicted_for_every_route(run: Any) -> None:
    lines = run("--explain").err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["route"])
    table = lines[start + 1 : start + 5]
    assert [line.split()[0] for line in table] == ["stop", "tail1", "tail2", "tail3"]
    assert all("<= " in line and "%" in line for line in table[1:])
    assert sum(line.endswith("<- chosen") for line in table) == 1
    assert "ms left: " in lines[start - 1]


def test_explain_says_that_nothing_fitted(call: Any, bundle: Path, shared_photos: Path) -> None:
    picture = shared_photos / "test" / "dog" / "1.png"
    called = call("run", bundle, picture, "--deadline-ms", 1e-6, "--explain")
    assert called.code == 0
    assert "Group 1, image 1: 1 image (1 by pioneer)" in called.err
    assert "MISSED by" in called.err
    assert called.err.count("does not fit") == 3
    assert "stop at pioneer" in next(
        line for line in called.err.splitlines() if line.endswith("<- chosen")
    )


def test_explain_as_json_is_one_object(run: Any) -> None:
    called = run("--explain", "--json", "--group", 5)
    assert "Group" not in called.err
    found = called.json()
    assert sorted(found) == ["groups", "predictions", "summary"]
    assert [group["images"] for group in found["groups"]] == [5, 4]
    for group in found["groups"]:
        decision = group["steps"][0]["decision"]
        assert {route["successor"] for route in decision["routes"]} == NODES - {"pioneer"}
        sent = sum(route["images"] for route in decision["routes"])
        assert sent + decision["stopped"] == group["images"]


def test_one_picture_is_answered(run: Any, shared_photos: Path) -> None:
    picture = shared_photos / "test" / "dog" / "1.png"
    (row,) = run("--json", images=picture).json()["predictions"]
    assert (row["file"], row["truth"]) == (str(picture), "dog")


def test_pictures_outside_class_folders_have_no_truth(
    run: Any, shared_photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "some").mkdir()
    data = (shared_photos / "test" / "dog" / "1.png").read_bytes()
    (tmp_path / "some" / "1.png").write_bytes(data)
    found = run("--json", images=tmp_path / "some").json()
    assert found["summary"]["accuracy"] is None
    assert found["predictions"][0]["truth"] is None


def test_bad_pictures_are_left_out_if_asked(run: Any, photos: Path) -> None:
    bad = photos / "test" / "cat" / "0.png"
    bad.write_bytes(b"")
    called = run("--skip-bad-images", "--json", images=photos / "test")
    assert called.json()["summary"]["images"] == 8
    assert f"left out: {bad}" in called.err


def test_the_backend_can_be_named(run: Any) -> None:
    assert run("--backend", "torchscript").code == 0


def test_a_promise_that_cannot_be_is_refused(run: Any) -> None:
    assert run("--promise", 0.9).code == 0
    called = run("--promise", 1)
    assert called.code == 2
    assert "0.5 to 0.995 of deadlines" in called.err


def test_a_strangers_bundle_runs_without_its_code(run: Any) -> None:
    found = run("--untrusted", "--json").json()
    assert found["summary"]["images"] > 0


def test_what_needs_its_code_is_refused_then(run: Any) -> None:
    called = run("--untrusted", "--backend", "torchscript")
    assert called.code == 2
    assert "not trusted" in called.err
    assert "leave out --untrusted" in called.err


def test_run_leaves_nothing(run: Any, here: Path) -> None:
    run()
    assert list(here.iterdir()) == []
