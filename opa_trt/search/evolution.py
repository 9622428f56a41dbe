"""Evolutionary search on populations as arrays (OFA, section 3.4), for one target."""

from __future__ import annotations

from opa_trt.search.breeder import Breeder
from opa_trt.search.pool import Pool
from opa_trt.supernet import Population


def evolve(
    breeder: Breeder,
    target: float,
    generations: int,
    warm: Population | None = None,
) -> Pool:
    """The best archs (the first is the answer) that meet ``target`` after so many generations.

    Args:
        breeder: draws and judges.
        target: the most that an arch may cost.
        generations: of children.
        warm: ``[n, G]`` archs to begin with, beside random ones; those that miss the target
            are left out.

    Returns:
        The parents of the generation that would follow, best first.
    """
    settings = breeder.settings
    pool = breeder.random(target, settings.population)
    if warm is not None:
        pool += breeder.judge(warm[breeder.problem.cost(warm) <= target])
    pool = pool.best(settings.parent_count)
    for _ in range(generations):
        pool = (pool + breeder.children(pool, target)).best(settings.parent_count)
    return pool
