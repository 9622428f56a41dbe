"""A session answers every group, as well as its deadline and the load allow."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opa_trt
from opa_trt.backends import backend
from opa_trt.backends.null import NullBackend
from opa_trt.clock import VirtualClock
from opa_trt.errors import (
    ConfigError,
    DeadlineError,
    ImageError,
    SessionClosed,
    UnknownNameError,
)
from opa_trt.policies import STOP, Budget, Decision, PolicyBase, View
from opa_trt.policies.base import all_to
from opa_trt.runtime.margin import WINDOW

TAILS = ("tiny", "small", "medium", "large")


@pytest.fixture
def session(machine: Any, toy_bundle: Path) -> opa_trt.Session:
    """Invented engines on the virtual machine: 1 ms, then 1, 2, 4 or 8 ms for 8 images."""
    return machine.load(toy_bundle)


@pytest.fixture
def real(toy_bundle: Path, ticking: VirtualClock) -> opa_trt.Session:
    """The real little network on TorchScript."""
    return opa_trt.load(toy_bundle, backend="torchscript", clock=ticking)


def answered_by(result: opa_trt.Result) -> str:
    """The one node whose logits answer the group."""
    (name,) = set(result.nodes.tolist())
    return str(name)


# --- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deadline", "node"),
    [(2.0, "tiny"), (3.0, "small"), (5.0, "medium"), (9.0, "large"), (math.inf, "large")],
)
def test_the_best_tail_that_fits_is_picked(
    session: Any, toy: Any, deadline: float, node: str
) -> None:
    result = session.infer(toy.images(8), deadline)
    assert answered_by(result) == node
    assert result.deadline_met
    assert not result.fallback


def test_a_smaller_group_leaves_time_for_a_larger_tail(session: Any, toy: Any) -> None:
    assert answered_by(session.infer(toy.images(8), 6.0)) == "medium"
    assert answered_by(session.infer(toy.images(1), 6.0)) == "large"


def test_under_load_a_smaller_tail_is_picked(session: Any, machine: Any, toy: Any) -> None:
    assert answered_by(session.infer(toy.images(8), 9.5)) == "large"
    machine.slowdown = 2.0
    for _ in range(200):
        result = session.infer(toy.images(8), 9.5)
    assert answered_by(result) == "small"
    assert result.deadline_met
    assert session.slowdown == pytest.approx(2.0, rel=0.01)


def test_a_load_that_ends_is_forgotten(session: Any, machine: Any, toy: Any) -> None:
    machine.slowdown = 4.0
    for _ in range(50):
        session.infer(toy.images(8), 9.5)
    machine.slowdown = 1.0
    for _ in range(WINDOW + 50):
        result = session.infer(toy.images(8), 9.5)
    assert answered_by(result) == "large"
    assert session.slowdown == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("slowdown", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("deadline", [6.5, 13.0, 40.0])
def test_at_a_steady_load_deadlines_are_met(
    session: Any, machine: Any, toy: Any, slowdown: float, deadline: float
) -> None:
    machine.slowdown = slowdown
    for _ in range(50):
        session.infer(toy.images(8), deadline)
    results = [session.infer(toy.images(8), deadline) for _ in range(50)]
    assert all(result.deadline_met for result in results)


# --- what is said -------------------------------------------------------------------------------


def test_the_time_is_measured_from_entry_to_answer(session: Any, machine: Any, toy: Any) -> None:
    before = machine.clock.now_ms()
    result = session.infer(toy.images(8), 5.0)
    assert result.measured_ms == machine.clock.now_ms() - before == pytest.approx(5.0)
    assert result.predicted_ms == pytest.approx(5.0)
    assert result.deadline_ms == 5.0


def test_an_answer_at_the_deadline_is_in_time(session: Any, toy: Any) -> None:
    session.use("static:medium")
    assert session.infer(toy.images(8), 5.0 + 1e-9).deadline_met
    assert not session.infer(toy.images(8), 4.99).deadline_met


def test_where_nothing_fits_the_pioneer_answers(session: Any, toy: Any) -> None:
    result = session.infer(toy.images(8), 1.5)
    assert answered_by(result) == "pioneer"
    assert result.fallback
    assert result.deadline_met
    assert result.decision is not None
    assert not result.decision.fits


def test_an_impossible_deadline_is_answered_and_said_to_be_missed(session: Any, toy: Any) -> None:
    result = session.infer(toy.images(8), 1e-6)
    assert answered_by(result) == "pioneer"
    assert not result.deadline_met
    assert result.fallback
    assert np.isfinite(result.logits).all()


def test_steps_tell_what_ran(session: Any, toy: Any) -> None:
    pioneer, tail = session.infer(toy.images(8), 5.0).steps
    assert (pioneer.node, pioneer.images, pioneer.answered) == ("pioneer", 8, 0)
    assert (tail.node, tail.images, tail.answered) == ("medium", 8, 8)
    assert (pioneer.measured_ms, tail.measured_ms) == (pytest.approx(1.0), pytest.approx(4.0))
    assert pioneer.decision is not None
    assert tail.decision is None
    assert tail.predicted_accuracy == pioneer.decision.predicted_accuracy[2]
    assert (pioneer.measured_accuracy, tail.measured_accuracy) == (0.4, 0.7)


def test_the_accuracy_is_that_of_the_answering_node(session: Any, toy: Any) -> None:
    result = session.infer(toy.images(8), 5.0)
    assert result.predicted_accuracy == pytest.approx(result.steps[1].predicted_accuracy)
    assert result.measured_accuracy == 0.7


def test_labels_names_and_accuracy_follow_from_the_logits(session: Any, toy: Any) -> None:
    result = session.infer(toy.images(8), 5.0)
    np.testing.assert_array_equal(result.labels, result.logits.argmax(axis=1))
    assert result.names == tuple(session.manifest.classes[label] for label in result.labels)
    assert result.accuracy(result.labels) == 1.0
    assert result.accuracy((result.labels + 1) % 5) == 0.0


def test_a_result_says_what_answered_and_whether_in_time(session: Any, toy: Any) -> None:
    assert repr(session.infer(toy.images(8), 5.0)) == (
        "<Result 8 images (8 by medium), 5.00 ms, deadline 5 ms met>"
    )
    assert "MISSED" in repr(session.infer(toy.images(8), 0.1))


def test_a_result_explains_itself(session: Any, toy: Any) -> None:
    lines = session.infer(toy.images(8), 5.0).explain().splitlines()
    assert lines[:3] == [
        "8 images (8 by medium) in 5.00 ms, deadline 5 ms met",
        "  pioneer ran on 8 images in 1.00 ms (expected 1.00 ms at slowdown 1.00)",
        "    4.00 ms left: medium is the best of 3 that fit",
    ]
    assert lines[-1].startswith("  medium ran on 8 images in 4.00 ms")
    by_name = {line.split()[0]: line for line in lines[4:-1]}
    assert list(by_name) == ["stop", *TAILS]
    for name, ms in (("tiny", 1), ("small", 2), ("medium", 4), ("large", 8)):
        assert f"<= {ms:.2f} ms" in by_name[name]
        assert "%" in by_name[name]
    assert by_name["medium"].endswith("8  <- chosen")
    assert by_name["large"].endswith("does not fit")
    assert "chosen" not in by_name["stop"] + by_name["tiny"]


def test_a_fallback_explains_itself(session: Any, toy: Any) -> None:
    lines = session.infer(toy.images(8), 0.5).explain().splitlines()
    assert lines[0].endswith("deadline 0.5 ms MISSED by 0.50 ms")
    assert "nothing fits" in lines[2]
    assert lines[4].split()[:3] == ["stop", "at", "pioneer"]
    assert lines[4].endswith("8  <- chosen")
    assert all(line.endswith("does not fit") for line in lines[5:])


def test_an_explanation_has_its_numbers_in_columns(session: Any, toy: Any) -> None:
    table = session.infer(toy.images(8), 5.0).explain().splitlines()[3:-1]
    heading = table[0]
    assert heading.split() == ["route", "whole", "group", "right", "images"]
    end = heading.index("group") + len("group")
    assert all(line[:end].endswith(" ms") for line in table[2:])


def test_facts_are_what_is_explained(session: Any, toy: Any) -> None:
    result = session.infer(toy.images(8), 5.0)
    found = json.loads(json.dumps(result.facts(), allow_nan=False))
    first, second = found["steps"]
    assert (found["images"], found["answered"], found["deadline_met"]) == (8, {"medium": 8}, True)
    assert first["decision"]["reason"] == "medium is the best of 3 that fit"
    assert [route["successor"] for route in first["decision"]["routes"]] == list(TAILS)
    assert [route["images"] for route in first["decision"]["routes"]] == [0, 0, 8, 0]
    assert (first["answered"], first["decision"]["stopped"]) == (0, 0)
    assert (second["node"], second["answered"], second["decision"]) == ("medium", 8, None)


def test_a_static_result_explains_itself_without_predictions(session: Any, toy: Any) -> None:
    session.use("static:tiny")
    result = session.infer(toy.images(8), 5.0)
    assert "always tiny" in result.explain()
    assert "%" not in result.explain()
    assert math.isnan(result.predicted_accuracy)
    assert result.measured_accuracy == 0.5


# --- groups above the largest batch -------------------------------------------------------------


def test_a_large_group_is_answered_in_chunks(session: Any, toy: Any) -> None:
    result = session.infer(toy.images(20), 100.0)
    assert [(step.node, step.images) for step in result.steps] == [
        ("pioneer", 8), ("large", 8), ("pioneer", 8), ("large", 8), ("pioneer", 4), ("large", 4),
    ]  # fmt: skip
    assert result.logits.shape == (20, 5)


def test_chunks_give_the_logits_of_the_images_alone(real: Any, toy: Any) -> None:
    images = toy.images(19)
    wanted = toy.monolith("large", images)
    np.testing.assert_allclose(real.infer(images, math.inf).logits, wanted, atol=1e-4)


def test_later_pioneers_are_reserved_before_a_tail_is_chosen(session: Any, toy: Any) -> None:
    # Two full chunks, 1 ms for each pioneer: of 9.5 ms the first chunk may spend 7.5 / 2 ms on its
    # tail. Without the reserve it would be 8.5 / 2 ms, enough for the medium one.
    result = session.infer(toy.images(16), 9.5)
    assert [step.node for step in result.steps] == ["pioneer", "small", "pioneer", "medium"]
    assert result.deadline_met


def test_time_is_shared_among_chunks_by_their_images(session: Any, toy: Any) -> None:
    # 8 + 2 images, whose pioneers take 1 and 0.625 ms: the first chunk has 8 of 10 parts.
    full = 1.0 + 0.625
    for spare, node in ((4.9, "small"), (5.1, "medium")):
        result = session.infer(toy.images(10), full + spare)
        assert result.steps[1].node == node


def test_what_the_first_chunk_leaves_the_last_one_may_use(session: Any, toy: Any) -> None:
    # 14 ms: the first may spend 6 ms and takes 4; then 14 - 6 = 8 ms are left for the last.
    result = session.infer(toy.images(16), 14.0 + 1e-6)
    assert [step.node for step in result.steps] == ["pioneer", "medium", "pioneer", "large"]
    assert result.deadline_met


def test_chunks_share_one_deadline(session: Any, toy: Any) -> None:
    for deadline in (3.5, 4.5, 6.5, 20.0, 27.5):
        assert session.infer(toy.images(24), deadline).deadline_met == (deadline >= 3.0)


def test_a_group_that_is_too_large_is_answered_by_pioneers(session: Any, toy: Any) -> None:
    result = session.infer(toy.images(80), 5.0)
    assert answered_by(result) == "pioneer"
    assert len(result.steps) == 10
    assert not result.deadline_met


def test_the_accuracy_of_a_group_in_chunks_is_the_mean_of_its_images(
    session: Any, toy: Any
) -> None:
    class Doubting(PolicyBase):
        """Stops, and believes in one chunk, then in the next one less."""

        name = "doubting"

        def start(self) -> float:
            return 1.0

        def step(self, view: View, budget: Budget, state: float) -> tuple[Decision, float]:
            stopped = all_to(
                STOP, view, budget.left_ms, fits=True, reason="it does", estimated=state
            )
            return stopped, state / 2

    session.use(Doubting())
    result = session.infer(toy.images(16), 20.0)
    assert [step.predicted_accuracy for step in result.steps] == [1.0, 0.5]
    assert result.predicted_accuracy == 0.75


# --- real engines -------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_pioneer_and_tail_are_one_network(real: Any, toy: Any, tail: str, count: int) -> None:
    real.use(f"static:{tail}")
    images = toy.images(count, seed=count)
    result = real.infer(images, math.inf)
    np.testing.assert_allclose(result.logits, toy.monolith(tail, images), atol=1e-4)
    assert answered_by(result) == tail


def test_the_pioneer_alone_gives_its_own_logits(real: Any, toy: Any) -> None:
    real.use("static:pioneer")
    images = toy.images(5)
    wanted = toy.eager("pioneer", torch.from_numpy(images))["logits"].numpy()
    np.testing.assert_allclose(real.infer(images, math.inf).logits, wanted, atol=1e-4)


def test_openvino_gives_the_same(toy: Any, tmp_path: Path, ticking: VirtualClock) -> None:
    found = backend("openvino").availability()
    if not found:
        pytest.skip(found.reason)
    images = toy.images(5)
    nodes = (replace(toy.nodes[0], successors=("large",)), toy.nodes[-1])
    path = toy.pack(tmp_path / "b", nodes=nodes)
    with opa_trt.load(path, backend="openvino", clock=ticking) as session:
        assert session.backend == "openvino"
        given = session.infer(images, math.inf).logits
        np.testing.assert_allclose(given, toy.monolith("large", images), atol=1e-4)


def test_layouts_and_libraries_give_the_same(real: Any, toy: Any) -> None:
    images = toy.images(5)
    wanted = real.infer(images, math.inf).logits
    for other in (torch.from_numpy(images), images.transpose(0, 2, 3, 1)):
        np.testing.assert_array_equal(real.infer(other, math.inf).logits, wanted)


def test_images_are_not_changed_and_results_are_not_shared(real: Any, toy: Any) -> None:
    images = toy.images(5)
    first = real.infer(images, math.inf)
    kept = first.logits.copy()
    real.infer(toy.images(5, seed=1), math.inf)
    np.testing.assert_array_equal(images, toy.images(5))
    np.testing.assert_array_equal(first.logits, kept)


def test_the_build_s_backend_and_the_users_cache_are_the_default(
    toy_bundle: Path, ticking: VirtualClock, tmp_path: Path
) -> None:
    with opa_trt.load(toy_bundle, clock=ticking) as session:
        assert session.backend == "torchscript"
    assert (tmp_path / "cache" / "engines").is_dir()


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("deadline", [0, -1.0, math.nan])
def test_a_bad_deadline_says_what_this_machine_can_do(
    session: Any, toy: Any, deadline: float
) -> None:
    with pytest.raises(DeadlineError, match=r"fastest route of toy.opa takes 0.56 ms"):
        session.infer(toy.images(8), deadline)


def test_bad_images_are_refused_and_the_session_goes_on(session: Any, toy: Any) -> None:
    for images in (toy.images(8)[0], toy.images(0), toy.images(8).astype(float), None):
        with pytest.raises(ImageError):
            session.infer(images, 5.0)
    assert answered_by(session.infer(toy.images(8), 5.0)) == "medium"


def test_a_refused_group_takes_no_engine_time(session: Any, machine: Any, toy: Any) -> None:
    before = machine.clock.now_ms()
    with pytest.raises(ImageError):
        session.infer(toy.images(8)[0], 5.0)
    assert machine.clock.now_ms() == before


def test_a_layout_may_be_said(session: Any, toy: Any) -> None:
    images = toy.images(8).transpose(0, 2, 3, 1)
    assert len(session.infer(images, 5.0, layout="NHWC").labels) == 8
    with pytest.raises(ImageError):
        session.infer(images, 5.0, layout="NCHW")


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(machine: Any, toy_bundle: Path, threads: int) -> None:
    with pytest.raises(ConfigError, match=f"threads = {threads}"):
        machine.load(toy_bundle, threads=threads)


def test_threads_are_set_for_torch_and_the_target(machine: Any, toy_bundle: Path) -> None:
    session = machine.load(toy_bundle, threads=2)
    assert torch.get_num_threads() == 2
    assert {engine.target.threads for engine in session._machinery.engines.values()} == {2}


def test_the_builds_threads_are_cut_to_the_cores(
    machine: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    machine.load(toy.pack(tmp_path / "b", threads=64))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("policy", ["opaa", "static:gone"])
def test_a_wrong_policy_is_told_before_anything_compiles(toy_bundle: Path, policy: str) -> None:
    class Untouched(NullBackend):
        def _compile(self, segment: Any, target: Any) -> bytes:
            return pytest.fail("compiled")

    with pytest.raises(UnknownNameError):
        opa_trt.load(toy_bundle, backend=Untouched(), policy=policy)


# --- policies and closing -------------------------------------------------------------------------


def test_a_policy_may_be_named_at_load(machine: Any, toy: Any, toy_bundle: Path) -> None:
    session = machine.load(toy_bundle, policy="static:small")
    assert answered_by(session.infer(toy.images(8), math.inf)) == "small"


def test_another_policy_decides_from_now_on(session: Any, toy: Any) -> None:
    session.use("static", node="tiny")
    assert answered_by(session.infer(toy.images(8), 100.0)) == "tiny"
    session.use("opa")
    assert answered_by(session.infer(toy.images(8), 100.0)) == "large"


def test_a_wrong_policy_changes_nothing(session: Any, toy: Any) -> None:
    session.use("static:tiny")
    for name, options in (("opaa", {}), ("static", {"node": "gone"}), ("opa", {"extra": 1})):
        with pytest.raises(ConfigError):
            session.use(name, **options)
    assert answered_by(session.infer(toy.images(8), 100.0)) == "tiny"


def test_a_closed_session_is_refused(session: Any, toy: Any) -> None:
    session.close()
    with pytest.raises(SessionClosed, match="is closed"):
        session.infer(toy.images(8), 5.0)


def test_closing_twice_is_closing_once(session: Any) -> None:
    session.close()
    session.close()


def test_a_with_block_closes(machine: Any, toy: Any, toy_bundle: Path) -> None:
    with machine.load(toy_bundle) as session:
        session.infer(toy.images(1), 5.0)
    with pytest.raises(SessionClosed):
        session.infer(toy.images(1), 5.0)


def test_two_sessions_of_one_bundle_do_not_disturb_each_other(
    machine: Any, toy: Any, toy_bundle: Path
) -> None:
    one, other = machine.load(toy_bundle), machine.load(toy_bundle)
    one.close()
    assert answered_by(other.infer(toy.images(8), 5.0)) == "medium"


# --- what a user may look at --------------------------------------------------------------------


def test_a_session_describes_itself(session: Any, toy: Any) -> None:
    assert repr(session) == "<Session toy.opa: 5 routes on null>"
    assert session.manifest.name == "toy"
    assert session.tree["large"] == toy.nodes[-1]
    assert session.backend == "null"
    assert session.slowdown == 1.0


def test_profiles_are_those_of_this_machine(session: Any, machine: Any) -> None:
    for name, profile in session.profiles.items():
        assert profile.at(8) == pytest.approx(machine.ms[name])
    session.profiles.clear()
    assert len(session.profiles) == 5


def test_a_routes_latency_is_that_of_its_nodes(session: Any) -> None:
    assert session.route_ms("medium", 8) == pytest.approx(5.0)
    assert session.route_ms("pioneer", 8, 0.99) == pytest.approx(1.0)


def test_a_route_to_nowhere_names_the_nearest_node(session: Any) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'medium'"):
        session.route_ms("medum", 8)


def test_loading_is_logged(
    machine: Any, toy_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="opa_trt"):
        machine.load(toy_bundle)
    assert "ready, <Session toy.opa" in caplog.text
    assert "measuring the latency of 5 engines" in caplog.text
