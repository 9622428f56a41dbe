"""Nodes, routes and whole networks, timed in turns on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opa_trt.backends.null import NullBackend
from opa_trt.clock import VirtualClock
from opa_trt.errors import ConfigError
from opa_trt.evaluate.bench import MONOLITH, NODE, ROUTE, Bench, Row, ratios, run_bench
from opa_trt.evaluate.bench_picture import draw_bench
from opa_trt.runtime import open_loader

MS = {"pioneer": 1.0, "tiny": 1.0, "small": 2.0, "medium": 4.0, "large": 8.0}
WHOLE = {f"whole {name}": 0.5 + ms for name, ms in MS.items()}


@pytest.fixture
def bench(toy_bundle: Path) -> Callable[..., Bench]:
    """The little network's bundle on engines that take 1 to 8 ms an image."""
    clock = VirtualClock()
    vendor = NullBackend(clock, lambda name, batch: {**MS, **WHOLE}[name] * batch)

    def run(*batches: int, **options: Any) -> Bench:
        loader = open_loader(toy_bundle, backend=vendor, clock=clock)
        return run_bench(loader, batches, clock=clock, **{"seconds": 0.0, **options})

    return run


def rows_of(found: Bench, kind: str) -> dict[tuple[str, int], Row]:
    return {(row.name, row.batch): row for row in found.rows if row.kind == kind}


def test_every_node_is_timed_at_every_batch(bench: Any) -> None:
    nodes = rows_of(bench(1, 8), NODE)
    assert nodes.keys() == {(name, batch) for name in MS for batch in (1, 8)}
    for (name, batch), row in nodes.items():
        quantiles = (row.p50_ms, row.p95_ms, row.p99_ms)
        assert quantiles == pytest.approx((MS[name] * batch,) * 3)
        assert row.images_per_s == pytest.approx(1000 / MS[name])


def test_a_route_takes_what_its_nodes_take(bench: Any) -> None:
    routes = rows_of(bench(4), ROUTE)
    assert routes.keys() == {(name, 4) for name in MS if name != "pioneer"}
    assert routes["large", 4].p50_ms == pytest.approx(4 * 9.0)


def test_a_route_is_compared_with_its_network_in_one_piece(bench: Any) -> None:
    found = bench(2, monoliths=True)
    assert rows_of(found, MONOLITH)["large", 2].p50_ms == pytest.approx(2 * 8.5)
    assert ratios(found.rows)["large", "null", 1, 2] == pytest.approx(9.0 / 8.5)
    assert len(ratios(found.rows)) == 4


def test_without_monoliths_there_is_no_ratio(bench: Any) -> None:
    assert ratios(bench(2).rows) == {}


def test_the_time_given_decides_how_often_it_runs(bench: Any) -> None:
    few, many = bench(1), bench(1, seconds=0.1)
    assert {row.runs for row in few.rows} == {10}
    (runs,) = {row.runs for row in many.rows}
    assert 20 < runs < 60  # 9 subjects of 1 to 9 ms in 0.9 s


@pytest.mark.parametrize("batch", [0, -1, 9])
def test_a_batch_out_of_range_is_refused(bench: Any, batch: int) -> None:
    with pytest.raises(ConfigError, match=f"batch {batch}") as caught:
        bench(1, batch)
    assert "1 to 8" in caught.value.expected


@pytest.mark.parametrize("vendor", ["torchscript", "onnxruntime"])
def test_real_engines_and_their_monoliths_are_verified(toy_bundle: Path, vendor: str) -> None:
    clock = VirtualClock()
    loader = open_loader(toy_bundle, backend=vendor)
    found = run_bench(loader, (1, 3), seconds=0.0, monoliths=True, clock=clock)
    assert rows_of(found, MONOLITH).keys() == rows_of(found, ROUTE).keys()
    assert {row.backend for row in found.rows} == {vendor}
    stored = {entry.stamp.segment for entry in loader.store.entries() if entry.stamp}
    assert "whole large" in stored


def test_the_picture_shows_every_backend(bench: Any, tmp_path: Path) -> None:
    rows = bench(1, 4, 8, monoliths=True).rows
    others = [replace(row, backend="other", threads=2) for row in rows]
    draw_bench(tmp_path / "bench.png", [*rows, *others], "toy")
    data = (tmp_path / "bench.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    draw_bench(tmp_path / "one.png", rows, "toy")
    width = int.from_bytes(data[16:20], "big")
    assert width > int.from_bytes((tmp_path / "one.png").read_bytes()[16:20], "big")
