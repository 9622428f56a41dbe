"""Nodes, routes and monoliths of a bundle, timed in turns: on a virtual clock, and real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.backends.null import NullBackend, NullEngine
from opa_trt.bundle import Bundle
from opa_trt.clock import VirtualClock
from opa_trt.errors import ConfigError
from opa_trt.evaluate.bench import LEAST_RUNS, MOST_RUNS, bench, check_batches
from opa_trt.evaluate.bench_rows import MONOLITH, NODE, ROUTE, Found, Row
from opa_trt.evaluate.engine_set import Setting, open_settings
from opa_trt.progress import Progress
from opa_trt.runtime import open_loader
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, PlanEntry

MS = {"pioneer": 1.0, "tiny": 1.0, "small": 2.0, "medium": 4.0, "large": 8.0}
TAILS = tuple(MS)[1:]
SHARED_MS = 0.25  # what one engine saves


def latency(name: str, batch: int) -> float:
    """A network as one engine takes a little less than its parts."""
    parts = name.split("+")
    return batch * (sum(MS[part] for part in parts) - SHARED_MS * (len(parts) - 1))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def setting(toy_bundle: Path, clock: VirtualClock) -> Callable[..., Setting]:
    """The toy's bundle on a machine whose engines take as long as they are told."""

    def make(chosen: str = "null", told: Any = latency, threads: int = 1) -> Setting:
        vendor = NullBackend(clock, told)
        loader = open_loader(toy_bundle, backend=vendor, threads=threads, clock=clock)
        return Setting(chosen, loader)

    return make


def rows_of(found: Found, kind: str) -> dict[tuple[str, int], Row]:
    return {(row.nodes[-1], row.batch): row for row in found.rows if row.kind == kind}


# --- what is timed ------------------------------------------------------------------------------


def test_every_node_takes_what_its_engine_takes(setting: Any) -> None:
    found = rows_of(bench([setting()], [1, 8], seconds=0.001), NODE)
    assert found.keys() == {(name, batch) for name in MS for batch in (1, 8)}
    for (name, batch), row in found.items():
        assert [row.at(q) for q in (0.5, 0.95, 0.99)] == pytest.approx([batch * MS[name]] * 3)


def test_a_route_takes_as_long_as_its_nodes_together(setting: Any) -> None:
    found = rows_of(bench([setting()], [1, 8], seconds=0.001), ROUTE)
    assert found.keys() == {(name, batch) for name in TAILS for batch in (1, 8)}
    for (name, batch), row in found.items():
        assert row.nodes == ("pioneer", name)
        assert row.at(0.5) == pytest.approx(batch * (MS["pioneer"] + MS[name]))


def test_monoliths_are_timed_only_when_asked_for(setting: Any) -> None:
    assert rows_of(bench([setting()], [4], seconds=0.001), MONOLITH) == {}
    found = rows_of(bench([setting()], [4], monoliths=True, seconds=0.001), MONOLITH)
    assert found.keys() == {(name, 4) for name in TAILS}
    for (name, _), row in found.items():
        assert row.at(0.5) == pytest.approx(4 * (MS["pioneer"] + MS[name] - SHARED_MS))


def test_a_route_is_compared_with_its_monolith(setting: Any) -> None:
    found = bench([setting()], [1, 8], monoliths=True, seconds=0.001)
    ratios = {(r.route.nodes[-1], r.route.batch): r for r in found.ratios()}
    assert ratios.keys() == {(name, batch) for name in TAILS for batch in (1, 8)}
    for (name, _), found_ratio in ratios.items():
        wanted = (MS["pioneer"] + MS[name]) / (MS["pioneer"] + MS[name] - SHARED_MS)
        given = (found_ratio.ratio, found_ratio.low, found_ratio.high)
        assert given == pytest.approx((wanted,) * 3)


def test_without_monoliths_there_are_no_ratios(setting: Any) -> None:
    assert bench([setting()], [1], seconds=0.001).ratios() == []


def test_images_a_second_are_those_of_the_median(setting: Any) -> None:
    found = rows_of(bench([setting()], [8], seconds=0.001), ROUTE)
    assert found["large", 8].images_per_s == pytest.approx(1000 / 9)


# --- how often, and in which order --------------------------------------------------------------


def test_the_time_given_decides_how_often_each_runs(setting: Any) -> None:
    few = bench([setting()], [1], seconds=0.001)
    assert {len(row.ms) for row in few.rows} == {LEAST_RUNS}
    found = bench([setting()], [1], seconds=0.1)
    one_turn = sum(MS.values()) + sum(MS["pioneer"] + MS[name] for name in TAILS)
    (runs,) = {len(row.ms) for row in found.rows}
    assert runs == pytest.approx(100 * len(found.rows) / one_turn, abs=1)


def test_no_row_runs_more_often_than_is_worth_it(setting: Any) -> None:
    found = bench([setting(told=lambda *_: 0.001)], [1], seconds=100)
    assert {len(row.ms) for row in found.rows} == {MOST_RUNS}


