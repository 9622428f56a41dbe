"""Image by image: those that gain most go to one tail, and the others stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ConfigError
from opa_trt.policies.base import (
    STOP,
    Ahead,
    Arrival,
    Budget,
    Decision,
    EntryChoice,
    Milliseconds,
    PolicyBase,
    View,
    all_to,
    nothing_fits,
)
from opa_trt.policies.entrance import Entrance
from opa_trt.policies.evidence import Floats, evenly, evidence
from opa_trt.policies.knowledge import Knowledge, Rightness
from opa_trt.policies.ways import Ways, every_way
from opa_trt.tree import WHOLE, Tree

FEWEST = 8  # images of a group that are typical one by one; fewer are typical in the mean

Choice = npt.NDArray[np.int64]
Thought = Mapping[str, float]  # how many of the images that went on each end has right


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

    Where the bundle has complete networks beside the tree, a group goes to one of them without a
    pioneer if the network fits, and is right more often than what typical images would come to
    behind the pioneer in the time that is left there: a pioneer costs time that some deadlines do
    not have, and not every content is worth telling apart.

    Where the network goes on in levels, the tail is a way. At a node without logits all images go
    on: along the way whose end was thought right most often of them, of those that fit the time
    left then. The state is what was thought of the images that went on.
    """

    name = "opa_split"
    beside: tuple[str, ...] = (WHOLE,)
    explores = True

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
        self._ways = every_way(tree, self.system)
        models = {
            name: model.of((name, *self._ways[name].ends))
            for name, model in knowledge.rightness.items()
            if name in self._ways
        }
        self._models = {name: model for name, model in models.items() if model is not None}
        self._typical = {
            name: _in_the_mean(self._models[name], rows, tree)
            for name, rows in knowledge.typical.items()
            if name in self._models
        }
        self._prospects: dict[tuple[str, tuple[int, ...]], tuple[float, Gains]] = {}
        self._complete = {
            entry.name: entry.accuracy for entry in tree.entries if entry.system in self.beside
        }

    def enter(
        self, arrival: Arrival, budget: Budget, state: Thought | None
    ) -> tuple[EntryChoice | None, None]:
        """Where most images are expected right in time: behind a pioneer, or at a complete network.
        Of equals the faster wins."""
        known = self._typical.keys() & arrival.ahead.keys()
        if not known:  # a bundle built earlier
            return self._entrance.pick(arrival, budget.left_ms), None
        ms = arrival.promised_ms
        expected: dict[str, float] = {}
        for name in arrival.entries:
            if ms[name] <= budget.left_ms and (name in known or name in self._complete):
                accuracy = self._complete.get(name)
                if accuracy is None:
                    accuracy = self._expected(name, arrival.ahead[name])
                expected[name] = accuracy
        if not expected:
            return None, None
        best = max(expected, key=lambda name: (expected[name], -ms[name], name))
        reason = "most images are expected right in time there"
        return EntryChoice(best, reason, expected), None

    def _expected(self, entry: str, ahead: Ahead) -> float:
        """The share of typical images that would be answered rightly behind an entry."""
        view = ahead.view
        known = self._prospects.get((entry, view.batches))
        if known is None:
            right = _typical_group(self._typical[entry], view.pending)
            known = float(right[:, 0].mean()), Gains.of(right, view.batches)
            self._prospects[entry, view.batches] = known
        stopped, gains = known
        latency = self._ways[entry].latency_ms(view)
        return stopped + gains.most(latency, view.split_ms, ahead.left_ms) / view.pending

    def step(
        self, view: View, budget: Budget, state: Thought | None
    ) -> tuple[Decision, Thought | None]:
        """Some or all images along the best way that fits, or stop."""
        if view.logits is None:
            if state is None:
                message = f"policy opa_split needs logits, which {view.node} does not give."
                raise ConfigError(message, remedy="use another policy for this bundle.")
            return self._go_on(view, budget, state), state
        ways = self._ways[view.node]
        latency = ways.latency_ms(view)
        if _cheapest_ms(latency, view.split_ms) > budget.left_ms:
            return nothing_fits(view, budget.left_ms), None
        right = self._right(view.node, evidence(view.logits))
        decision = self._decide(view, budget, right, latency)
        if ways.direct:
            return decision, None
        sent = right[decision.choice != STOP, 1:]
        return decision, dict(zip(ways.ends, sent.sum(axis=0).tolist(), strict=True))

    def decide(self, view: View, budget: Budget, evidence: Floats) -> Decision:
        """``step``, where the logits' ``evidence [N, F]`` is known already.

        Raises:
            ConfigError: no model reads this node's logits.
        """
        latency = self._ways[view.node].latency_ms(view)
        return self._decide(view, budget, self._right(view.node, evidence), latency)

    def _decide(self, view: View, budget: Budget, right: Floats, latency: Milliseconds) -> Decision:
        """What to do where each image is thought ``right [N, 1 + W]`` so likely, and the ways take
        ``latency [W, B]``."""
        ways = self._ways[view.node]
        found = plan(right, latency, view.batches, view.split_ms, budget.left_ms)
        share = np.full(len(right), 1 / len(right), dtype=np.float32)
        estimated, *predicted = (share @ right).tolist()
        return Decision(
            choice=found.choice if ways.direct else ways.begin(found.choice),
            successors=view.successors,
            predicted_ms=tuple(view.latency_ms[:, -1].tolist()),
            predicted_accuracy=ways.by_successor(predicted),
            estimated_accuracy=estimated,
            left_ms=budget.left_ms,
            fits=found.fits,
            reason=_reason(view, ways, found),
            notes={"expected_accuracy": estimated + found.gain / view.pending},
        )

    def _go_on(self, view: View, budget: Budget, thought: Thought) -> Decision:
        """All images on from a node that has no answer of its own."""
        ways = self._ways[view.node]
        expected = [thought[end] / view.pending for end in ways.ends]
        latency: list[float] = ways.latency_ms(view)[:, -1].tolist()
        best, fitting = ways.best(expected, latency, budget.left_ms)
        if best is None:
            best = latency.index(min(latency))
            reason = f"nothing fits, so {ways.ends[best]}, the fastest, answers"
        else:
            reason = f"on to {ways.ends[best]}, the best of {fitting} that fit"
        return all_to(
            ways.begins(best),
            view,
            budget.left_ms,
            fits=fitting > 0,
            reason=reason,
            accuracy=ways.by_successor(expected),
        )

    def _right(self, node: str, evidence: Floats) -> Floats:
        return self._model(node).probabilities(evidence)

    def _model(self, node: str) -> Rightness:
        found = self._models.get(node)
        if found is None:
            message = f"policy opa_split has no model that reads the logits of {node}."
            raise ConfigError(
                message,
                expected=f"one of {node} and each answer below it.",
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
    gains = Gains.of(right, batches)
    cost = gains.cost_ms(latency_ms, split_ms)
    allowed = cost <= left_ms
    fits = bool(allowed.any())
    gain = gains.gain * allowed
    count, whole = len(right), len(batches)
    best = float(gain.max())
    if best <= 0:
        return Plan(np.full(count, STOP, np.int64), STOP, 0, 0.0, fits)
    # The first of the cheapest: by tail, then by batch, the whole group last.
    place = int(np.where(gain == best, cost, np.inf).argmin())
    tail, column = divmod(place, whole + 1)
    if column == whole:
        return Plan(np.full(count, tail, np.int64), tail, count, best, fits)
    sent = min(int(np.count_nonzero(gains.losses[tail] < 0)), batches[column])
    return Plan(_spread(right, tail, sent), tail, sent, best, fits)


@dataclass(frozen=True)
class Gains:
    """All of a plan that does not depend on time: what each tail and batch size would bring.

    Args:
        losses: ``[T, N] float32`` ascending for each tail, below 0 where an image gains there.
        gain: ``[T, B + 1]`` right images to be expected beyond those of stopping all: of the best
            part in each batch, and of the whole group; 0 where another column says the same.
    """

    losses: Floats
    gain: npt.NDArray[np.float64]

    @classmethod
    def of(cls, right: Floats, batches: tuple[int, ...]) -> Gains:
        """Of ``right [N, 1 + T]`` and ascending ``batches``, as ``plan`` takes them."""
        losses = right[:, 0] - right.T[1:]
        losses.sort(axis=1)
        exact, whole = losses.astype(np.float64), len(batches)
        smaller = np.array([0, *batches[:-1]])
        gain = np.empty((len(losses), whole + 1))
        parts = np.add.reduceat(np.minimum(exact, 0), smaller, axis=1)
        np.cumsum(-parts, axis=1, out=gain[:, :whole])
        gain[:, whole] = -exact.sum(axis=1)
        gain[:, :whole] *= losses[:, smaller] < 0  # else a smaller batch holds all that gain
        gain[:, whole - 1] *= losses[:, -1] >= 0  # else they are the whole
        return cls(losses, gain)

    def cost_ms(self, latency_ms: Milliseconds, split_ms: float) -> Milliseconds:
        """``[T, B + 1]``: what each of them takes."""
        cost = np.empty_like(self.gain)
        np.add(latency_ms, split_ms, out=cost[:, :-1])
        cost[:, -1] = latency_ms[:, -1]
        return cost

    def most(self, latency_ms: Milliseconds, split_ms: float, left_ms: float) -> float:
        """What the best that fits would bring, 0 where nothing does."""
        allowed = self.cost_ms(latency_ms, split_ms) <= left_ms
        return max(0.0, float((self.gain * allowed).max()))


def _cheapest_ms(latency_ms: Milliseconds, split_ms: float) -> float:
    """What the cheapest plan takes: to split the smallest batch off, or to send all on."""
    return float(min(latency_ms.min() + split_ms, latency_ms[:, -1].min()))


def _in_the_mean(model: Rightness, evidence: Floats, tree: Tree) -> Floats:
    """``[K, nodes]`` how likely nodes are right on typical images, in the mean as often as the
    build measured."""
    found = model.probabilities(evidence)
    accuracy = np.array([tree[name].accuracy for name in model.nodes], dtype=np.float32)
    shifted: Floats = found + (accuracy - found.mean(axis=0))
    return shifted


def _typical_group(typical: Floats, count: int) -> Floats:
    """So many of typical images, evenly from least sure to surest."""
    if count < FEWEST:
        return np.repeat(typical.mean(axis=0, keepdims=True), count, axis=0)
    return typical[evenly(len(typical), count)]


def _spread(right: Floats, tail: int, sent: int) -> Choice:
    """The ``sent`` images that gain most go to ``tail``; among equals, where it is needed most."""
    choice = np.full(len(right), STOP, np.int64)
    first = np.lexsort((right[:, 0], right[:, 0] - right[:, 1 + tail]))[:sent]
    choice[first] = tail
    return choice


def _reason(view: View, ways: Ways, found: Plan) -> str:
    if not found.fits:
        return f"nothing fits, so {view.node} answers"
    if found.tail == STOP:
        return f"no image is expected to gain by what fits, so {view.node} answers"
    who = "all" if found.sent == view.pending else f"{found.sent} of {view.pending}"
    return f"{who} images to {ways.ends[found.tail]}, +{found.gain:.2g} right expected"
