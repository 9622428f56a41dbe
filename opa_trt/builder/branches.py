"""An entry and the answers below it: what is fitted and told of together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opa_trt.tree import OPA, Node, Tree


@dataclass(frozen=True)
class Branch:
    """An entry with logits, and the nodes with logits below it, by ascending MACs.

    Args:
        entry: where images enter.
        ends: the answers below.
        macs: for one image, of each way from the entry (left out) to an end.
    """

    entry: Node
    ends: tuple[Node, ...]
    macs: Mapping[str, int]

    @property
    def names(self) -> list[str]:
        """Of the ends."""
        return [node.name for node in self.ends]


def branches_of(tree: Tree) -> list[Branch]:
    """``opa``'s entries and the answers below each, in the tree's order."""
    found = []
    for entry in tree.entries_of(OPA):
        below = [route for route in tree.routes(entry.name) if len(route.nodes) > 1]
        macs = {route.last: sum(tree[name].macs for name in route.nodes[1:]) for route in below}
        ends = sorted((tree[name] for name in macs), key=lambda node: macs[node.name])
        found.append(Branch(entry, tuple(ends), macs))
    return found
