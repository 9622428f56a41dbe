"""What every node of a bundle answers on the pool, recorded once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from opa_trt.evaluate.compare.pool import Pool
from opa_trt.progress import Progress
from opa_trt.runtime import Session
from opa_trt.tree import LOGITS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
STAGE = "answers"


@dataclass(frozen=True)
class Answers:
    """Every node's answers on N images.

    Args:
        labels: the true ones ``[N]``.
        given: by node with logits, its answers ``[N] int64``.
        logits: by node that others follow, its logits ``[N, C] float32``.
    """

    labels: Ints
    given: dict[str, Ints]
    logits: dict[str, Floats]

    @cached_property
    def right(self) -> dict[str, npt.NDArray[np.bool_]]:
        """By node ``[N]``, whether it is right."""
        return {name: answers == self.labels for name, answers in self.given.items()}

    def accuracy(self, node: str, rows: Ints) -> float:
        """Of a node on the images at ``rows``, 0 to 1."""
        return float(self.right[node][rows].mean())

    def on(self, rows: Ints) -> dict[str, npt.NDArray[np.bool_]]:
        """By node ``[n]``, whether it is right on each of ``rows``."""
        return {name: right[rows] for name, right in self.right.items()}


def record_answers(session: Session, pool: Pool, progress: Progress | None = None) -> Answers:
    """Run every node with logits over the whole pool, on the session's engines.

    The session's policy is another one afterwards.
    """
    told = progress or Progress()
    nodes = [node for node in session.tree.nodes.values() if LOGITS in node.outputs]
    largest = session.manifest.max_batch
    told.start(STAGE, len(nodes))
    given, logits = {}, {}
    for done, node in enumerate(nodes, 1):
        session.use(f"static:{node.name}")
        parts = [
            session.infer(pool.take(rows), math.inf).logits
            for rows in np.split(np.arange(len(pool)), range(largest, len(pool), largest))
        ]
        found = np.concatenate(parts)
        given[node.name] = found.argmax(axis=1)
        if node.successors:
            logits[node.name] = found
        told.advance(done, node.name)
    told.finish(STAGE, f"{len(nodes)} nodes on {len(pool):,} images")
    return Answers(pool.labels, given, logits)