def test_a_passing_load_hits_every_row_of_every_setting(setting: Any, clock: VirtualClock) -> None:
    begun: list[float] = []

    def loaded_for_a_while(name: str, batch: int) -> float:
        begun.append(clock.now_ms())
        return 10.0 if len(begun) > 600 else 1.0

    settings = [setting(name, loaded_for_a_while) for name in ("one", "other")]
    found = bench(settings, [1], seconds=0.2)
    counts = {sum(ms >= 10 for ms in row.ms) for row in found.rows if row.kind == NODE}
    assert len(counts) <= 2
    assert max(counts) - min(counts) <= 1
    assert min(counts) > 0


def test_settings_of_equal_threads_take_turns(setting: Any) -> None:
    order: list[str] = []

    def noting(label: str) -> Callable[[str, int], float]:
        def told(name: str, batch: int) -> float:
            order.append(label)
            return 1.0

        return told

    bench([setting("a", noting("a")), setting("b", noting("b"))], [1], seconds=0.001)
    changes = sum(a != b for a, b in pairwise(order))
    assert changes >= LEAST_RUNS


def test_the_run_after_another_settings_run_does_not_count(setting: Any) -> None:
    last = ""

    def disturbed(label: str) -> Callable[[str, int], float]:
        def told(name: str, batch: int) -> float:
            nonlocal last
            before, last = last, label
            return 1.0 if before == label else 50.0

        return told

    settings = [setting("a", disturbed("a")), setting("b", disturbed("b"))]
    found = bench(settings, [1], seconds=0.001)
    assert {ms for row in found.rows if row.kind == NODE for ms in row.ms} == {1.0}


def test_rows_say_which_setting_they_are_of(setting: Any) -> None:
    found = bench([setting("a"), setting("b"), setting("a", threads=2)], [1], seconds=0.001)
    places = dict.fromkeys((row.chosen, row.threads) for row in found.rows)
    assert list(places) == [("a", 1), ("b", 1), ("a", 2)]
    assert [(made["chosen"], made["threads"]) for made in found.sets] == list(places)
    assert {row.backend for row in found.rows} == {"null"}


def test_torch_has_the_threads_that_are_timed(setting: Any) -> None:
    seen: list[tuple[int, int]] = []

    def noting(threads: int) -> Callable[[str, int], float]:
        def told(name: str, batch: int) -> float:
            seen.append((threads, torch.get_num_threads()))
            return 1.0

        return told

    bench([setting(told=noting(n), threads=n) for n in (1, 2)], [1], seconds=0.001)
    assert set(seen) == {(1, 1), (2, 2)}


def test_the_same_bench_gives_the_same_rows(setting: Any, toy_bundle: Path) -> None:
    first = bench([setting()], [1, 4], monoliths=True, seconds=0.01)
    again = bench([setting()], [1, 4], monoliths=True, seconds=0.01)
    for one, other in zip(first.rows, again.rows, strict=True):
        assert replace(one, ms=()) == replace(other, ms=())
        assert one.ms == pytest.approx(other.ms)


def test_progress_hears_of_every_batch(setting: Any) -> None:
    class Heard(Progress):
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.most = 0

        def start(self, stage: str, total: int | None = None) -> None:
            self.stages.append(stage)

        def advance(self, done: int, note: str = "") -> None:
            self.most = max(self.most, done)

    heard = Heard()
    bench([setting()], [1, 8], seconds=0.1, progress=heard)
    assert heard.stages == ["load null", "threads 1, batch 1", "threads 1, batch 8"]
    assert 80 < heard.most <= 99


# --- engines ------------------------------------------------------------------------------------


