"""The paper's policy: the best predicted tail that fits (OPA, Algorithm 1 over a finite set)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from opa_trt.errors import ConfigError
from opa_trt.policies.base import (
    Arrival,
    Budget,
    Decision,
    EntryChoice,
    PolicyBase,
    View,
    all_to,
    nothing_fits,
)
from opa_trt.policies.entrance import Entrance
from opa_trt.policies.evidence import Floats, ascending_powers
from opa_trt.policies.knowledge import Estimator, Knowledge, share
from opa_trt.policies.ways import every_way
from opa_trt.tree import Tree


class OpaPolicy(PolicyBase):
    """One way for the whole group: an exact argmax over those that fit.

    The pioneer's accuracy on the group is estimated from its confidences, by an estimator of its
    own: a bundle may have pioneers at several resolutions. The predictor turns that and each
    tail's arch into the tail's accuracy on the group. Equal predictions go to the faster tail.
    Where nothing fits, the pioneer's answer stands. A group enters where the most accurate way
    that fits begins, as far as the build's own measurements and the last known slowdown tell.

    Where the network goes on in levels, a way is chosen anew at each, in the time that is left
    then. At a node without logits the estimate is that of the pioneer, which is the state; there
    is no answer to fall back on, so where nothing fits the group goes the fastest way.
    """

    name = "opa"
    explores = True

    def __init__(self, tree: Tree, knowledge: Knowledge, **options: object) -> None:
        if options:
            message = f"policy opa takes no options, got {sorted(options)}."
            raise ConfigError(message)
        self._entrance = Entrance(tree)
        self._ways = every_way(tree, self.system)
        self._estimators = knowledge.estimators
        self._predicted: dict[str, Callable[[float], Floats]] = {
            name: knowledge.predictor.of(np.stack([knowledge.codes[end] for end in ways.ends]))
            for name, ways in self._ways.items()
        }

    def enter(
        self, arrival: Arrival, budget: Budget, state: float | None
    ) -> tuple[EntryChoice | None, None]:
        """Where the most accurate way that fits begins."""
        return self._entrance.pick(arrival, budget.left_ms), None

    def step(
        self, view: View, budget: Budget, state: float | None
    ) -> tuple[Decision, float | None]:
        """The whole group along the best way that fits, or stop."""
        if view.logits is None:
            if state is None:
                message = f"policy opa needs logits, which {view.node} does not give."
                raise ConfigError(message, remedy="use another policy for this bundle.")
            return self._choose(view, budget, state, self._whole_ms(view)), state
        latency = self._whole_ms(view)
        if min(latency) > budget.left_ms:
            return nothing_fits(view, budget.left_ms), None
        estimated = self._estimated(view.node, ascending_powers(view.logits))
        return self._choose(view, budget, estimated, latency), estimated

    def decide(self, view: View, budget: Budget, powers: Floats) -> Decision:
        """``step``, where the logits' ``ascending_powers [N, C]`` are known already.

        Raises:
            ConfigError: no estimator reads this node's logits.
        """
        return self._choose(view, budget, self._estimated(view.node, powers), self._whole_ms(view))

    def _whole_ms(self, view: View) -> list[float]:
        """What the whole group takes along each way."""
        latency: list[float] = self._ways[view.node].latency_ms(view)[:, -1].tolist()
        return latency

    def _estimated(self, node: str, powers: Floats) -> float:
        """The accuracy of a node's own answers."""
        return share(self._estimator(node).judged(powers))

    def _choose(
        self, view: View, budget: Budget, estimated: float, latency: list[float]
    ) -> Decision:
        """The best way that fits where the pioneer's accuracy is ``estimated`` so, and the whole
        group takes ``latency [W]`` along each."""
        ways = self._ways[view.node]
        accuracy: list[float] = self._predicted[view.node](estimated).tolist()
        best, fitting = ways.best(accuracy, latency, budget.left_ms)
        if best is not None:
            reason = f"{ways.ends[best]} is the best of {fitting} that fit"
        elif view.logits is not None:
            reason = f"nothing fits, so {view.node} answers"
        else:
            best = latency.index(min(latency))
            reason = f"nothing fits, so {ways.ends[best]}, the fastest, answers"
        return all_to(
            ways.begins(best),
            view,
            budget.left_ms,
            fits=fitting > 0,
            reason=reason,
            accuracy=ways.by_successor(accuracy),
            estimated=math.nan if view.logits is None else estimated,
        )

    def _estimator(self, node: str) -> Estimator:
        found = self._estimators.get(node)
        if found is None:
            message = f"policy opa has no estimator that reads the logits of {node}."
            known = [name for name in self._ways if name in self._estimators]
            raise ConfigError(
                message,
                expected=f"one of {', '.join(known) or 'no node'}.",
                remedy="use another policy for this bundle, or build it again.",
            )
        return found
