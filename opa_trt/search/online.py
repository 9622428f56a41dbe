"""OPA's online search in the whole space (Algorithm 1): a tail for one group and requirement.

A look-up table says which arch takes about as long as is allowed; a few of its layers are changed
at random, and what is predicted to be most accurate on this group is taken.

As printed, a rejected candidate is drawn again without end (candidates are seeded by n, and a
rejection leaves n as it is), the arch of the table is never judged, and where all are rejected
there is no answer. Here as many candidates are drawn as were asked for, each anew; the table's arch
is judged with them; and where none meets the requirement, the search begins again at an arch of
the table that does. The table holds the smallest tail, so that what can be met is met.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ConfigError, InfeasibleBudget
from opa_trt.policies import Predictor
from opa_trt.search.additive import AdditiveCost
from opa_trt.search.problem import macs_of, rounded_up
from opa_trt.search.sampling import draw_archs
from opa_trt.supernet import Arch, Genome, Population, Space

Floats = npt.NDArray[np.float32]
Costs = npt.NDArray[np.float64]
Latency = Callable[[Arch], float]

ENTRIES = 1000  # archs in the table
CANDIDATES = 100  # mutations a search; the paper does not say how many
MOST = 3  # layers that a mutation changes


class Tails:
    """The archs that begin with a pioneer, as a population: what the pioneer holds never varies.

    Args:
        space: the choices.
        pioneer: its resolution, stem and first stages.
        stages: how many stages the pioneer holds.

    Raises:
        ArchError: the pioneer lies outside the space.
        ConfigError: no stage is left, or fewer than one is held.
    """

    def __init__(self, space: Space, pioneer: Arch, stages: int) -> None:
        if not 1 <= stages < len(space.slots):
            message = f"a pioneer of {stages} stages."
            raise ConfigError(message, expected=f"1 to {len(space.slots) - 1} in {space.name}.")
        fixed = replace(space, resolutions=(pioneer.resolution,))
        self.genome = fixed.genome
        self._space = fixed
        self._base = self.genome.row(pioneer)
        self._side = space.encode(pioneer)[-1]  # as predictors know it, among all resolutions
        self._own, self._layers = _own_genes(fixed, stages)
        self.cost = AdditiveCost(self.genome, macs_of)
        parts = list(fixed.costs(pioneer).values())
        self.trunk_macs = sum(cost.macs for cost in parts[: stages + 1])

    def rows(self, population: Population) -> Population:
        """``[P, G]``, canonical: ``population`` with what the pioneer holds in its place."""
        rows = np.repeat(self._base[None], len(population), axis=0)
        rows[:, self._own] = population[:, self._own]
        return self.genome.canonical(rows)

    def codes(self, rows: Population) -> Floats:
        """``[P, E] float32``: what ``Space.encode`` gives for each."""
        codes = self._space.encode_rows(rows)
        codes[:, -1] = self._side
        return codes

    def mutants(self, row: Population, count: int, rng: np.random.Generator) -> Population:
        """``[count, G]``: copies of ``row`` (``[G]``), each with one to three layers changed.

        Of such a layer, which is one of the tail, kernel size or expand ratio becomes another.
        Depths and widths stay. A tail without a choice is copied as it is.
        """
        genome = self.genome
        kept = genome.active(row[None])[0]
        layers = self._layers[kept[self._layers[:, 0]]]
        rows = np.repeat(row[None], count, axis=0)
        if not len(layers):
            return rows
        most = min(MOST, len(layers))
        order = rng.random((count, len(layers))).argpartition(most - 1, axis=1)[:, :most]
        columns = layers[order, rng.integers(0, 2, order.shape)]
        steps = rng.integers(1, genome.counts[columns])
        changed = np.arange(most) < rng.integers(1, most + 1, (count, 1))
        places, columns = np.nonzero(changed)[0], columns[changed]
        values = rows[places, columns] + steps[changed]
        rows[places, columns] = values % genome.counts[columns]
        return rows


def _own_genes(space: Space, stages: int) -> tuple[list[int], npt.NDArray[np.intp]]:
    """The genes of all that follows the pioneer, and those of each layer ``[L, 2]``.

    A layer with one gene of several choices has it twice; one without is left out.
    """
    genome, blocks = space.genome, sum(space.slots[:stages])
    kernels, expands = genome.columns("kernel")[blocks:], genome.columns("expand")[blocks:]
    depths = genome.columns("depth")[space.stem_depths + stages :]
    widths = genome.columns("width")[space.stem_widths + stages :]
    pairs = []
    for layer in range(sum(space.slots[stages:])):
        genes = [genes[layer] for genes in (kernels, expands) if genes]
        free = [gene for gene in genes if genome.counts[gene] > 1]
        if free:
            pairs.append((free[0], free[-1]))
    layers = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return [*depths, *widths, *kernels, *expands], layers


@dataclass(frozen=True)
class Pick:
    """What a search found.

    Args:
        arch: from images to logits, the pioneer's part included.
        accuracy: predicted on this group, 0 to 1.
        latency_ms: predicted, from images to logits.
        macs: from images to logits, the exit head's included.
        judged: how many archs the predictor judged.
    """

    arch: Arch
    accuracy: float
    latency_ms: float
    macs: float
    judged: int


class OnlineSearch:
    """Algorithm 1 for one pioneer; every search is a pure function of what it is given.

    Args:
        tails: what is searched.
        predictor: (estimated accuracy of the pioneer, code) to accuracy.
        exit_macs: of the pioneer's exit head, which every group passes.
        entries: archs in the table: the smallest and the largest tail, and random ones.
        candidates: mutations a search.
        seed: of the table and of the candidates.

    Raises:
        ConfigError: fewer than 2 entries, or no candidates.
    """

    def __init__(
        self,
        tails: Tails,
        predictor: Predictor,
        *,
        exit_macs: float = 0.0,
        entries: int = ENTRIES,
        candidates: int = CANDIDATES,
        seed: int = 0,
    ) -> None:
        if entries < 2 or candidates < 1:
            message = f"a table of {entries} archs and {candidates} candidates."
            raise ConfigError(message, expected="2 archs and 1 candidate, or more.")
        self.tails, self._predictor = tails, predictor
        self._exit_macs, self._candidates, self._seed = exit_macs, candidates, seed
        self.pioneer_macs = tails.trunk_macs + exit_macs
        drawn = draw_archs(tails.genome, 2 * entries, seed)  # some differ in the pioneer alone
        rows = _distinct(tails.rows(drawn))[:entries]
        macs = self._macs(rows)
        order = np.argsort(macs, kind="stable")
        self.table, self.table_macs = rows[order], macs[order]

    def search(
        self,
        estimated: float,
        required_ms: float,
        pioneer_ms: float,
        *,
        allowance_ms: float = 0.0,
        latency: Latency | None = None,
        draw: int = 0,
    ) -> Pick:
        """The arch of the best predicted accuracy among those tried that meet the requirement.

        Args:
            estimated: the pioneer's accuracy on this group, 0 to 1.
            required_ms: from images to logits.
            pioneer_ms: what the pioneer takes.
            allowance_ms: what is to be left of the requirement (the paper's Δ).
            latency: ms of an arch from images to logits. By default in proportion to its MACs:
                as the pioneer, ``pioneer_ms / pioneer_macs`` for each.
            draw: another number draws other candidates.

        Raises:
            ConfigError: times that cannot be.
            InfeasibleBudget: the smallest tail takes longer (with ``latency``: every arch of the
                table does); says what can be met.
        """
        _check(required_ms, pioneer_ms, allowance_ms)
        rate = pioneer_ms / self.pioneer_macs
        limit = _Limit(required_ms, allowance_ms, rate, latency, self.tails.genome)
        rng = np.random.default_rng([self._seed, 61, draw])
        start = int(np.abs(self.table_macs - (required_ms - allowance_ms) / rate).argmin())
        pick = self._around(start, estimated, limit, rng)
        if pick is None:
            pick = self._around(self._feasible(start, limit), estimated, limit, rng)
        assert pick is not None
        return pick

    def _macs(self, rows: Population) -> Costs:
        return self.tails.cost(rows) + self._exit_macs

    def _around(
        self, start: int, estimated: float, limit: _Limit, rng: np.random.Generator
    ) -> Pick | None:
        """The best of an entry of the table and its mutations, or None if none meets the limit."""
        row = self.table[start]
        mutants = self.tails.mutants(row, self._candidates, rng)
        rows = _distinct(np.concatenate([row[None], mutants]))
        macs = self._macs(rows)
        accuracy = self._predictor.accuracies(estimated, self.tails.codes(rows))
        found = limit.first(rows, macs, np.lexsort((macs, -accuracy)))
        if found is None:
            return None
        place, ms = found
        arch = self.tails.genome.arch(rows[place])
        return Pick(arch, float(accuracy[place]), ms, float(macs[place]), len(rows))

    def _feasible(self, start: int, limit: _Limit) -> int:
        """The entry of the table that meets the limit: nearest below ``start``, or else above."""
        places = np.concatenate([np.arange(start, -1, -1), np.arange(start + 1, len(self.table))])
        found = limit.first(self.table, self.table_macs, places)
        if found is not None:
            return found[0]
        smallest = rounded_up(limit.least(self.table, self.table_macs))
        message = f"no arch with this pioneer meets {limit.required_ms:g} ms."
        raise InfeasibleBudget(
            message, smallest=smallest, remedy=f"allow {smallest:g} ms, or make less of the load."
        )


@dataclass(frozen=True)
class _Limit:
    """What an arch may take: ``latency``, or else ``rate`` ms for each of its MACs."""

    required_ms: float
    allowance_ms: float
    rate: float
    latency: Latency | None
    genome: Genome

    def first(
        self, rows: Population, macs: Costs, places: npt.NDArray[np.intp]
    ) -> tuple[int, float] | None:
        """The first of ``places`` whose arch meets it, and what that takes in ms."""
        if self.latency is None:
            ms = macs[places] * self.rate
            fitting = np.flatnonzero(ms + self.allowance_ms <= self.required_ms)
            return (int(places[fitting[0]]), float(ms[fitting[0]])) if len(fitting) else None
        for place in places.tolist():
            taken = self.latency(self.genome.arch(rows[place]))
            if taken + self.allowance_ms <= self.required_ms:
                return place, taken
        return None

    def least(self, rows: Population, macs: Costs) -> float:
        """The requirement that the fastest of ``rows`` would meet, in ms."""
        if self.latency is None:
            return float(macs.min()) * self.rate + self.allowance_ms
        return min(self.latency(self.genome.arch(row)) for row in rows) + self.allowance_ms


def _distinct(rows: Population) -> Population:
    """Every row once."""
    return rows[list({row.tobytes(): place for place, row in enumerate(rows)}.values())]


def _check(required_ms: float, pioneer_ms: float, allowance_ms: float) -> None:
    for what, value in (("a requirement", required_ms), ("a pioneer", pioneer_ms)):
        if not 0 < value < math.inf:
            message = f"{what} of {value:g} ms."
            raise ConfigError(message, expected="above 0, finite.")
    if not 0 <= allowance_ms < math.inf:
        message = f"an allowance of {allowance_ms:g} ms."
        raise ConfigError(message, expected="0 or more, finite.")
