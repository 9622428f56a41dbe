"""What a comparison found, group by group, before anything is computed from it."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from opa_trt.evaluate.compare.pool import Draw

Floats = npt.NDArray[np.float64]
STREAM, CONTENT, SIZE, FRONTIER = "stream", "content", "size", "frontier"
TRIAL = -1  # the turn of an engine's run for a trial
STOPPED, WHOLE, SPLIT = range(3)  # kinds of answers: by the entry, by one later node, by several


@dataclass(frozen=True)
class Taken:
    """What one arm made of one group.

    Args:
        node: ``[n] int16``, the place among the tree's nodes of the one that answered each image.
        right: ``[n] bool``.
        accuracy: of the images that count, 0 to 1.
        ms: from entry to logits.
        decision_ms: of that, in the policy's own code.
        engines_ms: of that, in engines.
        in_time: whether the answer was there before the deadline.
        decisions: how many the policy made.
        turn: how many groups had been answered under this load before.
    """

    node: npt.NDArray[np.int16]
    right: npt.NDArray[np.bool_]
    accuracy: float
    ms: float
    decision_ms: float
    engines_ms: float
    in_time: bool
    decisions: int = 1
    turn: int = 0

    @property
    def switch_ms(self) -> float:
        """What is left after decision and engines: buffers, rows gathered, answers collected."""
        return max(0.0, self.ms - self.decision_ms - self.engines_ms)

    def kind(self, entries: Container[int]) -> int:
        """``STOPPED``, ``WHOLE`` or ``SPLIT``, where entries have these places."""
        if (self.node != self.node[0]).any():
            return SPLIT
        return STOPPED if int(self.node[0]) in entries else WHOLE

    @property
    def main(self) -> int:
        """The place of the node that answered most images."""
        return int(np.bincount(self.node).argmax())


@dataclass
class Cell:
    """Several arms on the same groups, in turns, under one load and deadline.

    Args:
        phase: ``stream``, ``content``, ``size`` or ``frontier``.
        load: background applications.
        deadline_ms: of every group.
        judged: whether the deadline counts for goals.
        static_best: the node that this arm always answers with here.
        draws: the groups.
        taken: by arm, as many as were run.
    """

    phase: str
    load: int
    deadline_ms: float
    judged: bool
    static_best: str
    draws: list[Draw]
    taken: dict[str, list[Taken]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Images a group."""
        return len(self.draws[0].rows)

    @property
    def groups(self) -> int:
        """How many groups every arm has answered."""
        return min((len(found) for found in self.taken.values()), default=0)

    @property
    def complete(self) -> bool:
        """Whether that is all of them."""
        return self.groups == len(self.draws)

    def values(self, arm: str, of: Callable[[Taken], float]) -> Floats:
        """``[groups]`` what ``of`` reads from each of an arm's answers."""
        return np.array([of(each) for each in self.taken[arm][: self.groups]], dtype=np.float64)

    def accuracy(self, arm: str) -> Floats:
        """``[groups]`` 0 to 1."""
        return self.values(arm, lambda each: each.accuracy)

    def in_time(self, arm: str) -> Floats:
        """``[groups]`` 1 where the deadline was met."""
        return self.values(arm, lambda each: each.in_time)

    def in_time_accuracy(self, arm: str) -> Floats:
        """``[groups]``: an answer after its deadline counts as wrong."""
        return self.accuracy(arm) * self.in_time(arm)

    def ms(self, arm: str) -> Floats:
        """``[groups]`` latency."""
        return self.values(arm, lambda each: each.ms)


@dataclass(frozen=True)
class Trials:
    """Static routes on fitting images, under one load at one group size.

    Args:
        ms: by the node that ends a route ``[T]``.
    """

    ms: dict[str, Floats]

    def median(self, node: str) -> float:
        """ms."""
        return float(np.median(self.ms[node]))

    def p99(self, node: str) -> float:
        """ms."""
        return float(np.quantile(self.ms[node], 0.99))

    def within(self, node: str, deadline_ms: float) -> float:
        """The share of groups that were in time."""
        return float(np.mean(self.ms[node] <= deadline_ms))


@dataclass
class Findings:
    """All that was run.

    Args:
        nodes: names of the tree's nodes, in order.
        entries: places of those where groups enter.
        arms: names, in the order of tables.
        left_out: arms that could not be run, and why.
        trials: by load and group size.
        cells: in the order in which they were run.
        steps: rows (load, turn, place of the node, images, ms) of every engine's run. Turns count
            the groups answered under a load; trials have ``TRIAL``.
        partial: whether the run was interrupted.
    """

    nodes: tuple[str, ...]
    entries: frozenset[int]
    arms: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    trials: dict[tuple[int, int], Trials] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    steps: list[tuple[int, int, int, int, float]] = field(default_factory=list)
    partial: bool = False

    def of(self, phase: str, load: int | None = None) -> list[Cell]:
        """Cells of a phase with at least one group that every arm answered."""
        return [
            cell
            for cell in self.cells
            if cell.phase == phase and cell.groups and load in (None, cell.load)
        ]
