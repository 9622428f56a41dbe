"""Engines of the build machine: who is asked, who is fastest, what is refused, what is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from opa_trt.backends import Availability, Backend
from opa_trt.backends.null import NullBackend
from opa_trt.backends.torchscript import TorchScriptBackend
from opa_trt.builder import compiling
from opa_trt.builder.compiling import Compiled, References, Runner, compile_all
from opa_trt.builder.recipe_tables import CompileRecipe
from opa_trt.builder.work import Finding
from opa_trt.clock import VirtualClock
from opa_trt.errors import (
    BackendError,
    BackendUnavailable,
    EngineError,
    ParityError,
    UnknownNameError,
)
from opa_trt.progress import Progress
from opa_trt.store import EngineStore, LatencyProfile, engine_key
from opa_trt.tree import FEATURES, IMAGES, LOGITS, PlanEntry, Segment, Tree

NODES = ("pioneer", "tiny", "small", "medium", "large")
CONTEST = ("pioneer", "large")
LARGEST = 8
BUCKETS = (1, 4, 8)

Compile = Callable[..., Compiled]


class Vendor(NullBackend):
    """An invented vendor that takes ``ms`` a run and gives what ``outputs`` say."""

    def __init__(
        self,
        name: str,
        clock: VirtualClock,
        ms: float | Callable[[str, int], float],
        outputs: Mapping[str, Any] | None = None,
        works: bool = True,
    ) -> None:
        latency = ms if callable(ms) else lambda segment, batch: ms
        super().__init__(clock, latency, outputs)
        self.name, self.works = name, works
        self.tolerance = None if outputs is None else 1e-4

    def availability(self) -> Availability:
        why = {} if self.works else {"reason": "not here.", "install": "buy one"}
        return Availability(version="1.2", **why)


class Listener(Progress):
    def __init__(self) -> None:
        self.started: list[tuple[str, int | None]] = []
        self.notes: list[str] = []

    def start(self, stage: str, total: int | None = None) -> None:
        self.started.append((stage, total))

    def advance(self, done: int, note: str = "") -> None:
        self.notes.append(f"{done} {note}")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def segments(toy: Any) -> dict[str, Segment]:
    """The little network of the tests' top: a pioneer and four tails."""
    return {name: toy.segment(name) for name in NODES}


