"""``opa_split`` lets a group enter at a complete network where a pioneer is not worth its time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from opa_trt.policies import Knowledge, Promise
from opa_trt.policies.evidence import width
from opa_trt.policies.opa_split import OpaSplitPolicy

from .conftest import known

Load = Callable[..., Any]
IMAGES_IN = np.random.default_rng(5).integers(0, 256, (8, 3, 16, 16)).astype(np.uint8)
ALIKE = np.zeros((32, width(5)), np.float32)  # nothing tells one image from another
SURE = np.repeat([[0.0], [1.0]], 16, axis=0).astype(np.float32)  # half of them


def apart() -> npt.NDArray[np.float32]:
    """Evidence by which half of the images are taken for right at the pioneer."""
    rows = ALIKE.copy()
    rows[:, 2:3] = SURE
    return rows


@pytest.fixture
def load(invent: Any, every_node: Any, chains: Any, every_machine: Any) -> Load:
    """A session on the bundle of all systems, with typical images and latencies of its own."""

    def opened(typical: Any = None, policy: str = "opa_split", **ms: float) -> Any:
        knowledge = known(every_node, chains)
        if typical is not None:
            knowledge = replace(knowledge, typical={"pioneer": typical})
        every_machine.ms |= ms
        buckets = tuple(range(1, 9))
        path = invent(every_node, knowledge=knowledge, buckets=buckets)
        return every_machine.load(path, policy=policy)

    return opened


def entered(session: Any, deadline_ms: float, images: Any = IMAGES_IN) -> str:
    return str(session.infer(images, deadline_ms).steps[0].node)


def test_a_better_complete_network_that_fits_is_taken(load: Load) -> None:
    with load(ALIKE, whole2=2.2) as session:
        assert entered(session, 2.6) == "whole2"  # the pioneer has time for tail1


def test_it_answers_the_whole_group_without_a_decision(load: Load) -> None:
    with load(ALIKE, whole2=2.2) as session:
        result = session.infer(IMAGES_IN, 2.6)
    assert result.nodes.tolist() == ["whole2"] * 8
    assert [step.decision for step in result.steps] == [None]
    assert result.deadline_met


def test_an_equal_one_is_not(load: Load) -> None:
    with load(ALIKE, whole3=8.5) as session:  # tail3 behind the pioneer fits, too
        assert entered(session, 30.0) == "pioneer"


def test_where_no_way_by_the_pioneer_fits_a_complete_network_may(load: Load) -> None:
    with load(ALIKE, pioneer=3.0, whole1=1.0) as session:
        assert entered(session, 1.5) == "whole1"


def test_nothing_that_fits_takes_the_fastest(load: Load) -> None:
    with load(ALIKE, whole1=0.7) as session:
        assert entered(session, 0.1) == "whole1"
    with load(ALIKE, whole1=2.0) as session:
        assert entered(session, 0.1) == "pioneer"


def test_where_nothing_can_be_promised_it_does_not_count_how_much_could_be(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(ALIKE, whole1=0.7) as session:
        restless = {"whole1": Promise(5.0)}
        monkeypatch.setattr(
            session._machinery.latency,
            "promises",
            lambda names: [restless.get(name, Promise()) for name in names],
        )
        found = session.infer(IMAGES_IN, 0.1)
    promised = dict(zip(found.entered.entries, found.entered.promised_ms, strict=True))
    assert promised["whole1"] > promised["pioneer"]
    assert found.steps[0].node == "whole1"  # mostly it is the fastest


def test_images_that_can_be_told_apart_are_worth_a_pioneer(
    invent: Any, every_node: Any, chains: Any, every_machine: Any
) -> None:
    """Half of the images are right at the pioneer for sure: the rest may take the time."""
    knowledge = known(every_node, chains)
    model = knowledge.rightness["pioneer"]
    weight = np.zeros_like(model.weight)
    weight[2] = [12.0, *[0.0] * (len(model.nodes) - 1)]
    bias = np.array([-6.0, 0.6, 1.0, 2.0], np.float32)
    models = {"pioneer": replace(model, weight=weight, bias=bias)}
    every_machine.ms |= {"whole2": 5.5, "tail3": 8.0}
    found = {}
    for name, typical in (("apart", apart()), ("alike", ALIKE)):
        told = replace(knowledge, rightness=models, typical={"pioneer": typical})
        measured = {"pioneer": 0.5, "whole2": 0.75}
        nodes = [replace(n, accuracy=measured.get(n.name, n.accuracy)) for n in every_node]
        path = invent(tuple(nodes), knowledge=told, buckets=tuple(range(1, 9)))
        with every_machine.load(path, policy="opa_split") as session:
            found[name] = entered(session, 5.7)
    assert found == {"apart": "pioneer", "alike": "whole2"}


def test_the_papers_policy_keeps_to_its_pioneer(load: Load) -> None:
    with load(ALIKE, policy="opa", whole2=2.2) as session:
        assert entered(session, 2.6) == "pioneer"


def test_a_bundle_without_typical_images_keeps_to_its_pioneer(load: Load) -> None:
    with load(None, whole2=2.2) as session:
        assert entered(session, 2.6) == "pioneer"


def test_a_loaded_machine_leaves_a_network_that_no_longer_fits(
    load: Load, every_machine: Any
) -> None:
    with load(ALIKE, whole2=2.2, whole1=2.0) as session:
        assert entered(session, 2.6) == "whole2"
        every_machine.slowdown = 1.5
        found = [session.infer(IMAGES_IN, 2.6) for _ in range(40)]
        assert "whole2" not in found[-1].nodes
        every_machine.slowdown = 1.0
        assert [entered(session, 2.6) for _ in range(400)][-1] == "whole2"


def test_groups_in_chunks_are_reckoned_as_a_whole(load: Load) -> None:
    many = np.concatenate([IMAGES_IN] * 3)
    with load(ALIKE, whole2=2.2) as session:
        assert entered(session, 2.6, many) == "pioneer"
        assert entered(session, 7.8, many) == "whole2"


@pytest.mark.parametrize("count", [1, 7, 8])
def test_groups_of_any_size_enter(load: Load, count: int) -> None:
    with load(apart(), whole2=2.2) as session:
        assert len(session.infer(IMAGES_IN[:count], 2.6).labels) == count


def test_a_result_explains_where_its_group_entered(load: Load) -> None:
    with load(ALIKE, whole1=1.0, whole2=2.2, whole3=8.5) as session:
        result = session.infer(IMAGES_IN, 2.6)
    seen = result.entered
    assert (seen.node, seen.left_ms) == ("whole2", 2.6)
    told = dict(zip(seen.entries, zip(seen.promised_ms, seen.accuracy, strict=True), strict=True))
    assert told["whole2"] == (pytest.approx(2.2), session.tree["whole2"].accuracy)
    assert math.isnan(told["whole3"][1])  # it does not fit, so nobody asked
    lead, _, *rows = result.explain().splitlines()[1 : 3 + len(seen.entries)]
    assert lead.strip().startswith("enters at whole2, 2.60 ms left: most images")
    marks = {row.split()[0]: row for row in rows}
    assert marks["whole2"].endswith("<- chosen")
    assert marks["whole3"].endswith("does not fit")
    facts = result.facts()["entered"]
    assert [row["entry"] for row in facts["entries"]] == [*seen.entries]
    assert facts["entries"][-1]["accuracy"] is None


def test_the_time_to_decide_where_to_enter_is_left_for_it(load: Load, every_machine: Any) -> None:
    class Pondering(OpaSplitPolicy):
        """Takes 0.5 ms to say where."""

        def enter(self, *given: Any) -> Any:
            every_machine.clock.advance(0.5)
            return super().enter(*given)

    with load(ALIKE, whole1=1.0, whole2=2.2) as session:
        knowledge = session._shared.knowledge
        session.use(Pondering(session.tree, knowledge))
        first, second = (session.infer(IMAGES_IN, 2.6) for _ in range(2))
    assert (first.entered.node, first.deadline_met) == ("whole2", False)
    assert (second.entered.left_ms, second.deadline_met) == (pytest.approx(2.1), True)


def test_a_pioneer_whose_deciding_takes_too_long_is_left(load: Load, every_machine: Any) -> None:
    """There is no time for a tail then, and that nothing is sent on takes time, too."""

    class Slow(OpaSplitPolicy):
        """Takes 1.5 ms to say that nothing fits."""

        def step(self, *given: Any) -> Any:
            every_machine.clock.advance(1.5)
            return super().step(*given)

    with load(ALIKE, whole1=2.1, whole2=9.0) as session:
        session.use(Slow(session.tree, session._shared.knowledge))
        found = [session.infer(IMAGES_IN, 2.2) for _ in range(40)]
    entered_at = [result.steps[0].node for result in found]
    assert entered_at[0] == "pioneer"
    assert not found[0].deadline_met
    assert set(entered_at[10:]) == {"whole1"}
    assert all(result.deadline_met for result in found[10:])


def test_typical_images_come_back_from_arrays(every_node: Any, chains: Any) -> None:
    knowledge = replace(known(every_node, chains), typical={"pioneer": apart()})
    again = Knowledge.from_arrays(knowledge.to_arrays(), knowledge.codes)
    assert [*again.typical] == ["pioneer"]
    assert (again.typical["pioneer"] == apart()).all()
