"""The paper's policy: the best predicted tail that fits (OPA, Algorithm 1 over a finite set)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opa_trt.errors import ConfigError
from opa_trt.policies.base import STOP, Arrival, Budget, Decision, PolicyBase, View
from opa_trt.policies.entrance import Entrance
from opa_trt.policies.evidence import Floats, ascending_powers
from opa_trt.policies.knowledge import Estimator, Knowledge, share
from opa_trt.tree import Tree


class OpaPolicy(PolicyBase):
    """One successor for the whole group: an exact argmax over those that fit.

    The pioneer's accuracy on the group is estimated from its confidences, by an estimator of its
    own: a bundle may have pioneers at several resolutions. The predictor turns that and each
    tail's arch into the tail's accuracy on the group. Equal predictions go to the faster tail.
    Where nothing fits, the pioneer's answer stands. A group enters where the most accurate way
    that fits begins, as far as the build's own measurements and the last known slowdown tell.
    """

    name = "opa"

    def __init__(self, tree: Tree, knowledge: Knowledge, **options: object) -> None:
        if options:
            message = f"policy opa takes no options, got {sorted(options)}."
            raise ConfigError(message)
        self._entrance = Entrance(tree)
        self._models = {
            node.name: (
                knowledge.estimators[node.name],
                knowledge.predictor.of(
                    np.stack([knowledge.codes[name] for name in node.successors])
                ),
            )
            for node in tree.nodes.values()
            if node.successors and node.name in knowledge.estimators
        }

    def enter(self, arrival: Arrival, budget: Budget, state: None) -> tuple[str | None, None]:
        """Where the most accurate way that fits begins."""
        return self._entrance.pick(arrival, budget.left_ms), None

    def step(self, view: View, budget: Budget, state: None) -> tuple[Decision, None]:
        """The whole group to the best successor that fits, or stop."""
        if view.logits is None:
            message = f"policy opa needs logits, which {view.node} does not give."
            raise ConfigError(message, remedy="use another policy for this bundle.")
        return self.decide(view, budget, ascending_powers(view.logits)), None

    def decide(self, view: View, budget: Budget, powers: Floats) -> Decision:
        """``step``, where the logits' ``ascending_powers [N, C]`` are known already.

        Raises:
            ConfigError: no estimator reads this node's logits.
        """
        estimator, predicted = self._models_of(view.node)
        estimated = share(estimator.judged(powers))
        accuracy: list[float] = predicted(estimated).tolist()
        latency: list[float] = view.latency_ms[:, -1].tolist()
        fitting = [place for place, ms in enumerate(latency) if ms <= budget.left_ms]
        if fitting:
            best = max(fitting, key=lambda place: (accuracy[place], -latency[place]))
            reason = f"{view.successors[best]} is the best of {len(fitting)} that fit"
        else:
            best, reason = STOP, "nothing fits, so the pioneer answers"
        return Decision(
            choice=np.full(view.pending, best, dtype=np.int64),
            successors=view.successors,
            predicted_ms=tuple(latency),
            predicted_accuracy=tuple(accuracy),
            estimated_accuracy=estimated,
            left_ms=budget.left_ms,
            fits=bool(fitting),
            reason=reason,
        )

    def _models_of(self, node: str) -> tuple[Estimator, Callable[[float], Floats]]:
        found = self._models.get(node)
        if found is None:
            message = f"policy opa has no estimator that reads the logits of {node}."
            raise ConfigError(
                message,
                expected=f"one of {', '.join(self._models) or 'no node'}.",
                remedy="use another policy for this bundle, or build it again.",
            )
        return found
