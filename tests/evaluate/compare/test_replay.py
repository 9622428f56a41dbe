"""A comparison once more, from its records alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opa_trt.backends import Engine
from opa_trt.backends.null import NullEngine
from opa_trt.clock import VirtualClock
from opa_trt.errors import ConfigError, DataError
from opa_trt.evaluate.compare import Comparison, Records, Settings, read_records, replay
from opa_trt.evaluate.compare.recall import nearest
from opa_trt.evaluate.compare.recorded import _rows_of, coded, recorded_engines
from opa_trt.evaluate.compare.records import RECORDS
from opa_trt.tree import FEATURES, IMAGES, LOGITS


@pytest.fixture(scope="module")
def records(compared: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """As the file gives them back."""
    path = tmp_path_factory.mktemp("records") / RECORDS
    path.write_bytes(compared.records)
    return read_records(path)


@pytest.fixture(scope="module")
def replayed(bundle: Any, records: Records) -> Comparison:
    """With the settings of the comparison. Not to be changed."""
    return replay(bundle, records, records.settings, path="invented.opa", origin="earlier")


# --- records --------------------------------------------------------------------------------------


def test_records_say_what_was_run(compared: Comparison, records: Records) -> None:
    assert records.settings.to_dict() == compared.report["settings"]
    assert records.nodes == compared.findings.nodes
    assert records.split == compared.report["split"]
    assert records.trials.keys() == compared.findings.trials.keys()
    assert len(records.steps["ms"]) == len(compared.findings.steps)
    assert set(records.answers.logits) == {"pioneer", "first", "exit1"}
    assert set(records.answers.given) == set(records.nodes)


@pytest.mark.parametrize(
    "content", [b"", b"no arrays", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "]
)
def test_records_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORDS).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path)


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"has no {RECORDS}"):
        read_records(tmp_path)


# --- engines --------------------------------------------------------------------------------------


def test_recorded_engines_give_what_was_recorded(bundle: Any, records: Records) -> None:
    clock = VirtualClock()
    engines: dict[str, Engine] = recorded_engines(
        bundle, records.answers, clock, lambda name, images: 2.0 * images
    )
    rows = np.array([7, 3, 119])
    images = torch.from_numpy(coded(records.pool, 16).take(rows))
    first = engines["pioneer"].run({IMAGES: images})
    assert (first[LOGITS].numpy() == records.answers.logits["pioneer"][rows]).all()
    second = engines["large"].run({FEATURES: first[FEATURES][1:]})
    assert (second[LOGITS].argmax(1).numpy() == records.answers.given["large"][rows[1:]]).all()
    assert clock.now_ms() == 2.0 * (3 + 2)


@pytest.mark.parametrize("scaled", [False, True])
def test_coded_images_say_which_row_they_are(records: Records, scaled: bool) -> None:
    pool = coded(replace(records.pool, scaled=scaled), 5)
    rows = np.array([0, 1, 255, 256, 70_000])
    assert _rows_of(torch.from_numpy(pool.take(rows))).tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("wanted", "place"), [(-3, 0), (0, 0), (4, 1), (7.4, 1), (7.5, 2), (99, 2)]
)
def test_the_nearest_turn(wanted: float, place: int) -> None:
    assert nearest(np.array([0, 5, 10]), wanted) == place


# --- the replay -----------------------------------------------------------------------------------


def test_a_replay_agrees_with_the_run_within_its_intervals(
    compared: Comparison, replayed: Comparison
) -> None:
    rows = zip(compared.report["results"], replayed.report["results"], strict=True)
    for live, again in rows:
        assert (live["load"], live["arm"]) == (again["load"], again["arm"])
        assert live["deadline_ms"] == pytest.approx(again["deadline_ms"])
        for name in ("accuracy", "in_time_accuracy"):
            low, high = live[name]["low"], live[name]["high"]
            assert low - 1e-9 <= again[name]["mean"] <= high + 1e-9, (live, again)
        assert again["p50_ms"] == pytest.approx(live["p50_ms"], rel=0.15)


def test_static_arms_are_replayed_exactly(compared: Comparison, replayed: Comparison) -> None:
    for live, again in zip(compared.report["results"], replayed.report["results"], strict=True):
        if live["arm"] in ("static_best", "static_largest"):
            assert again["accuracy"] == live["accuracy"]
            assert again["p99_ms"] == pytest.approx(live["p99_ms"], rel=1e-6)


def test_a_replay_says_so_and_where_it_was_run(compared: Comparison, replayed: Comparison) -> None:
    assert replayed.report["replay"] == "earlier"
    assert replayed.report["machine"] == compared.report["machine"]
    assert replayed.report["split"] == compared.report["split"]
    assert replayed.report["bundle"]["backend"] == compared.report["bundle"]["backend"]


def test_no_engine_runs(
    bundle: Any, records: Records, little: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(NullEngine, "_run", run)
    found = replay(bundle, records, replace(records.settings, groups=3, loads=(0,)))
    assert found.report["results"]


def test_a_replay_is_the_same_again(bundle: Any, records: Records) -> None:
    settings = replace(records.settings, groups=4, loads=(1,), group_sizes=(1,))
    one, other = (replay(bundle, records, settings) for _ in range(2))
    assert one.report["results"] == other.report["results"]


def test_other_deadlines_and_sizes_can_be_asked_for(bundle: Any, records: Records) -> None:
    settings = replace(records.settings, groups=4, deadlines=(3.0, 7.0), group_sizes=(1, 3))
    report = replay(bundle, records, settings).report
    assert {row["deadline_ms"] for row in report["results"]} == {3.0, 7.0}
    assert {row["size"] for row in report["group_sizes"]} == {1, 3}


def test_a_replay_can_be_replayed(bundle: Any, replayed: Comparison, tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_bytes(replayed.records)
    records = read_records(tmp_path)
    settings = replace(records.settings, groups=3, loads=(0,), group_sizes=(1,))
    assert replay(bundle, records, settings).report["results"]


def test_a_load_that_was_not_recorded_is_refused(bundle: Any, records: Records) -> None:
    with pytest.raises(ConfigError, match="load 3 was not recorded") as error:
        replay(bundle, records, replace(records.settings, loads=(3,)))
    assert error.value.expected == "one of 0, 1."


@pytest.mark.parametrize("families", [(), ("noise", "contrast")])
def test_content_that_was_not_recorded_is_refused(
    bundle: Any, records: Records, families: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=r"was not recorded\.\s+Expected  some of noise"):
        replay(bundle, records, replace(records.settings, families=families))


def test_a_replay_says_who_ran_what_it_replays(compared: Comparison, replayed: Comparison) -> None:
    for name in ("backend", "threads"):
        assert replayed.report["bundle"][name] == compared.report["bundle"][name]


def test_records_of_another_bundle_are_refused(small_bundle: Any, records: Records) -> None:
    with pytest.raises(DataError, match=r"not of .*small\.opa"):
        replay(small_bundle, records, records.settings)


def test_deadlines_that_no_route_met_are_refused(bundle: Any, records: Records) -> None:
    with pytest.raises(ConfigError, match="no route meets"):
        replay(bundle, records, replace(records.settings, deadlines=(0.01,)))
