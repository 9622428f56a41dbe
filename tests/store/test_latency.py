"""Latency profiles: what was measured, and what lies between."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.backends.null import NullBackend
from opa_trt.clock import VirtualClock
from opa_trt.store import LatencyProfile, measure
from opa_trt.store.latency import LEAST_RUNS, MOST_RUNS, repeat_rows
from opa_trt.tree import FEATURES, IMAGES

PROFILE = LatencyProfile(
    (2, 4, 8), ((1.0, 1.5, 2.0), (3.0, 3.5, 4.0), (4.0, 5.0, 6.0)), (10, 10, 10)
)


def profiled(
    toy: Any, clock: VirtualClock, latency: Any, seconds: float = 0.0, max_batch: int = 8
) -> LatencyProfile:
    """The pioneer on a null backend, measured at batches 1, 4 and 16."""
    backend, segment = NullBackend(clock, latency), toy.segment("pioneer")
    target = backend.target(max_batch=max_batch, threads=1)
    engine = backend.load(backend.compile(segment, target), segment, target)
    example = {IMAGES: torch.from_numpy(toy.images(3))}
    return measure({"pioneer": (engine, example)}, (16, 1, 4), clock, seconds)["pioneer"]


# --- reading one --------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "ms"), [(2, 1.0), (3, 2.0), (4, 3.0), (6, 3.5), (8, 4.0)])
def test_it_is_exact_at_buckets_and_linear_between(batch: int, ms: float) -> None:
    assert PROFILE.at(batch) == pytest.approx(ms)


def test_below_the_first_bucket_it_is_that_bucket() -> None:
    assert PROFILE.at(1) == 1.0


def test_beyond_the_last_bucket_it_is_proportional() -> None:
    assert PROFILE.at(24) == pytest.approx(12.0)


@pytest.mark.parametrize(("quantile", "ms"), [(0.5, 3.0), (0.9, 3.5), (0.99, 4.0)])
def test_each_quantile_has_its_column(quantile: float, ms: float) -> None:
    assert PROFILE.at(4, quantile) == ms


def test_a_quantile_that_was_not_measured_is_an_error() -> None:
    with pytest.raises(ValueError):
        PROFILE.at(4, 0.75)


rising = st.lists(st.floats(0.01, 1e3), min_size=1, max_size=6).map(sorted)


@given(medians=rising, batches=st.sets(st.integers(1, 200), min_size=6, max_size=6))
def test_rising_buckets_make_a_rising_profile(medians: list[float], batches: set[int]) -> None:
    sizes = tuple(sorted(batches))[: len(medians)]
    profile = LatencyProfile(sizes, tuple((m, m, m) for m in medians), (7,) * len(medians))
    curve = [profile.at(batch) for batch in range(1, 250)]
    assert all(later >= earlier * (1 - 1e-12) for earlier, later in pairwise(curve))


# --- keeping one --------------------------------------------------------------------------------


def test_it_survives_json() -> None:
    assert LatencyProfile.from_dict(json.loads(json.dumps(PROFILE.to_dict()))) == PROFILE


@pytest.mark.parametrize(
    "change",
    [
        {"batches": [2, 4]},
        {"runs": [1]},
        {"batches": [], "ms": [], "runs": []},
        {"ms": [[1.0], [1.0], [1.0]]},
        {"ms": [["x", 1, 1]] * 3},
        {"batches": 3},
        {"ms": None},
    ],
)
def test_what_is_no_profile_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        LatencyProfile.from_dict({**PROFILE.to_dict(), **change})


def test_a_missing_part_is_refused() -> None:
    with pytest.raises(KeyError):
        LatencyProfile.from_dict({"batches": [1], "ms": [[1, 1, 1]]})


# --- measuring one ------------------------------------------------------------------------------


def test_a_steady_engine_has_its_latency_in_every_quantile(toy: Any) -> None:
    profile = profiled(toy, VirtualClock(), lambda name, batch: 0.5 * batch)
    assert profile.batches == (1, 4, 8)
    for batch, row in zip(profile.batches, profile.ms, strict=True):
        assert row == pytest.approx((0.5 * batch,) * 3)


def test_batches_beyond_the_range_are_measured_at_its_end(toy: Any) -> None:
    profile = profiled(toy, VirtualClock(), lambda name, batch: batch, max_batch=4)
    assert profile.batches == (1, 4)


def test_the_first_run_is_warm_up(toy: Any) -> None:
    seen: set[int] = set()

    def slow_at_first(name: str, batch: int) -> float:
        first = batch not in seen
        seen.add(batch)
        return 1000.0 if first else 2.0

    for row in profiled(toy, VirtualClock(), slow_at_first).ms:
        assert row == pytest.approx((2.0, 2.0, 2.0))


def test_quantiles_are_those_of_the_runs(toy: Any) -> None:
    turns = Counter[int]()

    def cost(name: str, batch: int) -> float:
        turns[batch] += 1
        return 1.0 + turns[batch] % 100

    profile = profiled(toy, VirtualClock(), cost, seconds=1e9)
    for median, high, highest in profile.ms:
        assert (median, high, highest) == pytest.approx((50.5, 90.1, 99.01), abs=1.5)


def test_a_slow_engine_has_the_least_runs(toy: Any) -> None:
    assert profiled(toy, VirtualClock(), lambda *_: 50.0, 0.01).runs == (LEAST_RUNS,) * 3


def test_a_fast_engine_has_the_most_runs(toy: Any) -> None:
    assert profiled(toy, VirtualClock(), lambda *_: 0.0, 0.01).runs == (MOST_RUNS,) * 3


def test_between_the_time_given_decides(toy: Any) -> None:
    runs = profiled(toy, VirtualClock(), lambda *_: 1.0, seconds=0.05).runs
    assert all(50 <= count <= 51 for count in runs)


def test_a_passing_load_hits_all_engines_alike(toy: Any) -> None:
    costs = {"tiny": 1.0, "large": 4.0}

    turn = iter(range(10_000))

    def cost(name: str, batch: int) -> float:
        return costs[name] * (10 if 40 <= next(turn) < 60 else 1)

    clock = VirtualClock()
    backend = NullBackend(clock, cost)
    target = backend.target(max_batch=8, threads=1)
    engines = {}
    for name in costs:
        segment = toy.segment(name)
        engine = backend.load(backend.compile(segment, target), segment, target)
        engines[name] = (engine, {FEATURES: torch.zeros(1, 4, 4, 4)})
    found = measure(engines, (1,), clock, seconds=0.2)
    small, large = (found[name].ms[0] for name in costs)
    assert large == pytest.approx([4 * ms for ms in small])


def test_batch_sizes_and_engines_alternate(toy: Any) -> None:
    seen: list[tuple[str, int]] = []
    clock = VirtualClock()

    def cost(name: str, batch: int) -> float:
        seen.append((name, batch))
        return 1.0

    backend = NullBackend(clock, cost)
    target = backend.target(max_batch=8, threads=1)
    engines = {}
    for name in ("tiny", "large"):
        segment = toy.segment(name)
        engine = backend.load(backend.compile(segment, target), segment, target)
        engines[name] = (engine, {FEATURES: torch.zeros(1, 4, 4, 4)})
    measure(engines, (1, 8), clock, seconds=0.0)
    turns = [seen[-4 * (turn + 1) :][:4] for turn in range(LEAST_RUNS)]
    assert all(len(set(turn)) == 4 for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1


def test_rows_are_repeated_as_needed() -> None:
    rows = torch.arange(6).view(3, 2)
    assert repeat_rows(rows, 7)[:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]
    assert repeat_rows(rows, 2).tolist() == [[0, 1], [2, 3]]
    assert repeat_rows(rows, 5).is_contiguous()
