"""What is searched: a genome, the accuracy of its archs, and the cost that a target limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context

from opa_trt.errors import ConfigError, InfeasibleBudget
from opa_trt.search.accuracy_predictor import Accuracy, AccuracyPredictor
from opa_trt.search.additive import AdditiveCost
from opa_trt.search.latency_table import LatencyTable
from opa_trt.supernet import Genome, Space
from opa_trt.supernet.operators import Operator


@dataclass(frozen=True, eq=False)
class Problem:
    """Maximise ``accuracy`` where ``cost`` is at most a target.

    Args:
        genome: the choices, resolutions included.
        accuracy: ``[P, G]`` to ``[P]``, 0 to 1.
        cost: ``[P, G]`` to ``[P]``, in ``unit``.
        unit: ``ms`` or ``MACs``.
    """

    genome: Genome
    accuracy: Accuracy
    cost: AdditiveCost
    unit: str = "ms"

    def check(self, targets: Sequence[float]) -> None:
        """Refuse targets that no arch meets, before any search.

        Raises:
            ConfigError: no target, or one that is not above 0 and finite.
            InfeasibleBudget: says the smallest value that can be met.
        """
        if not targets or not all(0 < target < math.inf for target in targets):
            message = f"targets {list(targets)}."
            raise ConfigError(message, expected=f"one or more, in {self.unit}, above 0, finite.")
        smallest, _ = self.cost.smallest
        if (target := min(targets)) < smallest:
            reachable = rounded_up(smallest)
            message = f"no arch of {self.genome.space.name} meets {target:g} {self.unit}."
            raise InfeasibleBudget(
                message,
                smallest=reachable,
                remedy=f"ask for more; the smallest arch needs {reachable:g} {self.unit}.",
            )


def rounded_up(value: float) -> float:
    """The least number of six digits, as ``:g`` writes them, that is not below ``value``."""
    return float(Context(prec=6, rounding=ROUND_CEILING).create_decimal_from_float(value))


def macs_of(operator: Operator, resolution: int) -> float:
    """The MACs of an operator, as the cost of a search."""
    return float(operator.cost.macs)


def pose(space: Space, predictor: AccuracyPredictor, latency: LatencyTable | None) -> Problem:
    """The problem of ``space`` with these predictors.

    Only resolutions are searched that the space samples and both predictors know.

    Args:
        space: the choices.
        predictor: of accuracy.
        latency: of operators; None counts MACs instead.

    Raises:
        ConfigError: a predictor does not fit the space, the table lacks an operator (named), or
            they have no resolution in common.
    """
    known = [(space.name, space.resolutions), (predictor.name, predictor.resolutions)]
    if latency is not None:
        known.append((latency.name, latency.resolutions))
    common = sorted(set.intersection(*(set(sides) for _, sides in known)))
    if not common:
        listed = "; ".join(f"{name} {list(sides)}" for name, sides in known)
        message = f"no resolution is known to all: {listed}."
        raise ConfigError(message, expected="one or more in common.")
    genome = replace(space, resolutions=tuple(common)).genome
    accuracy = predictor.bind(genome)
    if latency is None:
        return Problem(genome, accuracy, AdditiveCost(genome, macs_of), "MACs")
    return Problem(genome, accuracy, latency.cost(genome))
