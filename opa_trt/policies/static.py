"""One fixed route, whatever the images and the load: what adapting is compared with."""

from __future__ import annotations

import itertools

from opa_trt.errors import ConfigError, UnknownNameError
from opa_trt.policies.base import (
    STOP,
    Arrival,
    Budget,
    Decision,
    EntryChoice,
    PolicyBase,
    View,
    all_to,
)
from opa_trt.policies.knowledge import Knowledge
from opa_trt.tree import LOGITS, OPA, Tree


class StaticPolicy(PolicyBase):
    """Always the route that ends at ``node``.

    Args:
        tree: the bundle's nodes.
        knowledge: not used.
        node: a node with logits, ``smallest`` or ``largest`` (by MACs of its route), or left out
            for the largest.
    """

    name = "static"

    def __init__(
        self, tree: Tree, knowledge: Knowledge, node: str = "largest", **options: object
    ) -> None:
        if options:
            message = f"policy static takes the option 'node', got {sorted(options)}."
            raise ConfigError(message)
        self.node = route_end(tree, node)
        path = tree.route_to(self.node).nodes
        self.system = tree[self.node].system
        self._entry = path[0]
        self._next = dict(itertools.pairwise(path))

    def enter(self, arrival: Arrival, budget: Budget, state: None) -> tuple[EntryChoice, None]:
        """The route's own entry."""
        return EntryChoice(self._entry, f"always {self.node}"), None

    def step(self, view: View, budget: Budget, state: None) -> tuple[Decision, None]:
        """The whole group along the route; the deadline is not looked at."""
        follower = self._next.get(view.node)
        best = STOP if follower is None else view.successors.index(follower)
        fits = best == STOP or bool((view.latency_ms[:, -1] <= budget.left_ms).any())
        return all_to(best, view, budget.left_ms, fits=fits, reason=f"always {self.node}"), None


def route_end(tree: Tree, node: str) -> str:
    """The node that ``node`` means: a name, or the end of the smallest or largest route.

    The smallest and largest are taken among ``opa``'s routes that end at leaves.

    Raises:
        UnknownNameError: no node of that name.
        ConfigError: the node has no logits.
    """
    if node in ("smallest", "largest"):
        ends = ((route, tree[route.last]) for route in tree.routes())
        leaves = [route for route, end in ends if end.system == OPA and not end.successors]
        ordered = sorted(leaves, key=lambda route: sum(tree[name].macs for name in route.nodes))
        return ordered[0 if node == "smallest" else -1].last
    if node not in tree.nodes:
        msg = "node"
        raise UnknownNameError(msg, node, [*tree.nodes, "smallest", "largest"])
    if LOGITS not in tree[node].outputs:
        message = f"node {node} has no logits."
        raise ConfigError(message, expected="one whose outputs have logits.")
    return node
