"""What is asked of a search for many targets, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from opa_trt.search.breeder import Settings
from opa_trt.search.pool import Pool
from opa_trt.search.problem import Problem
from opa_trt.supernet import Arch, Genome


@dataclass(frozen=True)
class Answer:
    """The best arch that was found for a target.

    ``latency`` is its predicted cost in the unit of ``target``, ``accuracy`` (0 to 1) predicted
    too. ``seconds`` is the time that its search took; where one search served all targets, its
    share of it. ``evaluated`` archs were judged for it (a share, too).
    """

    target: float
    latency: float
    accuracy: float
    seconds: float
    evaluated: int
    arch: Arch


@dataclass(frozen=True)
class Budget:
    """Generations for the first target, and for each further one where a search begins warm.

    The paper sets the second to the square root of the first and prints 63 for 500; its recorded
    runs used 100.
    """

    first: int = 500
    further: int = 100

    def total(self, targets: int) -> int:
        """Generations of a warm-started search of so many targets."""
        return self.first + (targets - 1) * self.further


Strategy = Callable[[Problem, Sequence[float], Budget, Settings, np.random.Generator], list[Answer]]


def answer(genome: Genome, target: float, pool: Pool, seconds: float, evaluated: int) -> Answer:
    """The best of ``pool`` (its first), whose archs all meet ``target``."""
    return Answer(
        target=target,
        latency=float(pool.cost[0]),
        accuracy=float(pool.accuracy[0]),
        seconds=seconds,
        evaluated=evaluated,
        arch=genome.arch(pool.rows[0]),
    )
