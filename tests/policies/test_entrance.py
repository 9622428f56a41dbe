"""Groups enter before the pioneer behind which the most accurate way that fits begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opa_trt.policies import Arrival
from opa_trt.policies.entrance import Entrance
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Tree

BOTH = (FEATURES, LOGITS)
# ms for a full batch, and measured accuracy
MS = {
    "pioneer-16": 1.0, "tail1-16": 1.0, "tail2-16": 2.0,
    "pioneer-24": 4.0, "tail1-24": 4.0, "tail2-24": 9.0,
}  # fmt: skip
ACCURACY = {
    "pioneer-16": 0.4, "tail1-16": 0.6, "tail2-16": 0.7,
    "pioneer-24": 0.5, "tail1-24": 0.75, "tail2-24": 0.9,
}  # fmt: skip


def nodes() -> tuple[Node, ...]:
    """Two pioneers with two tails each."""
    made = []
    for side in (16, 24):
        names = (f"tail1-{side}", f"tail2-{side}")
        for name in (f"pioneer-{side}", *names):
            first = name.startswith("pioneer")
            made.append(
                Node(
                    name, name, IMAGES if first else FEATURES, BOTH if first else (LOGITS,),
                    names if first else (), side, (ACCURACY[name], 0.0), int(10 * MS[name]),
                    ACCURACY[name],
                )
            )  # fmt: skip
    return tuple(made)


@pytest.fixture
def bundle(invent: Any) -> Path:
    return Path(invent(nodes()))


@pytest.fixture(params=["opa", "opa_split"])
def session(request: pytest.FixtureRequest, bundle: Path, machine: Any) -> Any:
    machine.ms = dict(MS)
    with machine.load(bundle, policy=request.param) as opened:
        yield opened


IMAGES_IN = np.zeros((8, 3, 16, 16), dtype=np.uint8)


def entered(session: Any, deadline_ms: float) -> str:
    return str(session.infer(IMAGES_IN, deadline_ms).steps[0].node)


@pytest.mark.parametrize(
    ("deadline_ms", "entry"),
    [
        (1.5, "pioneer-16"),  # nothing else
        (3.5, "pioneer-16"),
        (5.0, "pioneer-16"),  # the larger pioneer alone would fit, and is right less often
        (9.0, "pioneer-24"),
        (40.0, "pioneer-24"),
    ],
)
def test_a_deadline_picks_the_resolution(session: Any, deadline_ms: float, entry: str) -> None:
    assert entered(session, deadline_ms) == entry


def test_every_node_after_the_entry_has_the_runtimes_own_time() -> None:
    tree = Tree(
        (
            Node("e", "e", IMAGES, BOTH, ("a",), accuracy=0.4),
            Node("a", "a", FEATURES, (FEATURES,), ("b",)),
            Node("b", "b", FEATURES, (LOGITS,), accuracy=0.9),
            Node("f", "f", IMAGES, (LOGITS,), accuracy=0.6),
        )
    )
    each = {"e": 1.0, "a": 1.0, "b": 1.0, "f": 2.0}
    arrival = Arrival(8, ("e", "f"), np.array([1.5, 2.5]), each, 1.0)  # 0.5 of the runtime's own
    for left_ms, entry in ((3.9, "f"), (4.0, "e")):
        choice = Entrance(tree).pick(arrival, left_ms)
        assert choice is not None
        assert choice.node == entry


def test_nothing_that_fits_takes_the_fastest(session: Any) -> None:
    assert entered(session, 0.1) == "pioneer-16"


def test_a_loaded_machine_takes_the_smaller_resolution(session: Any, machine: Any) -> None:
    assert entered(session, 10.0) == "pioneer-24"
    machine.slowdown = 3.0
    found = [entered(session, 10.0) for _ in range(40)]
    assert found[-1] == "pioneer-16"
    machine.slowdown = 1.0
    found = [entered(session, 10.0) for _ in range(400)]
    assert found[-1] == "pioneer-24"


def test_groups_in_chunks_are_reckoned_as_a_whole(session: Any) -> None:
    many = np.zeros((24, 3, 16, 16), dtype=np.uint8)  # three chunks
    assert session.infer(many, 9.5).steps[0].node == "pioneer-16"
    assert session.infer(many, 30.0).steps[0].node == "pioneer-24"


# --- by itself ----------------------------------------------------------------------------------


def arrival(ms: dict[str, float], overhead: float = 0.0) -> Arrival:
    entries = ("pioneer-16", "pioneer-24")
    return Arrival(8, entries, np.array([ms[name] + overhead for name in entries]), ms)


def test_what_the_runtime_takes_counts() -> None:
    entrance = Entrance(Tree(nodes()))
    assert entrance.pick(arrival(MS), 8.0).node == "pioneer-24"
    assert entrance.pick(arrival(MS, overhead=0.5), 8.0).node == "pioneer-16"


def test_equal_ways_take_the_larger_resolution() -> None:
    equal = tuple(
        Node(n.name, n.segment, n.source, n.outputs, n.successors, n.resolution) for n in nodes()
    )
    assert Entrance(Tree(equal)).pick(arrival(MS), 100.0).node == "pioneer-24"


def test_nothing_fits() -> None:
    assert Entrance(Tree(nodes())).pick(arrival(MS), 0.9) is None
