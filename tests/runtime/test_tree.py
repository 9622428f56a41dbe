"""A deployed network is a tree whose every leaf has logits, and nothing else."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.errors import ConfigError
from opa_trt.tree import (
    FEATURES,
    IMAGES,
    LOGITS,
    Node,
    Route,
    Segment,
    Target,
    TensorSpec,
    Tree,
)

BOTH = (FEATURES, LOGITS)


def entry(name: str, *successors: str, outputs: tuple[str, ...] = BOTH) -> Node:
    return Node(name, name, IMAGES, outputs, successors)


def tail(name: str, *successors: str, outputs: tuple[str, ...] = (LOGITS,)) -> Node:
    return Node(name, name, FEATURES, outputs, successors)


# --- what a tree may be -------------------------------------------------------------------------


def test_a_pioneer_and_its_tails() -> None:
    tree = Tree((entry("p", "a", "b"), tail("a"), tail("b")))
    assert [node.name for node in tree.entries] == ["p"]
    assert tree.parents == {"a": "p", "b": "p"}
    assert [str(route) for route in tree.routes()] == ["p", "p → a", "p → b"]


def test_entries_without_successors() -> None:
    tree = Tree((entry("small"), entry("large")))
    assert [route.nodes for route in tree.routes()] == [("small",), ("large",)]


def test_a_chain_of_exits_has_a_route_for_each() -> None:
    tree = Tree((entry("a", "b"), tail("b", "c", outputs=BOTH), tail("c")))
    assert [route.last for route in tree.routes()] == ["a", "b", "c"]
    assert all(route.entry == "a" for route in tree.routes())


def test_a_node_without_logits_ends_no_route() -> None:
    tree = Tree((entry("stem", "end", outputs=(FEATURES,)), tail("end")))
    assert [route.nodes for route in tree.routes()] == [("stem", "end")]


def test_routes_may_start_anywhere() -> None:
    tree = Tree((entry("a", "b"), tail("b", "c", outputs=BOTH), tail("c")))
    assert [route.nodes for route in tree.routes("b")] == [("b",), ("b", "c")]


def test_nodes_may_share_a_segment() -> None:
    shared = replace(tail("b"), segment="a")
    assert Tree((entry("p", "a", "b"), tail("a"), shared))["b"].segment == "a"


def test_a_cascade_reads_images_at_every_node() -> None:
    nodes = (
        entry("a", "b", outputs=(LOGITS,)),
        replace(tail("b", "c"), source=IMAGES),
        replace(tail("c"), source=IMAGES),
    )
    assert [route.last for route in Tree(nodes).routes()] == ["a", "b", "c"]


# --- what it may not be -------------------------------------------------------------------------


def test_no_nodes_are_no_tree() -> None:
    with pytest.raises(ConfigError, match="no nodes"):
        Tree(())


def test_repeated_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="repeated names"):
        Tree((entry("a"), entry("a")))


def test_a_dangling_successor_is_refused() -> None:
    with pytest.raises(ConfigError, match="p has the successor 'gone'"):
        Tree((entry("p", "gone"),))


def test_a_successor_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="p has the successor 'a'"):
        Tree((entry("p", "a", "a"), tail("a")))


def test_a_second_parent_is_refused() -> None:
    with pytest.raises(ConfigError, match="q has the successor 'a'"):
        Tree((entry("p", "a"), entry("q", "a"), tail("a")))


def test_a_node_that_follows_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="p has the successor 'p'"):
        Tree((entry("p", "p"),))


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ConfigError, match="lead nowhere"):
        Tree((tail("a", "b", outputs=BOTH), tail("b", "a", outputs=BOTH)))


def test_a_cycle_beside_a_tree_is_refused() -> None:
    cycle = (tail("a", "b", outputs=BOTH), tail("b", "a", outputs=BOTH))
    with pytest.raises(ConfigError, match=r"\['a', 'b'\] lead nowhere"):
        Tree((entry("p"), *cycle))


def test_a_leaf_without_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaf a has no logits"):
        Tree((entry("p", "a"), tail("a", outputs=(FEATURES,))))


def test_features_that_the_parent_does_not_give_are_refused() -> None:
    with pytest.raises(ConfigError, match="a reads features, which p does not give"):
        Tree((entry("p", "a", outputs=(LOGITS,)), tail("a")))


def test_an_entry_that_reads_features_is_refused() -> None:
    with pytest.raises(ConfigError, match="a reads 'features'"):
        Tree((tail("a"),))


def test_a_source_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="a reads 'pixels'"):
        Tree((entry("p", "a"), replace(tail("a"), source="pixels")))


@given(parents=st.lists(st.integers(0, 100), max_size=12))
def test_every_node_of_any_tree_with_logits_ends_one_route(parents: list[int]) -> None:
    """Node i + 1 follows one of those before it."""
    follows: dict[int, list[str]] = {i: [] for i in range(len(parents) + 1)}
    for i, parent in enumerate(parents):
        follows[parent % (i + 1)].append(f"n{i + 1}")
    nodes = [entry("n0", *follows[0])]
    nodes += [tail(f"n{i + 1}", *follows[i + 1], outputs=BOTH) for i in range(len(parents))]
    tree = Tree(tuple(nodes))
    assert sorted(route.last for route in tree.routes()) == sorted(tree.nodes)
    for route in tree.routes():
        assert all(tree.parents[b] == a for a, b in pairwise(route.nodes))


# --- the other words ----------------------------------------------------------------------------


def test_nodes_and_specs_come_back_from_plain_values() -> None:
    node = replace(entry("p", "a"), code=(0.5, 1.0), accuracy=0.25)
    spec = TensorSpec("images", (3, 4, 4), "uint8")
    assert Node.from_dict(asdict(node)) == node
    assert TensorSpec.from_dict(asdict(spec)) == spec


def test_a_route_knows_its_ends() -> None:
    route = Route(("p", "a"))
    assert (route.entry, route.last, str(route)) == ("p", "a", "p → a")


@pytest.mark.parametrize(("low", "high"), [(0, 8), (9, 8), (-1, -1)])
def test_an_impossible_batch_range_is_refused(low: int, high: int) -> None:
    with pytest.raises(ConfigError, match="batch range"):
        Target("null", "1", min_batch=low, max_batch=high)


def test_no_threads_are_refused() -> None:
    with pytest.raises(ConfigError, match="threads = 0"):
        Target("null", "1", threads=0)


def test_forms_that_can_execute_code_can_be_left_out() -> None:
    segment = Segment("s", (), (), {"onnx": b"1", "torchscript": b"2", "pt2": b"3"}, "c")
    assert segment.without_code().forms == {"onnx": b"1"}
    assert segment.without_code().content == "c"
