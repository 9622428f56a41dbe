"""What the latency model believes, and that its beliefs keep the laws they should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opa_trt
from opa_trt.errors import ConfigError
from opa_trt.policies import Promise
from opa_trt.runtime.latency import LatencyModel
from opa_trt.runtime.margin import KNOWN, PROMISE, REST, SHARED, WINDOW, place_of
from opa_trt.runtime.overheads import ENOUGH, Kind
from opa_trt.store import LatencyProfile
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Tree

TREE = Tree(
    (
        Node("pioneer", "pioneer", IMAGES, (FEATURES, LOGITS), ("small", "large")),
        Node("small", "small", FEATURES, (LOGITS,)),
        Node("large", "large", FEATURES, (LOGITS,)),
    )
)
MISSED = REST * (1 - PROMISE)
FEW = place_of(MISSED)
BASE = {"pioneer": 1.0, "small": 2.0, "large": 8.0}
factors = st.floats(0.1, 50)
calm = st.floats(0.2, 1.2)  # one regime
LARGE = 2  # its row
ratios = st.lists(st.floats(0.2, 5), min_size=0, max_size=150)


def profiled(node: str, batch: int) -> float:
    """Median ms."""
    return float(np.interp(batch, (1, 8), (BASE[node] / 2, BASE[node])))


def make(spread: float = 1.0, promise: float = PROMISE) -> LatencyModel:
    """Nodes whose median is ``BASE`` for 8 images, half of that for one, p99 ``spread`` times."""
    profiles = {
        name: LatencyProfile(
            (1, 8), ((ms / 2, ms / 2, spread * ms / 2), (ms, ms, spread * ms)), (7, 7)
        )
        for name, ms in BASE.items()
    }
    model = LatencyModel(TREE, profiles, 8, promise)
    model.observe_entry("pioneer", 8, profiled("pioneer", 8))
    return model


def promise(
    model: LatencyModel, names: Sequence[str], batches: Sequence[int], slowdown: float
) -> Any:
    """``[len(names), len(batches)]`` ms."""
    rows = [list(BASE).index(name) for name in names]
    return model.promise(slowdown).ms(model.every(tuple(batches), slowdown))[rows]


def score(model: LatencyModel, *ratios: float) -> None:
    """Let groups take so many times the 8 ms expected, none of it in the runtime itself."""
    for ratio in ratios:
        model.observe_rest(8.0, 8.0 * ratio, 0.0, split=False)


def group(model: LatencyModel, slowdown: float, node: str = "large", batch: int = 8) -> None:
    """One group at a steady slowdown: the pioneer, then ``node``."""
    reading = model.read("pioneer", batch, slowdown * profiled("pioneer", batch))
    model.observe_entry("pioneer", batch, slowdown * profiled("pioneer", batch))
    expected, measured = model.expected(node, batch, reading), slowdown * profiled(node, batch)
    model.observe(node, expected, measured)
    model.observe_rest(expected, measured, 0.0, split=False, slowdown=reading)


def test_at_first_it_believes_the_profile() -> None:
    model = make()
    assert model.slowdown == 1.0
    assert model.overheads.ms(Kind.WHOLE) == 0.0
    assert model.expected("large", 8) == 8.0
    assert model.expected("large", 1) == 4.0
    np.testing.assert_allclose(promise(model, ("small", "large"), (1, 8), 1.0), [[1, 2], [4, 8]])


def test_at_first_the_margin_is_the_profiles_spread() -> None:
    assert promise(make(1.5), ("large",), (8,), 1.0)[0, 0] == pytest.approx(12.0)


@pytest.mark.parametrize(("spread", "margin"), [(100.0, 2.0), (0.5, 1.0)])
def test_a_wild_profile_does_not_make_a_wild_margin(spread: float, margin: float) -> None:
    assert promise(make(spread), ("large",), (8,), 1.0)[0, 0] == pytest.approx(8 * margin)


def test_an_engine_that_takes_no_time_breaks_nothing() -> None:
    profiles = {name: LatencyProfile((1,), ((0.0, 0.0, 0.0),), (7,)) for name in BASE}
    model = LatencyModel(TREE, profiles, 8)
    for _ in range(2 * WINDOW):
        model.observe_entry("pioneer", 8, 0.0)
        model.observe("large", 0.0, 0.0)
    assert model.read("pioneer", 8, 1.0) == 1.0
    assert promise(model, ("large",), (8,), 1.0)[0, 0] == 0.0


# --- learning -----------------------------------------------------------------------------------


@given(slowdown=factors)
def test_a_constant_slowdown_is_learned(slowdown: float) -> None:
    model = make()
    for _ in range(150):
        group(model, slowdown)
    assert model.slowdown == pytest.approx(slowdown, rel=1e-3)
    assert model.expected("large", 8) == pytest.approx(8 * slowdown, rel=0.05)


@given(slowdown=factors)
def test_then_promises_are_kept_and_not_wasteful(slowdown: float) -> None:
    model = make()
    for _ in range(2 * WINDOW):
        group(model, slowdown)
    promised = promise(model, ("large",), (8,), model.slowdown)[0, 0]
    assert promised == pytest.approx(8 * slowdown, rel=0.01)
    assert promised >= 8 * slowdown * (1 - 1e-6)


def test_a_node_that_is_slower_than_its_profile_is_learned_by_itself() -> None:
    model = make()
    for _ in range(100):
        model.observe_entry("pioneer", 8, 1.0)
        model.observe("large", model.expected("large", 8), 12.0)
    assert model.expected("large", 8) == pytest.approx(12.0, rel=1e-3)
    assert model.expected("small", 8) == 2.0
    assert model.slowdown == 1.0


def test_one_reading_moves_the_belief_part_of_the_way() -> None:
    model = make()
    assert 1.0 < model.read("pioneer", 8, 4.0) < 4.0
    model.observe_entry("pioneer", 8, 4.0)
    assert 1.0 < model.slowdown < model.read("pioneer", 8, 4.0)


@given(first=st.floats(0.01, 100), second=st.floats(0.01, 100))
def test_a_slower_reading_never_means_a_faster_machine(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert make().read("pioneer", 8, low) <= make().read("pioneer", 8, high)


def test_a_residual_ages_while_its_node_does_not_run() -> None:
    model = make()
    for _ in range(60):
        model.observe_entry("pioneer", 8, 1.0)
        model.observe("large", model.expected("large", 8), 12.0)
    believed = [model.expected("large", 8)]
    for _ in range(300):
        model.observe_entry("pioneer", 8, 1.0)
        believed.append(model.expected("large", 8))
    assert believed == sorted(believed, reverse=True)
    assert believed[0] == pytest.approx(12.0, rel=1e-3)
    assert believed[-1] == pytest.approx(8.0, rel=0.03)


def test_a_load_that_ends_is_forgotten() -> None:
    model = make()
    for slowdown in [4.0] * 50 + [1.0] * 100:
        group(model, slowdown)
    assert model.slowdown == pytest.approx(1.0, rel=1e-3)
    assert model.expected("large", 8) == pytest.approx(8.0, rel=0.05)


# --- promises -----------------------------------------------------------------------------------


@given(scores=ratios, first=calm, second=calm)
def test_promises_rise_with_the_slowdown(scores: list[float], first: float, second: float) -> None:
    model = make(1.3)
    score(model, *scores)
    low, high = sorted((first, second))
    below, above = (promise(model, ("small", "large"), (1, 4, 8), s) for s in (low, high))
    assert (below <= above).all()


def test_what_a_busy_machine_did_says_nothing_of_a_calm_one() -> None:
    model = make(1.3)
    for _ in range(FEW):
        model.observe_rest(16.0, 80.0, 0.0, split=False, slowdown=2.0)
    calm, busy = (promise(model, ("large",), (8,), s)[0, 0] / (8 * s) for s in (1.0, 2.0))
    assert calm == pytest.approx(1.3)
    assert busy == pytest.approx(5.0)


@given(scores=ratios, slowdown=factors)
def test_promises_rise_with_the_batch(scores: list[float], slowdown: float) -> None:
    model = make(1.3)
    score(model, *scores)
    assert (np.diff(promise(model, ("small", "large"), range(1, 9), slowdown), axis=1) >= 0).all()


@given(scores=ratios, slowdown=factors)
def test_a_promise_is_never_below_the_expectation(scores: list[float], slowdown: float) -> None:
    model = make(1.3)
    score(model, *scores)
    promised = promise(model, ("large",), (8,), slowdown)[0, 0]
    assert promised >= model.expected("large", 8, slowdown) * (1 - 1e-12)


@given(seed=st.integers(0, 1000))
def test_the_margin_is_conformal(seed: int) -> None:
    """The next one of 201 like scores stays below it with 99.5 % probability."""
    model, rng = make(), np.random.default_rng(seed)
    scores = np.exp(rng.normal(scale=0.3, size=WINDOW))
    score(model, *scores)
    margin = promise(model, ("large",), (8,), 1.0)[0, 0] / 8.0
    assert (scores <= margin * (1 + 1e-9)).sum() == math.ceil((1 - MISSED) * (WINDOW + 1))


@given(seed=st.integers(0, 1000), promised=st.floats(0.5, 0.995))
def test_so_many_stay_below_as_are_promised(seed: int, promised: float) -> None:
    scores = np.exp(np.random.default_rng(seed).normal(scale=0.3, size=WINDOW))
    margins = []
    for share in (promised, 0.995):
        model = make(promise=share)
        score(model, *scores)
        margins.append(promise(model, ("large",), (8,), 1.0)[0, 0] / 8.0)
        below = (scores <= margins[-1] * (1 + 1e-9)).mean()
        assert below >= 1 - REST * (1 - share) - 1 / WINDOW
    assert margins[0] <= margins[1]


@pytest.mark.parametrize(("promised", "spread"), [(0.5, 1.0), (0.9, 1.2), (0.91, 1.5), (0.99, 1.5)])
def test_at_first_the_profiles_own_quantile_is_the_margin(promised: float, spread: float) -> None:
    profiles = {
        name: LatencyProfile((8,), ((ms, 1.2 * ms, 1.5 * ms),), (7,)) for name, ms in BASE.items()
    }
    model = LatencyModel(TREE, profiles, 8, promised)
    model.observe_entry("pioneer", 8, 1.0)
    assert promise(model, ("large",), (8,), 1.0)[0, 0] == pytest.approx(8 * spread)


@pytest.mark.parametrize("promised", [0.0, 0.49, 0.996, 1.0, float("nan")])
def test_what_recent_groups_cannot_tell_is_not_promised(toy_bundle: Any, promised: float) -> None:
    with pytest.raises(ConfigError, match=r"promise=.*\s+Expected  0.5 to 0.995 of deadlines"):
        opa_trt.load(toy_bundle, promise=promised)


def test_few_slow_runs_do_not_move_the_margin_but_more_do() -> None:
    model = make(1.3)
    score(model, *[3.0] * (FEW - 1))
    assert promise(model, ("large",), (8,), 1.0)[0, 0] == pytest.approx(8 * 1.3)
    score(model, 2.0)
    assert promise(model, ("large",), (8,), 1.0)[0, 0] == pytest.approx(8 * 2.0)


def test_residuals_are_forgotten_after_a_window_even_if_nothing_new_is_seen() -> None:
    model = make(1.3)
    score(model, *[3.0] * 50)
    assert promise(model, ("large",), (8,), 1.0)[0, 0] / 8 == pytest.approx(3.0)
    for _ in range(WINDOW):
        model.observe_entry("pioneer", 8, profiled("pioneer", 8))
    assert promise(model, ("large",), (8,), 1.0)[0, 0] / 8 == pytest.approx(1.3)


def test_enough_calm_runs_bring_the_margin_below_the_profiles_spread() -> None:
    model = make(1.3)
    score(model, *[1.01] * WINDOW)
    assert promise(model, ("large",), (8,), 1.0)[0, 0] / 8 == pytest.approx(1.01)


def test_runs_that_were_faster_than_expected_make_no_margin_below_1() -> None:
    model = make(1.3)
    score(model, *[0.5] * WINDOW)
    assert promise(model, ("large",), (8,), 1.0)[0, 0] == pytest.approx(8.0)


def test_an_interruption_counts_in_relation_to_the_whole_group() -> None:
    model = make()
    entry = profiled("pioneer", 8)
    model.read("pioneer", 8, entry)
    for extra in [0.01] * (WINDOW - FEW) + [3.0] * FEW:
        model.observe_rest(1.0, 1.0 + extra, 0.0, split=False)
    every = model.every((8,), 1.0)
    promised = model.cheapest(("small", "large"), every, model.promise(1.0))[:, 0]
    score = 3.0 / math.sqrt(1.0 + entry)
    for found, node in zip(promised, ("small", "large"), strict=True):
        own = profiled(node, 8)
        assert found == pytest.approx(own + score * math.sqrt(own + entry))


def test_one_slow_decision_does_not_speak_for_its_kind() -> None:
    model = make()
    for _ in range(20):
        model.observe_rest(8.0, 8.2, 0.2, split=True)
    model.observe_rest(8.0, 12.2, 4.2, split=False)
    assert model.overheads.ms(Kind.WHOLE) == pytest.approx(0.2)


def test_the_overhead_is_the_median_of_what_the_runtime_took() -> None:
    model = make()
    for own in [*[0.1] * 9, 0.5, -0.3]:
        model.observe_rest(8.0, 8.0 + own, own, split=False)
    assert model.overheads.ms(Kind.WHOLE) == pytest.approx(0.1)
    assert model.overheads.ms(Kind.SPLIT) == pytest.approx(0.1)  # none was split so far
    assert model.overheads.beyond_ms() == 0.0


def test_where_nothing_is_ever_sent_on_deciding_takes_time_nevertheless() -> None:
    model = make()
    for _ in range(20):
        model.overheads.observe(Kind.STOP, 0.3)
        model.observe_entry("pioneer", 8, 1.0)
    assert model.overheads.ms(Kind.WHOLE) == model.overheads.ms(Kind.SPLIT) == pytest.approx(0.3)
    for _ in range(ENOUGH):
        model.observe_rest(8.0, 8.5, 0.5, split=False)
    assert model.overheads.ms(Kind.WHOLE) == pytest.approx(0.5)


def test_a_split_is_charged_what_it_took_beyond() -> None:
    model = make()
    for own, split in ((0.1, False), (0.4, True)) * 5:
        model.observe_rest(8.0, 8.0 + own, own, split=split)
    assert model.overheads.beyond_ms() == pytest.approx(0.3, rel=0.1)


def test_the_runtimes_own_time_is_part_of_every_promise() -> None:
    model = make()
    for _ in range(WINDOW):
        model.observe_rest(8.0, 9.0, 1.0, split=False)
    cheapest = model.cheapest(("small", "large"), model.every((8,), 1.0), model.promise(1.0))
    np.testing.assert_allclose(cheapest[:, 0], [3.0, 9.0], rtol=0.02)


def test_a_group_above_the_largest_batch_is_promised_in_chunks() -> None:
    model = make()
    np.testing.assert_allclose(model.of_group(8, 8)[:, 0], [1, 2, 8])
    np.testing.assert_allclose(model.of_group(17, 8)[:, 0], [2.5, 5, 20])
    np.testing.assert_allclose(model.of_group(1, 8)[:, 0], [0.5, 1, 4])
    cheapest = model.cheapest(("pioneer",), model.of_group(17, 8), Promise())
    np.testing.assert_allclose(cheapest, [[2.5]])


def test_a_reading_that_no_clock_can_have_measured_is_no_news() -> None:
    model = make()
    for _ in range(150):
        group(model, 3.0)
    for measured in (-5.0, 0.0, math.inf, math.nan):
        assert model.read("pioneer", 8, measured) == pytest.approx(model.slowdown)


# --- several entries ----------------------------------------------------------------------------

COMPLETE = ("short", "middle", "long")
THREE = Tree(tuple(Node(name, name, IMAGES, (LOGITS,)) for name in COMPLETE))
PROFILED = dict(zip(COMPLETE, (2.0, 4.0, 8.0), strict=True))


def of_three() -> LatencyModel:
    profiles = {n: LatencyProfile((8,), ((ms, ms, ms),), (7,)) for n, ms in PROFILED.items()}
    return LatencyModel(THREE, profiles, 8)


def entered(model: LatencyModel, name: str, ms: float, late_ms: float = 0.0) -> None:
    """A group that this entry answered in so much time, of which some was not expected."""
    model.read(name, 8, ms)
    model.observe_entry(name, 8, ms)
    model.observe_alone(PROFILED[name], PROFILED[name] + late_ms, 0.0)


def test_every_chunk_has_the_runtimes_own_time() -> None:
    model = of_three()
    for _ in range(WINDOW):
        model.read("short", 8, 2.0)
        model.observe_entry("short", 8, 2.0)
        model.observe_alone(2.0, 3.0, 1.0)
    every = model.of_group(24, 8)
    nothing = [Promise()] * 3
    found = model.entering(COMPLETE, every, nothing, chunks=3)[:, 0]
    np.testing.assert_allclose(found, every[:, 0] + 3 * 1.0)


def test_entries_in_turns_are_told_apart() -> None:
    """One is as slow as its profile, one twice as slow."""
    model = of_three()
    for _ in range(200):
        entered(model, "short", 2.0)
        entered(model, "long", 16.0)
    assert model.expected("short", 8) == pytest.approx(2.0, rel=0.15)
    assert model.expected("long", 8) == pytest.approx(16.0, rel=0.15)


def test_what_runs_again_and_again_shows_the_machine() -> None:
    model = of_three()
    for _ in range(200):
        entered(model, "short", 4.0)
    assert model.slowdown == pytest.approx(2.0, rel=1e-3)
    assert model.expected("long", 8) == pytest.approx(16.0, rel=1e-3)


def test_what_an_entry_showed_is_forgotten_while_it_does_not_run() -> None:
    model = of_three()
    for _ in range(50):
        entered(model, "short", 2.0)
        entered(model, "long", 16.0)
    for _ in range(1000):
        entered(model, "short", 2.0)
    assert model.expected("long", 8) == pytest.approx(8.0, rel=0.01)


def one_restless(turns: int) -> LatencyModel:
    """After turns of two entries, of which the short one is the more restless."""
    model = of_three()
    for _ in range(turns):
        entered(model, "short", 2.0, late_ms=1.0)
        entered(model, "long", 8.0, late_ms=0.2)
    return model


def scores(model: LatencyModel) -> list[float]:
    return [float(promise.score) for promise in model.promises(COMPLETE)]


def test_a_restless_entry_is_promised_with_more_margin() -> None:
    model = one_restless(WINDOW)
    short, _, long = scores(model)
    own = (0.2 / math.sqrt(8)) / (1.0 / math.sqrt(2))  # times as restless as all
    weight = WINDOW / 2 * (1 - 1 / 2)  # half of the scores are its own
    factor = (SHARED + weight * own) / (SHARED + weight)
    assert short == pytest.approx(1.0 / math.sqrt(2), rel=0.05)
    assert long == pytest.approx(short * factor, rel=0.05)


def test_one_of_which_nothing_is_known_is_thought_as_restless_as_all() -> None:
    model = one_restless(KNOWN)
    short, middle, long = scores(model)
    assert long < middle <= short
    assert [model.known(name) for name in COMPLETE] == [True, False, True]


@given(late=st.lists(st.floats(-1, 4), min_size=1, max_size=60))
def test_where_there_is_but_one_entry_all_groups_are_its_own(late: list[float]) -> None:
    model = of_three()
    for ms in late:
        entered(model, "short", 2.0, late_ms=ms)
    short, middle, _ = scores(model)
    assert short == pytest.approx(middle)


def test_what_is_known_of_an_entry_is_forgotten() -> None:
    model = of_three()
    for _ in range(KNOWN):
        entered(model, "short", 2.0)
    assert model.known("short")
    for _ in range(WINDOW):
        entered(model, "long", 8.0)
    assert not model.known("short")