def test_a_tail_reads_the_features_where_the_pioneer_left_them(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, read = set(), set()

    def look(self: NullEngine, inputs: Any, out: dict[str, Tensor], stream: Any) -> None:
        if self.segment.name == "pioneer":
            written.add(out[FEATURES].data_ptr())
        else:
            read.add(inputs[FEATURES].data_ptr())

    monkeypatch.setattr(NullEngine, "_run", look)
    monkeypatch.setattr("opa_trt.runtime.engines.verify", lambda *_: 0.0)
    bench([setting()], [4], seconds=0.001)
    assert len(written) == 1
    assert written == read


def test_engines_are_closed_even_if_one_fails(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Engine] = []
    load = NullBackend.load

    def noting(self: NullBackend, *arguments: Any) -> Engine:
        made.append(load(self, *arguments))
        return made[-1]

    def interrupted(name: str, batch: int) -> float:
        if len(made) == len(MS) and batch == 3:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(NullBackend, "load", noting)
    with pytest.raises(KeyboardInterrupt):
        bench([setting(told=interrupted)], [3], seconds=0.001)
    assert len(made) == len(MS)
    assert all(engine._closed for engine in made)


def chain(*names: str, source: str) -> tuple[Node, ...]:
    """Nodes in a row; all but the first read ``source``."""
    return tuple(
        Node(
            name,
            name,
            source if place else IMAGES,
            (FEATURES, LOGITS) if place + 1 < len(names) else (LOGITS,),
            names[place + 1 : place + 2],
        )
        for place, name in enumerate(names)
    )


def test_a_chain_of_exits_has_a_route_and_a_monolith_each(invent: Any, clock: VirtualClock) -> None:
    path = invent(chain("pioneer", "small", "large", source=FEATURES))
    loader = open_loader(path, backend=NullBackend(clock, latency), clock=clock)
    found = bench([Setting("null", loader)], [1], monoliths=True, seconds=0.001)
    routes = {row.nodes: row.at(0.5) for row in found.rows if row.kind == ROUTE}
    assert routes == {("pioneer", "small"): 3.0, ("pioneer", "small", "large"): 11.0}
    wholes = {row.nodes: row.at(0.5) for row in found.rows if row.kind == MONOLITH}
    assert wholes == {("pioneer", "small"): 2.75, ("pioneer", "small", "large"): 10.5}


def test_a_cascade_of_whole_networks_has_no_monolith(invent: Any, clock: VirtualClock) -> None:
    path = invent(chain("small", "large", source=IMAGES))
    loader = open_loader(path, backend=NullBackend(clock, latency), clock=clock)
    found = bench([Setting("null", loader)], [1], monoliths=True, seconds=0.001)
    assert {row.nodes: row.at(0.5) for row in found.rows if row.kind == ROUTE} == {
        ("small", "large"): 10.0
    }
    assert rows_of(found, MONOLITH) == {}


@pytest.mark.parametrize("name", ["torchscript", "onnxruntime", "openvino"])
def test_monoliths_of_real_backends_are_verified_and_kept(
    toy_bundle: Path, ticking: Any, name: str
) -> None:
    if name != "torchscript":
        pytest.importorskip(name, reason=f"{name} is not installed")
    settings = open_settings(Bundle(toy_bundle), [name], [1], clock=ticking)
    found = bench(settings, [1, 8], monoliths=True, seconds=0.001)
    assert rows_of(found, MONOLITH).keys() == rows_of(found, ROUTE).keys()
    kept = {e.stamp.segment: e for e in settings[0].loader.store.entries() if e.stamp is not None}
    for tail in TAILS:
        size = rows_of(found, MONOLITH)[tail, 8].engine_bytes
        assert size == kept[f"pioneer+{tail}"].bytes > 0


def test_a_row_names_who_runs_it_at_its_batch(toy: Any, tmp_path: Path, ticking: Any) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    whole = (PlanEntry("torchscript", "fp32", 1, 8),)
    split = (PlanEntry("torchscript", "fp32", 1, 4), PlanEntry("onnxruntime", "fp32", 5, 8))
    plan = {name: split if name == "large" else whole for name in toy.forms}
    bundle = Bundle(toy.pack(tmp_path / "planned.opa", plan=plan))
    settings = open_settings(bundle, ["auto"], [None], clock=ticking)
    found = bench(settings, [4, 8], monoliths=True, seconds=0.001)
    assert rows_of(found, ROUTE)["large", 4].backend == "torchscript"
    assert rows_of(found, ROUTE)["large", 8].backend == "torchscript+onnxruntime"
    assert rows_of(found, MONOLITH)["large", 8].backend == "onnxruntime"
    assert rows_of(found, ROUTE)["small", 8].backend == "torchscript"
    assert settings[0].versions.keys() == {"torchscript", "onnxruntime"}


# --- figures ------------------------------------------------------------------------------------


def test_batches_are_sorted_and_each_once() -> None:
    assert check_batches([8, 1, 8, 4], 8) == [1, 4, 8]


@pytest.mark.parametrize("batch", [0, 9])
def test_a_batch_that_engines_do_not_take_is_refused(batch: int) -> None:
    with pytest.raises(ConfigError, match=f"batch {batch}") as caught:
        check_batches([1, batch], 8)
    assert caught.value.expected.startswith("1 to 8, the largest")


def test_a_row_tells_quantiles_over_all_runs() -> None:
    row = Row(NODE, ("tiny",), "auto", "null", 2, 8, tuple(float(ms) for ms in range(101)), 7)
    told = row.to_dict()
    assert (told["p50_ms"], told["p95_ms"], told["p99_ms"]) == (50.0, 95.0, 99.0)
    assert (told["runs"], told["images_per_s"], told["engine_bytes"]) == (101, 160.0, 7)


def test_the_interval_of_a_ratio_holds_turns_together() -> None:
    load = np.random.default_rng(0).uniform(1, 10, 200)  # hits both alike
    ms = {ROUTE: tuple(2 * load), MONOLITH: tuple(load)}
    rows = [Row(kind, ("a", "b"), "auto", "null", 1, 1, ms[kind]) for kind in (ROUTE, MONOLITH)]
    (ratio,) = Found(tuple(rows), ()).ratios()
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((2, 2, 2))


def test_where_no_time_passes_a_ratio_is_no_number() -> None:
    rows = [Row(kind, ("a", "b"), "auto", "null", 1, 1, (0.0,)) for kind in (ROUTE, MONOLITH)]
    (ratio,) = Found(tuple(rows), ()).ratios()
    assert np.isnan([ratio.ratio, ratio.low, ratio.high]).all()
