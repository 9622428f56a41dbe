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
from opa_trt.builder.compiling import Compiled, Runner, canary_input, compile_all
from opa_trt.builder.recipe import CompileRecipe
from opa_trt.builder.work import Finding
from opa_trt.clock import VirtualClock
from opa_trt.errors import BackendUnavailable, EngineError, ParityError, UnknownNameError
from opa_trt.progress import Progress
from opa_trt.store import EngineStore, LatencyProfile, engine_key
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Segment

NODES = ("pioneer", "tiny", "small", "medium", "large")
CONTEST = ("pioneer", "large")
LARGEST = 8

Compile = Callable[..., Compiled]


class Vendor(NullBackend):
    """An invented vendor that takes ``ms`` a run and gives what ``outputs`` say."""

    def __init__(
        self,
        name: str,
        clock: VirtualClock,
        ms: float,
        outputs: Mapping[str, Any] | None = None,
        works: bool = True,
    ) -> None:
        super().__init__(clock, lambda segment, batch: ms, outputs)
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
        monkeypatch.setattr(compiling, "backend_names", lambda: [*known, "null"])
        known.setdefault("null", NullBackend())

    return only


@pytest.fixture
def compiled(toy: Any, segments: dict[str, Segment], clock: VirtualClock) -> Compile:
    """``compile_all`` of the little network on a virtual clock."""

    def run(*names: str, canary: Any = None, progress: Progress | None = None) -> Compiled:
        return compile_all(
            segments,
            toy.canary if canary is None else canary,
            CompileRecipe(backends=names, max_batch=LARGEST),
            1,
            clock,
            progress or Progress(),
            CONTEST,
        )

    return run


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
    assert found.backend == "fast"
    assert {entry["target"]["backend"] for entry in found.entries} == {"fast"}


def test_the_contest_is_timed_over_its_segments_together(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("slow", clock, 9.0), Vendor("fast", clock, 2.0))
    timings = compiled("auto").timings
    assert timings == {"slow": pytest.approx(18.0), "fast": pytest.approx(4.0)}


def test_auto_leaves_out_what_does_not_work(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("broken", clock, 1.0, works=False), Vendor("fair", clock, 5.0))
    assert list(compiled("auto").timings) == ["fair"]


def test_auto_where_nothing_works_points_to_the_doctor(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("broken", clock, 1.0, works=False))
    with pytest.raises(BackendUnavailable, match="none of broken works here") as caught:
        compiled("auto")
    assert "opa-trt doctor" in caught.value.remedy


def test_backends_that_are_named_are_all_kept_the_fastest_first(
    compiled: Compile, vendors: Callable[..., None], clock: VirtualClock
) -> None:
    vendors(Vendor("slow", clock, 9.0), Vendor("fast", clock, 2.0))
    found = compiled("slow", "fast")
    assert found.backend == "fast"
    names = [entry["target"]["backend"] for entry in found.entries]
    assert names == ["fast"] * len(NODES) + ["slow"] * len(NODES)


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


def test_an_engine_that_is_the_portable_form_is_not_kept_twice(compiled: Compile) -> None:
    found = compiled("torchscript")
    assert found.blobs == {}
    assert found.entries[0]["file"] == "segments/pioneer.pt"


def test_other_engines_are_kept_by_segment_and_backend(
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
    assert heard.notes[0] == "1 torchscript pioneer"
    assert len(heard.notes) == len(NODES)


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
    with pytest.raises(ParityError, match="nan"):
        compiled("liar", canary=constant_canary(toy.canary, 0.0))


def test_outputs_that_mean_nothing_are_not_compared(compiled: Compile) -> None:
    assert compiled("null").backend == "null"


def test_the_canary_feeds_images_to_the_entry(toy: Any) -> None:
    found = canary_input(toy.segment("pioneer"), toy.canary, LARGEST)
    assert list(found) == [IMAGES]
    assert np.array_equal(found[IMAGES].numpy(), toy.canary[f"{IMAGES}/{LARGEST}"])


def test_the_canary_feeds_the_entrys_features_to_a_tail(toy: Any) -> None:
    found = canary_input(toy.segment("large"), toy.canary, 1)
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
        found = Finding("", {"backend": done.backend, "engines": done.entries}, {}, done.blobs)
        store = EngineStore(tmp_path / "store")
        return Runner(segments, found, toy.canary, store, clock or VirtualClock())

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