@pytest.fixture
def vendors(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these the only backends there are."""

    def only(*some: Backend) -> None:
        known = {vendor.name: vendor for vendor in some}

        def find(name: str) -> Backend:
            if name not in known:
                raise UnknownNameError("backend", name, known)
            return known[name]

        monkeypatch.setattr(compiling, "backend", find)
        monkeypatch.setattr(compiling, "every_backend", lambda: list(some))
        known.setdefault("null", NullBackend())

    return only


@pytest.fixture
def compiled(toy: Any, segments: dict[str, Segment], clock: VirtualClock) -> Compile:
    """``compile_all`` of the little network on a virtual clock."""

    def run(*names: str, canary: Any = None, progress: Progress | None = None) -> Compiled:
        return compile_all(
            segments,
            References(Tree(toy.nodes), toy.canary if canary is None else canary),
            CompileRecipe(backends=names, max_batch=LARGEST),
            BUCKETS,
            1,
            clock,
            progress or Progress(),
            CONTEST,
        )

    return run


def references(toy: Any) -> References:
    return References(Tree(toy.nodes), toy.canary)


def constant(value: float) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Features and logits that are all ``value``."""

    def outputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        count = len(next(iter(inputs.values())))
        return {
            FEATURES: torch.full((count, 4, 4, 4), value),
            LOGITS: torch.full((count, 5), value),
        }

    return outputs


def only_logits(value: float) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    both = constant(value)
    return lambda inputs: {LOGITS: both(inputs)[LOGITS]}


def inventions(value: float) -> dict[str, Any]:
    """Every segment gives ``value`` alone."""
    return {name: constant(value) if name == "pioneer" else only_logits(value) for name in NODES}


def constant_canary(canary: Mapping[str, Any], value: float) -> dict[str, Any]:
    """A canary that expects ``value`` of every node, whatever the images."""
    return {
        key: values if key.startswith(IMAGES) else np.full_like(values, value)
        for key, values in canary.items()
    }


# --- who compiles -------------------------------------------------------------------------------


def test_auto_keeps_the_fastest(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("slow", clock, 9.0), Vendor("fast", clock, 2.0), Vendor("fair", clock, 5.0))
    found = compiled("auto")
    assert found.outcome.best == "fast"
    assert {entry["target"]["backend"] for entry in found.entries} == {"fast"}
    assert set(found.outcome.plan.values()) == {(PlanEntry("fast", "fp32", 1, LARGEST),)}


def test_each_segment_and_batch_has_the_fastest_of_its_own(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    def ms(segment: str, batch: int) -> float:
        if segment == "small":
            return 1.0
        return 1.0 if segment == "large" and batch == 4 else 3.0

    vendors(Vendor("usual", clock, 2.0), Vendor("other", clock, ms))
    plan = compiled("auto").outcome.plan
    assert plan["pioneer"] == (PlanEntry("usual", "fp32", 1, LARGEST),)
    assert plan["small"] == (PlanEntry("other", "fp32", 1, LARGEST),)
    assert plan["large"] == (
        PlanEntry("usual", "fp32", 1, 1),
        PlanEntry("other", "fp32", 2, 4),
        PlanEntry("usual", "fp32", 5, LARGEST),
    )


def test_a_part_of_the_batch_sizes_has_an_engine_of_its_own(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    small_batches = Vendor("other", clock, lambda segment, batch: 1.0 if batch == 1 else 2.8)
    vendors(Vendor("usual", clock, 2.0), small_batches)
    found = compiled("auto")
    files = {entry["file"]: entry["target"] for entry in found.entries}
    assert "engines/tiny.1-1.other" in files
    assert files["engines/tiny.2-8.usual"]["min_batch"] == 2
    assert found.blobs.keys() == {file.removeprefix("engines/") for file in files}


def test_a_gain_of_a_few_percent_is_not_worth_another_backend(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    little = Vendor("other", clock, lambda segment, batch: 1.96 if segment == "small" else 2.1)
    vendors(Vendor("usual", clock, 2.0), little)
    assert compiled("auto").outcome.plan["small"][0].backend == "usual"


def test_the_hopeless_are_timed_on_the_first_segments_alone(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("slow", clock, 9.0), Vendor("fast", clock, 2.0), Vendor("fair", clock, 2.5))
    ms = compiled("auto").outcome.ms
    assert ms["pioneer"][1] == {"slow": 9.0, "fast": 2.0, "fair": 2.5}
    assert ms["tiny"][LARGEST] == {"fast": 2.0, "fair": 2.5}


def test_auto_leaves_out_who_computes_wrongly(
    toy: Any, compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("liar", clock, 1.0, inventions(0.25)), Vendor("true", clock, 3.0, inventions(0)))
    found = compiled("auto", canary=constant_canary(toy.canary, 0.0))
    assert found.outcome.best == "true"
    assert "differs by 2.5e-01" in found.outcome.refused["liar"]


def test_auto_where_all_compute_wrongly_says_so_of_each(
    toy: Any, compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    liars = [Vendor(name, clock, 1.0, inventions(0.25)) for name in ("liar", "cheat")]
    vendors(*liars)
    with pytest.raises(BackendError, match=r"liar: .*cheat: "):
        compiled("auto", canary=constant_canary(toy.canary, 0.0))


def test_auto_leaves_out_what_does_not_work(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("broken", clock, 1.0, works=False), Vendor("fair", clock, 5.0))
    assert compiled("auto").outcome.best == "fair"


def test_auto_does_not_wait_for_those_that_compile_slowly(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    patient = Vendor("patient", clock, 1.0)
    patient.quick = False
    vendors(patient, Vendor("fair", clock, 5.0))
    assert compiled("auto").outcome.best == "fair"
    assert compiled("auto", "patient").outcome.best == "patient"


def test_a_backend_that_only_compiles_here_gets_engines_and_runs_nothing(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    class Elsewhere(Vendor):
        def availability(self) -> Availability:
            return Availability("1.2", "no GPU.", "buy one", compiles=True)

    vendors(Elsewhere("elsewhere", clock, 1.0), Vendor("here", clock, 2.0))
    found = compiled("auto", "elsewhere")
    assert {entry.backend for rows in found.outcome.plan.values() for entry in rows} == {"here"}
    backends = [entry["target"]["backend"] for entry in found.entries]
    assert backends == ["here", "elsewhere"] * len(NODES)


def test_auto_where_nothing_works_points_to_the_doctor(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("broken", clock, 1.0, works=False))
    with pytest.raises(BackendUnavailable, match="none of broken works here") as caught:
        compiled("auto")
    assert "opa-trt doctor" in caught.value.remedy


def test_backends_that_are_named_are_all_kept_and_one_runs(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("slow", clock, 9.0), Vendor("fast", clock, 2.0))
    found = compiled("slow", "fast")
    assert found.outcome.best == "fast"
    assert {entry.backend for rows in found.outcome.plan.values() for entry in rows} == {"fast"}
    names = [entry["target"]["backend"] for entry in found.entries]
    assert sorted(names) == ["fast"] * len(NODES) + ["slow"] * len(NODES)


def test_a_backend_that_is_named_must_work(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("broken", clock, 1.0, works=False))
    with pytest.raises(BackendUnavailable, match="broken does not work here") as caught:
        compiled("broken")
    assert caught.value.remedy == "buy one"


def test_a_backend_that_does_not_exist_is_refused(compiled: Compile) -> None:
    with pytest.raises(UnknownNameError, match="torchscrip") as caught:
        compiled("torchscrip")
    assert "'torchscript'" in caught.value.remedy


# --- what is made -------------------------------------------------------------------------------


def test_every_segment_has_an_engine_with_target_and_key(
    compiled: Compile, segments: dict[str, Segment]
) -> None:
    vendor = TorchScriptBackend()
    target = vendor.target(max_batch=LARGEST, threads=1)
    found = {entry["segment"]: entry for entry in compiled("torchscript").entries}
    assert found.keys() == segments.keys()
    for name, entry in found.items():
        assert entry["target"] == asdict(target)
        assert entry["key"] == engine_key(segments[name], target, vendor)


def test_engines_are_kept_by_segment_and_backend(
    compiled: Compile, segments: dict[str, Segment]
) -> None:
    found = compiled("null")
    assert sorted(found.blobs) == sorted(f"{name}.null" for name in segments)
    assert found.entries[0]["file"] == "engines/pioneer.null"


def test_the_version_is_the_fastest_backends(compiled: Compile) -> None:
    assert compiled("torchscript").version == torch.__version__


def test_progress_hears_of_every_engine(compiled: Compile) -> None:
    heard = Listener()
    compiled("torchscript", progress=heard)
    assert heard.started == [("compile", len(NODES))]
    assert heard.notes == [f"{i} torchscript {name}" for i, name in enumerate(NODES, 1)]


# --- against the canary -------------------------------------------------------------------------


def test_the_largest_difference_is_told(compiled: Compile) -> None:
    assert 0 <= compiled("torchscript").worst < 1e-4


def test_an_engine_that_differs_is_refused(
    toy: Any, compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("liar", clock, 1.0, inventions(0.25)))
    with pytest.raises(ParityError, match=r"pioneer on liar differs by 2\.5e-01") as caught:
        compiled("liar", canary=constant_canary(toy.canary, 0.0))
    assert "1e-04" in caught.value.expected


def test_an_engine_within_the_tolerance_is_kept(
    toy: Any, compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("close", clock, 1.0, inventions(0.5 + 5e-5)))
    found = compiled("close", canary=constant_canary(toy.canary, 0.5))
    assert found.worst == pytest.approx(5e-5, rel=1e-2)


def test_differences_are_relative_to_values_above_one(
    toy: Any, compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("close", clock, 1.0, inventions(1000.05)))
    found = compiled("close", canary=constant_canary(toy.canary, 1000.0))
    assert found.worst == pytest.approx(5e-5, rel=1e-2)


def test_an_engine_that_gives_no_numbers_is_refused(
    toy: Any, compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("liar", clock, 1.0, inventions(math.nan)))
    with pytest.raises(ParityError, match="differs by inf"):
        compiled("liar", canary=constant_canary(toy.canary, 0.0))


def test_outputs_that_mean_nothing_are_not_compared(compiled: Compile) -> None:
    assert compiled("null").outcome.best == "null"


def test_the_canary_feeds_images_to_the_entry(toy: Any) -> None:
    found = references(toy).inputs(toy.segment("pioneer"), LARGEST)
    assert list(found) == [IMAGES]
    assert np.array_equal(found[IMAGES].numpy(), toy.canary[f"{IMAGES}/{LARGEST}"])


def test_the_canary_feeds_the_entrys_features_to_a_tail(toy: Any) -> None:
    found = references(toy).inputs(toy.segment("large"), 1)
    assert list(found) == [FEATURES]
    assert np.array_equal(found[FEATURES].numpy(), toy.canary[f"pioneer/1/{FEATURES}"])


# --- run on the build machine -------------------------------------------------------------------


@pytest.fixture
def runner(
    toy: Any, segments: dict[str, Segment], compiled: Compile, tmp_path: Path
) -> Callable[..., Runner]:
    """A runner of the engines that the named backends made."""

    def make(*names: str, clock: Any = None) -> Runner:
        done = compiled(*names)
        plan = {name: [asdict(row) for row in rows] for name, rows in done.outcome.plan.items()}
        found = Finding("", {"plan": plan, "engines": done.entries}, {}, done.blobs)
        store = EngineStore(tmp_path / "store")
        return Runner(segments, found, references(toy), store, clock or VirtualClock())

    return make


def test_answers_are_those_of_the_eager_network(toy: Any, runner: Callable[..., Runner]) -> None:
    images = toy.images(11)  # more than the largest batch
    answers = runner("torchscript").answers(torch.from_numpy(images))
    assert sorted(answers) == sorted(NODES)
    for name in NODES[1:]:
        np.testing.assert_allclose(answers[name], toy.monolith(name, images), atol=1e-5)
    eager = toy.eager("pioneer", torch.from_numpy(images))[LOGITS].numpy()
    np.testing.assert_allclose(answers["pioneer"], eager, atol=1e-5)


def test_profiles_are_measured_at_every_bucket(runner: Callable[..., Runner]) -> None:
    found = runner("torchscript").profiles((1, 4, 100), 0.0)
    assert sorted(found) == sorted(NODES)
    assert {tuple(profile["batches"]) for profile in found.values()} == {(1, 4, LARGEST)}


def test_profiles_are_kept_for_this_machine(
    segments: dict[str, Segment], runner: Callable[..., Runner], tmp_path: Path
) -> None:
    found = runner("torchscript").profiles((1,), 0.0)
    vendor = TorchScriptBackend()
    key = engine_key(segments["tiny"], vendor.target(max_batch=LARGEST, threads=1), vendor)
    stored = EngineStore(tmp_path / "store").profile(key)
    assert stored is not None
    assert LatencyProfile.from_dict(stored) == LatencyProfile.from_dict(found["tiny"])


def test_profiles_that_mean_nothing_are_not_kept(
    runner: Callable[..., Runner], tmp_path: Path
) -> None:
    runner("null").profiles((1,), 0.0)
    assert not (tmp_path / "store").exists()


def test_only_the_fastest_backends_engines_run(
    runner: Callable[..., Runner], vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("slow", clock, 9.0), Vendor("fast", clock, 2.0))
    found = runner("slow", "fast", clock=clock).profiles((LARGEST,), 0.0)
    assert [profile["ms"][0][0] for profile in found.values()] == pytest.approx([2.0] * len(NODES))


def test_a_closed_runner_runs_no_more(toy: Any, runner: Callable[..., Runner]) -> None:
    made = runner("torchscript")
    made.close()
    with pytest.raises(EngineError, match="closed"):
        made.answers(torch.from_numpy(toy.images(2)))
