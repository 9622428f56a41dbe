"""Which archs to measure: drawn evenly over a space and its resolutions, none twice."""

from __future__ import annotations

import numpy as np

from opa_trt.supernet import Genome, Population

CHUNK = 256  # rows drawn at once
ROOMY = 4  # a space with so many times more archs than are wanted is drawn from, not listed


def draw_archs(genome: Genome, count: int, seed: int) -> Population:
    """``[count, G]``, canonical, no two alike: smallest and largest at each resolution come first.

    The others take every choice, and every resolution in turn, as often as any other. One half
    draws gene by gene, which gives hardly any small or large archs; so the other half leans to
    small or large choices, each arch by its own, and covers all that lies between the ends. With
    more archs wanted the same ones are drawn first. A space with fewer gives all that it has.
    """
    listed = every_arch(genome, ROOMY * count)
    if listed is not None and len(listed) <= count:
        return listed
    chosen = {row.tobytes(): row for row in _ends(genome)}
    rng = np.random.default_rng([seed, 51])
    turn = 0
    while len(chosen) < count:
        drawn = _draw(genome, rng, turn) if listed is None else rng.permutation(listed)
        turn += len(drawn)
        for row in drawn:
            chosen.setdefault(row.tobytes(), row)
    return np.stack(list(chosen.values())[:count])


def every_arch(genome: Genome, limit: int) -> Population | None:
    """``[A, G]``, canonical: all archs of a genome, or None where they are more than ``limit``.

    Genes that decide whether others count stand before those, so each is spread out in turn.
    """
    rows = np.zeros((1, len(genome)), dtype=np.int16)
    for column, count in enumerate(genome.counts):
        repeats = np.where(genome.active(rows)[:, column], count, 1)
        if repeats.sum() > limit:
            return None
        rows = np.repeat(rows, repeats, axis=0)
        rows[:, column] = np.concatenate([np.arange(times) for times in repeats])
    return rows


def _ends(genome: Genome) -> Population:
    """``[2 R, G]``: smallest and largest at each resolution."""
    sides = int(genome.counts[0])
    rows = np.zeros((2 * sides, len(genome)), dtype=np.int16)
    rows[1::2] = genome.counts - 1
    rows[:, 0] = np.repeat(np.arange(sides), 2)
    return genome.canonical(rows)


def _draw(genome: Genome, rng: np.random.Generator, turn: int) -> Population:
    """``[CHUNK, G]``: the resolutions in turn from number ``turn`` on, the other genes at random.

    A binomial draw whose probability is itself drawn evenly takes every value as often.
    """
    rows = rng.integers(0, genome.counts, (CHUNK, len(genome)), dtype=np.int16)
    leaning = rng.binomial(genome.counts - 1, rng.random((CHUNK, 1))).astype(np.int16)
    rows = np.where(rng.random((CHUNK, 1)) < 0.5, rows, leaning)
    rows[:, 0] = (turn + np.arange(CHUNK)) % genome.counts[0]
    return genome.canonical(rows)
