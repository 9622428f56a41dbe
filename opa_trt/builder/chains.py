"""Thresholds of a chain of exits: every way on a grid, and those that no other way dominates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from opa_trt.policies.thresholds import Chain

Floats = npt.NDArray[np.float32]
Rights = npt.NDArray[np.bool_]
WAYS = 4096  # on the grid
LEVELS = 256  # of one exit, at most
KEPT = 300  # ways, at most


def fit_chain(doubts: Floats, right: Rights, macs: Sequence[int]) -> Chain:
    """The ways to set thresholds that no other dominates, ascending by their MACs an image.

    Thresholds are quantiles of the doubts, and those that let nobody or everybody leave. One way
    dominates another if no more images reach any exit, as many are right, and one of these is
    better. Where more than ``KEPT`` are left, the most accurate of as many intervals of MACs, and
    the cheapest.

    Args:
        doubts: ``[E - 1, N] float32`` of the fitting images at every exit but the last.
        right: ``[E, N] bool``, whether each exit is right.
        macs: ``[E]`` of each exit's node for one image.
    """
    levels = min(LEVELS, int(WAYS ** (1 / len(doubts)) + 1e-9))
    columns = [_levels(doubt, levels) for doubt in doubts]
    thresholds = np.array([*product(*columns)], dtype=np.float32)
    counted = [_follow(way, doubts, right) for way in thresholds]
    reach = np.array([row for row, _ in counted])
    hits = np.array([hit for _, hit in counted])
    front = _front(reach, hits)
    cost = reach[front] @ np.array(macs, dtype=np.float64)
    order = front[np.lexsort((-hits[front], cost))]
    kept = _thin(order, hits)
    count = right.shape[1]
    return Chain(
        thresholds[kept],
        (reach[kept] / count).astype(np.float32),
        (hits[kept] / count).astype(np.float32),
    )


def _levels(doubt: Floats, levels: int) -> Floats:
    """Thresholds at which ever more images leave: none first, all last."""
    ranks = np.linspace(0, len(doubt) - 1, levels - 2).round().astype(np.intp)
    found = np.concatenate([[0.0], np.sort(doubt)[ranks], [np.inf]])
    return np.unique(found.astype(np.float32))


def _follow(way: Floats, doubts: Floats, right: Rights) -> tuple[list[int], int]:
    """How many images reach each exit, and how many are right, under one way."""
    pending = np.ones(right.shape[1], dtype=np.bool_)
    reach, hits = [len(pending)], 0
    for threshold, doubt, here in zip(way, doubts, right[:-1], strict=True):
        leaves = pending & (doubt < threshold)
        hits += int(np.count_nonzero(here & leaves))
        pending &= ~leaves
        reach.append(int(np.count_nonzero(pending)))
    return reach, hits + int(np.count_nonzero(right[-1] & pending))


def _front(reach: npt.NDArray[np.int64], hits: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Places of the ways that no other dominates; of equal ones the first."""
    values = np.column_stack([reach[:, 1:], -hits])
    _, places = np.unique(values, axis=0, return_index=True)
    values = values[places]
    kept = [
        place
        for place, row in zip(places, values, strict=True)
        if np.count_nonzero((values <= row).all(axis=1)) == 1  # itself
    ]
    return np.array(kept, dtype=np.intp)


def _thin(order: npt.NDArray[np.intp], hits: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """At most ``KEPT`` ways of those in ``order`` of cost, the cheapest among them."""
    if len(order) <= KEPT:
        return order
    slots = np.array_split(order[1:], KEPT - 1)
    best = [slot[int(hits[slot].argmax())] for slot in slots]
    return np.array([order[0], *best], dtype=np.intp)
