"""Drawing archs, judging them, and making children of them, whole populations at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ConfigError
from opa_trt.search.pool import Pool
from opa_trt.search.problem import Problem
from opa_trt.search.screen import Screen
from opa_trt.supernet import Genome, Population

OVERSAMPLING = 2  # children drawn for each that is wanted, since many do not meet the target
ROUNDS = 16  # of drawing, before a generation is content with fewer children


@dataclass(frozen=True)
class Settings:
    """How a search goes on: the published finder's values by default.

    Args:
        population: children a generation.
        parents: of which share the next generation is made.
        mutations: share of the children that are mutated; the others are crossed.
        mutate: probability that a block, a depth or a width of a mutated child is drawn anew.
        mutate_resolution: the same for its resolution.
    """

    population: int = 100
    parents: float = 0.25
    mutations: float = 0.5
    mutate: float = 0.1
    mutate_resolution: float = 0.1

    def __post_init__(self) -> None:
        if self.population < 4:
            message = f"a population of {self.population}."
            raise ConfigError(message, expected="at least 4.")
        for key in ("parents", "mutations", "mutate", "mutate_resolution"):
            if not 0 < getattr(self, key) <= 1:
                message = f"{key} = {getattr(self, key)}."
                raise ConfigError(message, expected="above 0, at most 1.")

    @property
    def parent_count(self) -> int:
        """Archs that survive a generation."""
        return max(2, round(self.parents * self.population))


class Breeder:
    """Draws archs, judges each at most once, and makes children of them.

    Args:
        problem: what is searched.
        settings: shares and probabilities.
        rng: every draw comes from it.
    """

    def __init__(self, problem: Problem, settings: Settings, rng: np.random.Generator) -> None:
        self.problem, self.settings, self.rng = problem, settings, rng
        self._seen: set[float] = set()
        self._screen = Screen(problem.genome)
        self._units, self._chances = _mutation_units(problem.genome, settings)
        # Whole numbers so small that float64 adds them up exactly, and BLAS can do it.
        most = 2**53 // int(problem.genome.counts.sum())
        salt = np.random.default_rng(0).integers(0, most, len(problem.genome))
        self._salt = salt.astype(np.float64)

    @property
    def evaluated(self) -> int:
        """How many archs the accuracy predictor has judged."""
        return len(self._seen)

    def judge(
        self,
        rows: Population,
        cost: npt.NDArray[np.float64] | None = None,
        least: npt.ArrayLike | None = None,
    ) -> Pool:
        """The archs of ``rows`` that were not judged before, each once, with their accuracy.

        Args:
            rows: ``[P, G]``.
            cost: of each, where it is known.
            least: the accuracy that an arch must reach to matter, one or one each; those that
                do not promise it are left out.
        """
        cost = self.problem.cost(rows) if cost is None else cost
        keys = (self.problem.genome.canonical(rows) @ self._salt).tolist()
        first = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
        fresh = np.array(sorted(first[key] for key in first.keys() - self._seen), dtype=np.intp)
        if least is not None:
            hopes = np.broadcast_to(least, len(rows))[fresh]
            fresh = fresh[self._screen.promising(rows[fresh], hopes)]
        self._seen.update(keys[place] for place in fresh)
        rows, cost = rows[fresh], cost[fresh]
        accuracy = self.problem.accuracy(rows)
        self._screen.learn(rows, accuracy)
        return Pool(rows, accuracy, cost)

    def random(self, target: float, count: int) -> Pool:
        """About ``count`` random archs that meet ``target``, the smallest arch among them.

        Where few archs do, they are made from the smallest by mutation: no loop is without end.
        """
        genome = self.problem.genome
        found = [self.problem.cost.smallest[1][None]]
        for _ in range(ROUNDS):
            rows = genome.sample(count, self.rng)
            found.append(rows[self.problem.cost(rows) <= target])
            if sum(map(len, found)) > count:
                break
        rows = np.concatenate(found)[:count]
        if len(rows) < count:
            rows = np.concatenate([rows, self._offspring(rows, target, count - len(rows), 0)[0]])
        return self.judge(rows)

    def children(self, pool: Pool, target: float) -> Pool:
        """One generation of ``pool``: new mutations and crossings that meet ``target``.

        Those that do not promise to beat the last of a full pool of parents are left out.
        """
        mutations = round(self.settings.mutations * self.settings.population)
        crossings = self.settings.population - mutations
        rows, cost = self._offspring(pool.rows, target, mutations, crossings)
        full = len(pool) >= self.settings.parent_count
        return self.judge(rows, cost, pool.accuracy[-1] if full else None)

    # --- variation ----------------------------------------------------------------------------

    def mutate(self, rows: Population) -> Population:
        """``rows`` with some units (a block's kernel and ratio, a depth, …) drawn anew."""
        genome = self.problem.genome
        hit = self.rng.random((len(rows), len(self._chances)), dtype=np.float32) < self._chances
        drawn = self.rng.random(rows.shape, dtype=np.float32) * genome.counts
        return _choose(hit[:, self._units], drawn.astype(np.int16), rows)

    def cross(self, mothers: Population, fathers: Population) -> Population:
        """For each pair a child that has every gene from the one or the other."""
        bits = np.frombuffer(self.rng.bytes(mothers.size // 8 + 1), dtype=np.uint8)
        coins = np.unpackbits(bits, count=mothers.size).view(np.bool_)
        return _choose(coins.reshape(mothers.shape), mothers, fathers)

    def _offspring(
        self, parents: Population, target: float, mutations: int, crossings: int
    ) -> tuple[Population, npt.NDArray[np.float64]]:
        """So many children of each kind that meet ``target``, and their costs; fewer if rare."""
        rows, costs = [], []
        for _ in range(ROUNDS):
            drawn = self._draw(parents, OVERSAMPLING * mutations, OVERSAMPLING * crossings)
            cost = self.problem.cost(drawn)
            meets = np.flatnonzero(cost <= target)
            border = np.searchsorted(meets, OVERSAMPLING * mutations)
            mutated, crossed = meets[:border][:mutations], meets[border:][:crossings]
            kept = np.concatenate([mutated, crossed])
            rows.append(drawn[kept])
            costs.append(cost[kept])
            mutations, crossings = mutations - len(mutated), crossings - len(crossed)
            if not mutations and not crossings:
                break
        return np.concatenate(rows), np.concatenate(costs)

    def _draw(self, parents: Population, mutations: int, crossings: int) -> Population:
        """Mutated children, then crossed ones, whatever they cost."""
        chosen = parents[self.rng.integers(0, len(parents), mutations + 2 * crossings)]
        mothers, fathers = np.split(chosen[mutations:], 2)
        return np.concatenate([self.mutate(chosen[:mutations]), self.cross(mothers, fathers)])


def _choose(mask: npt.NDArray[np.bool_], one: Population, other: Population) -> Population:
    """``one`` where ``mask`` is, else ``other``: as ``np.where``, but without a branch an entry.

    A processor cannot guess random branches, which made this the slowest part of a generation.
    """
    chosen: Population = other ^ ((one ^ other) & -mask.astype(np.int16))
    return chosen


def _mutation_units(
    genome: Genome, settings: Settings
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """For each gene the unit that it is drawn anew with, and each unit's probability.

    A block's kernel and expand ratio are one unit, as in the published finder.
    """
    units = np.arange(len(genome))
    for kernel, expand in zip(genome.columns("kernel"), genome.columns("expand"), strict=False):
        units[expand] = kernel
    chances = np.full(len(genome), settings.mutate, dtype=np.float32)
    chances[genome.columns("resolution")] = settings.mutate_resolution
    return units, chances
