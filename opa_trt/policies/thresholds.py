"""What a chain of exits may take as thresholds, and what each choice of them is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.errors import BundleCorrupt
from opa_trt.policies.evidence import Floats, confidences
from opa_trt.tree import BRANCHYNET, CASCADE, Node, Tree

FIELDS = ("thresholds", "reach", "accuracy")


@dataclass(frozen=True)
class Chain:
    """V ways to set the thresholds of a chain of E exits; none is better than another in all.

    Args:
        thresholds: ``[V, E - 1] float32``; an image leaves where its doubt is below.
        reach: ``[V, E] float32``, the share of the fitting images that reach each exit.
        accuracy: ``[V] float32`` on the fitting images, 0 to 1.
    """

    thresholds: Floats
    reach: Floats
    accuracy: Floats


def entropy(logits: Floats) -> Floats:
    """``[N]`` entropy in nats of the softmax of ``[N, C]`` logits: the doubt of BranchyNet."""
    confidence = confidences(logits)
    logs = np.log(np.maximum(confidence, np.float32(1e-30)))
    found: Floats = np.maximum(-(confidence * logs).sum(axis=1), 0)
    return found


def unsureness(logits: Floats) -> Floats:
    """``[N]`` 1 less the largest confidence of ``[N, C]`` logits: the doubt of a cascade."""
    found: Floats = 1 - confidences(logits).max(axis=1)
    return found


DOUBTS: dict[str, Callable[[Floats], Floats]] = {BRANCHYNET: entropy, CASCADE: unsureness}


def chain_of(tree: Tree, system: str) -> tuple[Node, ...]:
    """The exits of a system that is one chain, in order; none where the tree has no such system."""
    node = next((entry for entry in tree.entries if entry.system == system), None)
    found = []
    while node is not None:
        found.append(node)
        node = tree[node.successors[0]] if node.successors else None
    return tuple(found)


def chains_to_arrays(chains: Mapping[str, Chain]) -> dict[str, npt.NDArray[np.generic]]:
    """By the names that a bundle's profile has: ``chains/SYSTEM/FIELD``."""
    return {
        f"chains/{system}/{field}": getattr(chain, field)
        for system, chain in chains.items()
        for field in FIELDS
    }


def chains_from_arrays(arrays: Mapping[str, Any]) -> dict[str, Chain]:
    """Read what ``chains_to_arrays`` made, by system.

    Raises:
        BundleCorrupt: an array is missing, or has another shape than the others say.
    """
    found = {}
    for system in sorted({key.split("/")[1] for key in arrays if key.startswith("chains/")}):
        try:
            chain = Chain(*(arrays[f"chains/{system}/{field}"] for field in FIELDS))
            ways, exits = chain.reach.shape
            whole = chain.thresholds.shape == (ways, exits - 1) and len(chain.accuracy) == ways > 0
        except (KeyError, ValueError, TypeError) as exc:
            message = f"the profile's chain of {system} cannot be read: {exc}."
            raise BundleCorrupt(message, remedy="build the bundle again.") from exc
        if not whole:
            message = f"the profile's arrays chains/{system}/… do not fit together."
            raise BundleCorrupt(message, remedy="build the bundle again.")
        found[system] = chain
    return found
