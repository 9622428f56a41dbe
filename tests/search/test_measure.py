"""Latency tables that are measured: exact on invented engines, resumed, told busy from calm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from opa_trt.backends import Backend
from opa_trt.backends.null import NullBackend
from opa_trt.backends.torchscript import TorchScriptBackend
from opa_trt.clock import MonotonicClock, VirtualClock
from opa_trt.errors import ConfigError
from opa_trt.progress import Progress
from opa_trt.search import bench
from opa_trt.search.bench import BURST, LEAST_TURNS, MOST_TURNS, fastest, time_in_turns
from opa_trt.search.latency_table import LatencyTable, read_latency, table_to_dict
from opa_trt.search.measure import Plan, choose_resolutions, measure_table
from opa_trt.search.subjects import FEW, MANY, Shape, Subject, Subjects, network_name, probe_name
from opa_trt.search.timings import Timing, backend_of, open_timings
from opa_trt.search.whole_networks import draw_networks, error_of, fit_line, spearman, split
from opa_trt.supernet import published_space
from opa_trt.supernet.operators import Operator
from opa_trt.supernet.space import Space
from opa_trt.tree import Segment, Target

CALL, SCALE, OFFSET = 0.06, 1.25, 0.5


def true_ms(operator: Operator) -> float:
    """What an operator takes within a network, invented."""
    return 0.1 + operator.cost.macs * 1e-6


def entry(shape: tuple[int, ...] | None) -> float:
    return CALL + shape[0] * 1e-4 if shape else 0.0


def exit_of(shape: tuple[int, ...] | None) -> float:
    return shape[1] * 3e-3 if shape else 0.0


@dataclass
class World:
    """Invented engines on a virtual clock, as long as the names that are asked for say."""

    space: Space
    resolutions: tuple[int, ...]
    clock: VirtualClock = field(default_factory=VirtualClock)
    asked: list[str] = field(default_factory=list)
    load: Callable[[int], float] = lambda runs: 1.0

    def __post_init__(self) -> None:
        narrow = replace(self.space, resolutions=self.resolutions)
        self.subjects = Subjects(narrow, tuple(draw_networks(narrow, 12, 0)))
        self.ms = {self.yardstick: 1.0} | self.latencies()

    @property
    def yardstick(self) -> str:
        return network_name(self.space.smallest())

    def latencies(self) -> dict[str, float]:
        found = {}
        for key, (before, after) in self.subjects.ends.items():
            found[key] = true_ms(self.subjects.operators[key]) + entry(before) + exit_of(after)
        for shape in self.subjects.boundaries:
            for layers in (FEW, MANY):
                found[probe_name("entry", shape, layers)] = entry(shape) + layers * 0.02
                both = entry(shape) + exit_of(shape)
                found[probe_name("boundary", shape, layers)] = both + layers * 0.01
        for arch in self.subjects.archs:
            parts = self.space.operators(arch).values()
            sum_of = sum(true_ms(operator) for part in parts for operator in part)
            found[network_name(arch)] = OFFSET + SCALE * sum_of
        return found

    def take(self, name: str, batch: int) -> float:
        self.asked.append(name)
        return self.ms[name] * self.load(len(self.asked))

    @property
    def backend(self) -> NullBackend:
        return NullBackend(self.clock, self.take)

    def plan(self, **changes: Any) -> Plan:
        target = self.backend.target(max_batch=2, threads=1)
        return Plan(self.space, self.resolutions, target, **{"seconds": 1e-6, **changes})

    def measure(self, folder: Path, progress: Progress | None = None) -> LatencyTable:
        plan = self.plan()
        timings = open_timings(folder / "t.json.work", plan.identity())
        listener = progress or Progress()
        return measure_table(plan, self.backend, timings, self.clock, listener, "t.json")


TRACED: dict[tuple[str, Shape], tuple[Segment, dict[str, Tensor]]] = {}


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an invented engine stands for is traced once, not in every test."""
    trace_and_load = Subject.load

    def load(subject: Subject, backend: Backend, target: Target) -> Any:
        key = subject.name, subject.input_shape
        if backend.forms or key not in TRACED:
            engine, example = trace_and_load(subject, backend, target)
            TRACED[key] = engine.segment, example
            return engine, example
        segment, example = TRACED[key]
        return backend.load(backend.compile(segment, target), segment, target), example

    monkeypatch.setattr(Subject, "load", load)


@pytest.fixture
def world(mobile: Space) -> World:
    """A space of few operators."""
    return World(replace(mobile, kernel_choices=(3,), expand_choices=(2,)), (16, 32))


