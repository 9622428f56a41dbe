"""What every policy keeps, whichever system it sends images through."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opa_trt.bundle import Bundle
from opa_trt.policies import STOP, make_policy, policy_names
from opa_trt.runtime import Session
from opa_trt.runtime.result import Result
from opa_trt.runtime.session import read_knowledge
from opa_trt.tree import LOGITS

DEADLINES = (0.001, 2.4, 4.6, 8.0, 14.0, math.inf)
MAX_BATCH, CLASSES = 8, 5

Load = Callable[..., Session]


@pytest.fixture(params=policy_names())
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(every_machine: Any, everything: Path, policy: str) -> Load:
    """A session that has answered nothing yet, on an idle machine."""
    return lambda: every_machine.load(everything, policy=policy)


def group(count: int, seed: int = 0) -> Any:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


@pytest.fixture
def system(everything: Path, policy: str) -> str:
    """Whose nodes the policy sends images through."""
    bundle = Bundle(everything)
    return make_policy(policy, bundle.tree, read_knowledge(bundle)).system


def entries(session: Session, system: str) -> set[str]:
    return {node.name for node in session.tree.entries_of(system)}


def answered_once(session: Session, result: Result, count: int) -> None:
    assert result.logits.shape == (count, CLASSES)
    assert np.isfinite(result.logits).all()
    assert sum(step.answered for step in result.steps) == count
    assert len(result.nodes) == count
    for name in set(result.nodes.tolist()):
        assert LOGITS in session.tree[name].outputs


@pytest.mark.parametrize("deadline", DEADLINES)
@pytest.mark.parametrize("count", [1, 3, MAX_BATCH, 2 * MAX_BATCH + 3])
def test_every_image_is_answered_exactly_once(load: Load, deadline: float, count: int) -> None:
    with load() as session:
        answered_once(session, session.infer(group(count), deadline), count)


@pytest.mark.parametrize("deadline", DEADLINES)
def test_an_answer_is_what_its_node_gives(load: Load, every_machine: Any, deadline: float) -> None:
    images = group(6)
    with load() as session:
        result = session.infer(images, deadline)
        for row, name in enumerate(result.nodes.tolist()):
            path = [session.tree[n].segment for n in session.tree.route_to(name).nodes]
            given = {"images": torch.from_numpy(images[row : row + 1])}
            made: dict[str, Any] = {}
            for segment in path:
                source = made if "features" in made else given
                made = every_machine.outputs[segment](source)
            np.testing.assert_allclose(result.logits[row], made["logits"][0].numpy(), rtol=1e-6)


def test_where_nothing_fits_an_entry_answers(load: Load, policy: str, system: str) -> None:
    if policy == "static":
        pytest.skip("static does not look at the deadline")
    with load() as session:
        result = session.infer(group(6), 0.001)
        assert set(result.nodes.tolist()) <= entries(session, system)
        assert not result.deadline_met


@pytest.mark.parametrize("deadline", DEADLINES)
def test_the_order_of_images_only_permutes_the_answer(load: Load, deadline: float) -> None:
    images, order = group(MAX_BATCH), np.random.default_rng(1).permutation(MAX_BATCH)
    with load() as session:
        one = session.infer(images, deadline)
    with load() as session:
        other = session.infer(images[order], deadline)
    np.testing.assert_array_equal(one.nodes[order], other.nodes)
    np.testing.assert_allclose(one.logits[order], other.logits, rtol=1e-6)


def test_logits_that_are_no_numbers_are_answered_at_the_entry(
    load: Load, every_machine: Any, system: str
) -> None:
    def broken(real: Any) -> Any:
        def outputs(inputs: Any) -> Any:
            return {k: v * (math.nan if k == LOGITS else 1) for k, v in real(inputs).items()}

        return outputs

    every_machine.outputs = {k: broken(real) for k, real in every_machine.outputs.items()}
    with load() as session:
        result = session.infer(group(4), 100.0)
        assert set(result.nodes.tolist()) <= entries(session, system)
        assert np.isnan(result.logits).all()


def test_the_same_groups_are_answered_alike(load: Load, every_machine: Any) -> None:
    def answers() -> list[tuple[list[str], list[float]]]:
        every_machine.slowdown = 1.0
        with load() as session:
            found = []
            for number, deadline in enumerate((14.0, 4.6, 8.0, 2.4, 14.0, 8.0)):
                every_machine.slowdown = 1.0 + number % 3
                result = session.infer(group(5, number), deadline)
                found.append((result.nodes.tolist(), result.logits.ravel().tolist()))
        return found

    assert answers() == answers()


def test_deciding_leaves_the_state_it_was_given(load: Load) -> None:
    with load() as session:
        machinery = session._machinery
        before = machinery.state
        said = repr(before)
        session.infer(group(12), 8.0)
        assert repr(before) == said


def test_no_image_goes_beyond_its_system(load: Load, system: str) -> None:
    with load() as session:
        for deadline in DEADLINES:
            result = session.infer(group(7), deadline)
            ran = {step.node for step in result.steps}
            assert {session.tree[name].system for name in ran} == {system}


def test_a_decision_has_a_choice_for_every_pending_image(load: Load) -> None:
    with load() as session:
        for deadline in DEADLINES:
            for step in session.infer(group(7), deadline).steps:
                if step.decision is not None:
                    choice = step.decision.choice
                    assert choice.shape == (step.images,)
                    assert ((choice >= STOP) & (choice < len(step.decision.successors))).all()
