"""Image by image: those that gain most go to one tail, and the others stop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ConfigError
from opa_trt.policies.base import STOP, Arrival, Budget, Decision, Milliseconds, PolicyBase, View
from opa_trt.policies.entrance import Entrance
from opa_trt.policies.evidence import Floats, evidence
from opa_trt.policies.knowledge import Knowledge, Rightness
from opa_trt.tree import Tree

Choice = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Which images of a group go on, and what that is expected to bring.

    Args:
        choice: ``[N] int64``, a place among the tails, or ``STOP``.
        tail: the one place that images go to, or ``STOP``.
        sent: how many go there.
        gain: by how many right images more than stopping all of them.
        fits: whether there was time to send any.
    """

    choice: Choice
    tail: int
    sent: int
    gain: float
    fits: bool


class OpaSplitPolicy(PolicyBase):
    """The most images expected right within the deadline: each stops, or goes to the one tail.

    Calibrated models turn each image's evidence into the probability that the node that ran is
    right, and that each successor would be. All successors and batch sizes are looked at, so the
    choice is exact (``plan``), and nothing depends on the deadline that it was fitted for.
    """

    name = "opa_split"

    def __init__(self, tree: Tree, knowledge: Knowledge, **options: object) -> None:
        if options:
            message = f"policy opa_split takes no options, got {sorted(options)}."
            raise ConfigError(message)
        if not knowledge.rightness:
            message = "this bundle does not know how likely a node is right on an image."
            raise ConfigError(
                message,
                expected="arrays rightness/… in its profile, for policy opa_split.",
                remedy="build the bundle again.",
            )
        self._entrance = Entrance(tree)
        models = {
            name: model.of((name, *tree[name].successors))
            for name, model in knowledge.rightness.items()
            if name in tree.nodes
        }
        self._models = {name: model for name, model in models.items() if model is not None}

    def enter(self, arrival: Arrival, budget: Budget, state: None) -> tuple[str | None, None]:
        """Where the most accurate way that fits begins."""
        return self._entrance.pick(arrival, budget.left_ms), None

    def step(self, view: View, budget: Budget, state: None) -> tuple[Decision, None]:
        """Some or all images to the best successor that fits, or stop."""
        if view.logits is None:
            message = f"policy opa_split needs logits, which {view.node} does not give."
            raise ConfigError(message, remedy="use another policy for this bundle.")
        return self.decide(view, budget, evidence(view.logits)), None

    def decide(self, view: View, budget: Budget, evidence: Floats) -> Decision:
        """``step``, where the logits' ``evidence [N, F]`` is known already.

        Raises:
            ConfigError: no model reads this node's logits.
        """
        right = self._model(view.node).probabilities(evidence)
        found = plan(right, view.latency_ms, view.batches, view.split_ms, budget.left_ms)
        share = np.full(len(right), 1 / len(right), dtype=np.float32)
        estimated, *predicted = (share @ right).tolist()
        return Decision(
            choice=found.choice,
            successors=view.successors,
            predicted_ms=tuple(view.latency_ms[:, -1].tolist()),
            predicted_accuracy=tuple(predicted),
            estimated_accuracy=estimated,
            left_ms=budget.left_ms,
            fits=found.fits,
            reason=_reason(view, found),
            notes={"expected_accuracy": estimated + found.gain / view.pending},
        )

    def _model(self, node: str) -> Rightness:
        found = self._models.get(node)
        if found is None:
            message = f"policy opa_split has no model that reads the logits of {node}."
            raise ConfigError(
                message,
                expected=f"one of {node} and each of its successors.",
                remedy="use another policy for this bundle, or build it again.",
            )
        return found


def plan(
    right: Floats,
    latency_ms: Milliseconds,
    batches: tuple[int, ...],
    split_ms: float,
    left_ms: float,
) -> Plan:
    """The most right images to be expected, exactly, of all ways to send images to one tail.

    A part of the group takes the latency of the smallest batch that holds it, and the split; the
    whole group takes no split. Only images that gain are sent, unless all are. Among equals, the
    fewest ms win, then the earlier tail, then the smaller batch. No order of images matters.

    Args:
        right: ``[N, 1 + T] float32`` probability that the node that ran, and each tail, is right.
        latency_ms: ``[T, B]`` of each tail at each of ``batches``.
        batches: ascending; the last one is N.
        split_ms: what it takes beyond that to send a part.
        left_ms: the time that is left.
    """
    count, whole = len(right), len(batches)
    losses = right[:, 0] - right.T[1:]  # below 0 where an image gains
    losses.sort(axis=1)
    exact = losses.astype(np.float64)

    cost = np.empty((len(losses), whole + 1))  # of the best part in each batch, and of the whole
    np.add(latency_ms, split_ms, out=cost[:, :whole])
    cost[:, whole] = latency_ms[:, -1]
    allowed = cost <= left_ms
    fits = bool(allowed.any())
    smaller = np.array([0, *batches[:-1]])
    allowed[:, :whole] &= losses[:, smaller] < 0  # else a smaller batch holds all that gain
    allowed[:, whole - 1] &= losses[:, -1] >= 0  # else they are the whole

    gain = np.empty_like(cost)
    parts = np.add.reduceat(np.minimum(exact, 0), smaller, axis=1)
    np.cumsum(-parts, axis=1, out=gain[:, :whole])
    gain[:, whole] = -exact.sum(axis=1)
    gain *= allowed

    best = float(gain.max())
    if best <= 0:
        return Plan(np.full(count, STOP, np.int64), STOP, 0, 0.0, fits)
    # The first of the cheapest: by tail, then by batch, the whole group last.
    place = int(np.where(gain == best, cost, np.inf).argmin())
    tail, column = divmod(place, whole + 1)
    if column == whole:
        return Plan(np.full(count, tail, np.int64), tail, count, best, fits)
    sent = min(int(np.count_nonzero(losses[tail] < 0)), batches[column])
    return Plan(_spread(right, tail, sent), tail, sent, best, fits)


def _spread(right: Floats, tail: int, sent: int) -> Choice:
    """The ``sent`` images that gain most go to ``tail``; among equals, where it is needed most."""
    choice = np.full(len(right), STOP, np.int64)
    first = np.lexsort((right[:, 0], right[:, 0] - right[:, 1 + tail]))[:sent]
    choice[first] = tail
    return choice


def _reason(view: View, found: Plan) -> str:
    if not found.fits:
        return f"nothing fits, so {view.node} answers"
    if found.tail == STOP:
        return f"no image is expected to gain by what fits, so {view.node} answers"
    who = "all" if found.sent == view.pending else f"{found.sent} of {view.pending}"
    return f"{who} images to {view.successors[found.tail]}, +{found.gain:.2g} right expected"
