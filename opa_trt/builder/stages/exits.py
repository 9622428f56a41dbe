"""Exit heads along the largest network (BranchyNet)."""

from __future__ import annotations

from typing import Any

from torch import nn

from opa_trt.builder.exit_heads import learn_head, make_lesson
from opa_trt.builder.network import logits_macs, run_batches
from opa_trt.builder.parts import above
from opa_trt.builder.supernet_parts import SupernetParts


def train_exits(
    parts: SupernetParts, largest: nn.Sequential
) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """Heads of the exits between the pioneer's and the last, which is the network's own.

    Args:
        parts: what came before.
        largest: the largest resolution's largest tail, calibrated.

    Returns:
        Channels and MACs of each head by exit, and the heads' arrays as ``EXIT/NAME``.
    """
    facts: dict[str, dict[str, int]] = {}
    arrays: dict[str, Any] = {}
    middle = [*parts.deployment.exits.items()][:-1]
    if not middle:
        return facts, arrays
    entry = parts.entries[-1]
    taught = make_lesson(parts.supernet, parts.pools, entry.side)
    features = run_batches(parts.pioneers[entry.name].trunk, taught.inputs)
    parts.progress.start("calibrate", len(middle))
    for done, (name, piece) in enumerate(middle, 1):
        features = run_batches(largest[piece], features)
        head = learn_head(parts.recipe, taught, features)
        facts[name] = {
            "channels": features[0].shape[1],
            "head_macs": logits_macs(head, features[0]),
        }
        arrays |= above(name, head)
        parts.progress.advance(done, name)
    return facts, arrays