def is_exact(table: LatencyTable, world: World) -> bool:
    """Whether it holds what the operators take within a network."""
    wanted = {key: true_ms(operator) for key, operator in world.subjects.operators.items()}
    return bool(table.by_resolution[16] == pytest.approx(wanted))


# --- what is measured -----------------------------------------------------------------------------


def test_every_operator_that_an_arch_runs_is_measured(tiny: Space) -> None:
    known = Subjects(tiny, ()).operators
    for row in tiny.genome.sample(50, np.random.default_rng(0)):
        for run in tiny.operators(tiny.genome.arch(row)).values():
            assert {operator.key for operator in run} <= known.keys()


def test_no_operator_is_measured_that_no_arch_runs(mobile: Space, every_row: Any) -> None:
    run = {
        operator.key
        for row in every_row(mobile.genome)
        for part in mobile.operators(mobile.genome.arch(row)).values()
        for operator in part
    }
    assert Subjects(mobile, ()).operators.keys() == run


def test_names_are_unique_and_shapes_meet_within_the_network(tiny: Space) -> None:
    subjects = Subjects(tiny, tuple(draw_networks(tiny, 4, 0)))
    names = [subject.name for subject in subjects.all()]
    assert len(names) == len(set(names))
    for run in subjects.space.operators(tiny.largest()).values():
        for before, after in pairwise(run):
            assert subjects.ends[before.key][1] == subjects.ends[after.key][0]


def test_images_and_logits_are_no_boundaries(mobile: Space) -> None:
    subjects = Subjects(mobile, ())
    assert all(shape[0] != 3 and len(shape) == 3 for shape in subjects.boundaries)


def test_the_published_spaces_have_this_many_operators() -> None:
    space = published_space("mobilenet_v3", width=1.2, classes=1000)
    assert len(Subjects(replace(space, resolutions=(160,)), ()).operators) == 96


def test_the_resolutions_are_the_spaces_or_those_of_the_published_tables(mobile: Space) -> None:
    assert choose_resolutions(mobile) == (16, 32)
    assert choose_resolutions(mobile, [32, 16, 32]) == (16, 32)
    space = published_space("proxyless", width=None, classes=1000)
    assert choose_resolutions(space) == (160, 176, 192, 208, 224)


def test_a_resolution_that_the_space_does_not_sample_is_refused(mobile: Space) -> None:
    with pytest.raises(ConfigError, match=r"resolution 24 is none of mobilenet_v3's"):
        choose_resolutions(mobile, [16, 24])


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolutions", [(16,), (16, 32)])
def test_the_table_is_exact_where_engines_are(
    world: World, tmp_path: Path, resolutions: tuple[int, ...]
) -> None:
    world = World(world.space, resolutions)
    table = world.measure(tmp_path)
    assert table.resolutions == resolutions
    assert is_exact(table, world)
    assert (table.scale, table.offset) == (pytest.approx(SCALE), pytest.approx(OFFSET))


def test_the_errors_are_those_of_the_networks_held_out(world: World, tmp_path: Path) -> None:
    facts = world.measure(tmp_path).facts
    held_out = [network for network in facts["networks"] if network["held_out"]]
    assert len(held_out) == facts["held_out"] > 1
    for what in ("alone", "sum"):
        ratios = np.array([network[what] / network["ms"] - 1 for network in held_out])
        assert facts["errors"][what]["mean"] == pytest.approx(abs(ratios).mean())
        assert facts["errors"][what]["bias"] == pytest.approx(ratios.mean())
    assert facts["errors"]["corrected"]["mean"] == pytest.approx(0, abs=1e-9)
    assert facts["errors"]["corrected"]["rank_correlation"] == pytest.approx(1)


def test_the_facts_say_where_and_how_and_no_date(world: World, tmp_path: Path) -> None:
    facts = world.measure(tmp_path).facts
    assert (facts["backend"], facts["backend_version"]) == ("null", "1")
    assert (facts["batch"], facts["threads"], facts["seed"]) == (2, 1, 0)
    assert Target(**facts["target"]) == world.plan().target
    sides = {"entry": entry((8, 8, 8)), "exit": exit_of((8, 8, 8))}
    assert facts["boundaries_ms"]["8x8x8"] == pytest.approx(sides)
    assert "date" not in json.dumps(facts)


def test_the_table_is_read_back(world: World, tmp_path: Path) -> None:
    table = world.measure(tmp_path)
    (tmp_path / "t.json").write_text(json.dumps(table_to_dict(table)))
    assert read_latency(tmp_path / "t.json") == table


def test_an_operator_is_never_faster_than_nothing(mobile: Space) -> None:
    subjects = Subjects(mobile, ())
    ms = {subject.name: 1.0 for subject in subjects.all()}
    assert min(subjects.costs({**ms, **dict.fromkeys(subjects.operators, 0.1)}).values()) == 0.0


def test_torchscript_engines_are_measured_from_end_to_end(lonely: Space, tmp_path: Path) -> None:
    backend, clock = TorchScriptBackend(), MonotonicClock()
    plan = Plan(lonely, (16,), backend.target(max_batch=2, threads=1), 2, seconds=1e-4)
    timings = open_timings(tmp_path / "work", plan.identity())
    table = measure_table(plan, backend, timings, clock, Progress(), "t")
    assert table.cost(lonely.genome)(np.zeros((1, len(lonely.genome)), dtype=np.int16))[0] > 0
    assert table.facts["held_out"] == 0  # it has one arch
    assert len(table.facts["networks"]) == 1


# --- timing ---------------------------------------------------------------------------------------


@pytest.fixture
def toy_engine() -> Callable[..., Any]:
    def make(clock: VirtualClock, name: str, latencies: Any) -> Any:
        from torch import nn

        backend = NullBackend(clock, lambda _, batch: next(latencies))
        return Subject(name, nn.Identity, (1, 2, 2)).load(
            backend, backend.target(max_batch=4, threads=1)
        )

    return make


def test_the_first_run_of_a_turn_does_not_count_and_of_the_others_the_fastest(
    toy_engine: Callable[..., Any],
) -> None:
    def runs() -> Any:
        yield 1000.0  # the warm-up
        for best in (3.0, 1.0, 2.0):
            yield 0.001  # the first run of the turn
            yield from [9.0] * (BURST - 1) + [best]

    clock = VirtualClock()
    found = time_in_turns({"a": toy_engine(clock, "a", runs())}, 4, clock, seconds=1e-9)
    assert found == {"a": pytest.approx(2.0)}  # the median of the turns


def test_engines_take_turns_until_the_time_is_over(toy_engine: Callable[..., Any]) -> None:
    clock, order = VirtualClock(), []

    def runs(name: str) -> Any:
        while True:
            order.append(name)
            yield 1.0

    engines = {name: toy_engine(clock, name, runs(name)) for name in "ab"}
    assert time_in_turns(engines, 1, clock, 0.03) == {"a": 1.0, "b": 1.0}
    turn = ["a"] * (BURST + 1) + ["b"] * (BURST + 1)
    turns = -(-60 // len(turn)) + (60 % len(turn) == 0)
    assert order == ["a", "b"] + turn * max(LEAST_TURNS, turns)


def test_engines_that_take_no_time_end_too(toy_engine: Callable[..., Any]) -> None:
    clock, runs = VirtualClock(), iter([0.0] * (1 + MOST_TURNS * (BURST + 1)))
    assert time_in_turns({"a": toy_engine(clock, "a", runs)}, 1, clock, 1.0) == {"a": 0.0}


def test_the_fastest_backend_is_chosen(world: World) -> None:
    slow, quick = world.backend, NullBackend(world.clock, lambda name, batch: 0.01)
    world.ms |= dict.fromkeys([network_name(world.space.largest()), world.yardstick], 2.0)
    assert fastest([slow, quick], world.space, 1, 1, world.clock) is quick
    assert fastest([slow], world.space, 1, 1, world.clock) is slow


def test_a_busy_moment_is_measured_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "GROUP", 10)
    world.load = lambda runs: 3.0 if runs < 150 else 1.0
    table = world.measure(tmp_path)
    assert is_exact(table, world)
    assert table.facts["load_spread"] == pytest.approx(1.0)


def test_a_load_that_stays_is_divided_out(world: World, tmp_path: Path) -> None:
    world.load = lambda runs: 1.07  # below what is measured again
    half = world.plan(networks=2)
    timings = open_timings(tmp_path / "t.json.work", half.identity())
    measure_table(half, world.backend, timings, world.clock, Progress(), "t")
    world.load = lambda runs: 1.0
    table = world.measure(tmp_path)
    assert table.facts["load_spread"] == pytest.approx(1.07)
    assert is_exact(table, world)


# --- going on -------------------------------------------------------------------------------------


class Stops(Progress):
    """Ctrl-C before engine number ``at``."""

    def __init__(self, at: int) -> None:
        self.at = at

    def advance(self, done: int, note: str = "") -> None:
        if done >= self.at:
            raise KeyboardInterrupt


def test_a_stopped_measurement_goes_on_after_the_last_group(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "GROUP", 10)
    with pytest.raises(KeyboardInterrupt):
        world.measure(tmp_path, Stops(25))
    found = open_timings(tmp_path / "t.json.work", world.plan().identity()).found
    assert len(found) == 20
    world.asked.clear()
    table = world.measure(tmp_path)
    assert not (found.keys() - {world.yardstick}) & set(world.asked)
    assert is_exact(table, world)


def test_resolutions_can_be_added_to_a_measurement(world: World, tmp_path: Path) -> None:
    first = World(world.space, (16,))
    first.measure(tmp_path)
    world.measure(tmp_path)
    assert not set(world.asked) & first.subjects.operators.keys()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seconds": 1.0}, "other seconds.*: seconds = 0.5"),
        ({"target": Target("null", "1", threads=2)}, "other target.*: target.threads = 1"),
        ({"space": published_space("proxyless", width=None, classes=9)}, "other space.*: space."),
    ],
)
def test_the_measurements_of_another_run_are_refused(
    mobile: Space, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    plan = Plan(mobile, (16,), Target("null", "1"), seconds=0.5)
    open_timings(tmp_path / "work", plan.identity())
    with pytest.raises(ConfigError, match=says) as raised:
        open_timings(tmp_path / "work", replace(plan, **changes).identity())
    assert "choose another --out" in raised.value.remedy
    assert backend_of(tmp_path / "work") == "null"


IDENTITY = {"target": {"backend": "null"}}


def test_a_line_that_is_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "work"
    timings = open_timings(path, IDENTITY)
    timings.add({"a": 1.0, "b": 2.0}, yardstick=1.0)
    timings.add({"c": 1.0}, yardstick=1.0)
    path.write_text(path.read_text()[:-5])
    again = open_timings(path, IDENTITY)
    assert list(again.found) == ["a", "b"]
    again.add({"c": 4.0}, yardstick=1.0)
    assert open_timings(path, IDENTITY).found["c"] == Timing(4.0, 1.0)


@pytest.mark.parametrize("run", [{}, {"target": 1}, {"target": {}}])
def test_a_file_without_a_backend_is_refused(tmp_path: Path, run: dict[str, Any]) -> None:
    open_timings(tmp_path / "work", run)
    with pytest.raises(ConfigError, match="work is no file of measurements"):
        backend_of(tmp_path / "work")


@pytest.mark.parametrize(
    "line",
    ['{"ms": {}}', '{"ms": {"a": -1}, "yardstick": 1}', '{"ms": {"a": 1}, "yardstick": "1"}', "[]"],
)
def test_damaged_measurements_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "work"
    open_timings(path, IDENTITY)
    text = path.read_text() + line + "\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"line 2 of .*work is damaged"):
        open_timings(path, IDENTITY)
    assert path.read_text() == text


def test_of_two_timings_the_calmer_counts(tmp_path: Path) -> None:
    timings = open_timings(tmp_path / "work", IDENTITY)
    timings.add({"a": 3.0, "b": 1.0}, yardstick=1.5)
    timings.add({"b": 0.9}, yardstick=1.0)
    timings.add({"b": 7.0}, yardstick=2.0)
    assert timings.busy(["a", "b"]) == ["a"]
    assert timings.calm_ms(["a", "b"]) == {"a": pytest.approx(2.0), "b": pytest.approx(0.9)}
    assert timings.spread(["a", "b"]) == pytest.approx(1.5)


# --- the line and its errors ----------------------------------------------------------------------


def test_smallest_and_largest_are_fitted_and_half_of_the_others_held_out(mobile: Space) -> None:
    archs = draw_networks(mobile, 12, 0)
    assert archs[:2] == [mobile.smallest(), mobile.largest()]
    fitted, held_out = split(archs)
    assert fitted[:2] == [0, 1]
    assert sorted(fitted + held_out) == list(range(14))
    assert len(held_out) == 6


def test_a_line_that_falls_is_not_fitted() -> None:
    scale, offset = fit_line(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    assert scale > 0
    assert offset == 0.0
    assert fit_line(np.zeros(3), np.ones(3)) == (1.0, 0.0)


def test_errors_are_relative() -> None:
    error = error_of(np.array([1.1, 1.8]), np.array([1.0, 2.0]))
    assert error.mean == pytest.approx(0.1)
    assert error.worst == pytest.approx(0.1)
    assert error.bias == pytest.approx(0.0)
    assert error.rank_correlation == pytest.approx(1.0)
    assert error_of(np.ones(2), np.ones(2)).to_dict()["rank_correlation"] is None


def test_ranks_are_shared_by_equal_values() -> None:
    assert spearman(np.array([1, 2, 2, 3.0]), np.array([1, 3, 3, 9.0])) == pytest.approx(1.0)
    assert spearman(np.array([1, 2, 3.0]), np.array([3, 2, 1.0])) == pytest.approx(-1.0)
