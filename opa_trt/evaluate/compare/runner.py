"""Runs every arm on the same groups under the same load, in turns that rotate."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from opa_trt.clock import VirtualClock
from opa_trt.errors import ConfigError, OpaError
from opa_trt.evaluate.compare.answers import Answers
from opa_trt.evaluate.compare.arms import (
    ARMS,
    FRONTIER_ARMS,
    SIZE_ARMS,
    AnyPolicy,
    Makers,
    largest_network,
    largest_of,
    static_ends,
)
from opa_trt.evaluate.compare.cells import (
    CONTENT,
    FRONTIER,
    SIZE,
    STREAM,
    TRIAL,
    Cell,
    Findings,
    Taken,
    Trials,
)
from opa_trt.evaluate.compare.deadlines import FRONTIER as FRACTIONS
from opa_trt.evaluate.compare.deadlines import (
    Deadline,
    bounds_of,
    make_deadline,
    plan_deadlines,
)
from opa_trt.evaluate.compare.pool import Draw, Pool, draw_groups
from opa_trt.evaluate.compare.settings import CONTENT as CONTENT_FAMILIES
from opa_trt.evaluate.compare.settings import Settings
from opa_trt.evaluate.compare.watch import Watched
from opa_trt.policies import Knowledge
from opa_trt.progress import Progress
from opa_trt.runtime import Result, Session

Background = Callable[[int], AbstractContextManager[object]]
Watch = Callable[[AnyPolicy, str, int, int], Watched]  # policy, arm, load, group size
TOLD = 3  # arms that a line of progress names
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scene:
    """Where the arms run.

    Args:
        session: whose engines run.
        knowledge: the bundle's.
        background: a context within which so many applications run.
        watch: wraps a policy, so that its own time is told apart.
        trial_pixels: images that routes are timed on, as the bundle takes them.
    """

    session: Session
    knowledge: Knowledge
    background: Background
    watch: Watch
    trial_pixels: npt.NDArray[np.generic]


class Runner:
    """One comparison. ``run`` fills ``findings``.

    Args:
        scene: where the arms run.
        pool: what groups are drawn from.
        answers: what every node answers on it.
        settings: how much is run.
        trials: those that are known already, by load and group size.
        progress: hears of every group.
    """

    def __init__(
        self,
        scene: Scene,
        pool: Pool,
        answers: Answers,
        settings: Settings,
        *,
        trials: Mapping[tuple[int, int], Trials] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._scene, self._pool, self._answers = scene, pool, answers
        self._settings, self._told = settings, progress or Progress()
        self._tree = scene.session.tree
        self._makers = Makers(self._tree, scene.knowledge, settings.seed)
        self._places = {name: place for place, name in enumerate(self._tree.nodes)}
        self._known = dict(trials or {})
        self._turns = dict.fromkeys(settings.loads, 0)  # groups answered under each load
        entries = frozenset(self._places[node.name] for node in self._tree.entries)
        self.findings = Findings(tuple(self._tree.nodes), entries, *self._usable())

    def run(self) -> Findings:
        """Everything; what there is until then, marked as partial, where it is interrupted (Ctrl-C)
        or something fails later than at the first deadline."""
        try:
            for load in self._settings.loads:
                self._under(load)
        except KeyboardInterrupt:
            self.findings.partial = True
        except OpaError as exc:
            if not any(cell.complete for cell in self.findings.cells):
                raise
            log.warning("the comparison ends early: %s", exc)
            self.findings.partial = True
        return self.findings

    def _usable(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """The arms that can be made and answer a first group, and why the others cannot."""
        arms, left_out = self._makers.usable([arm.name for arm in ARMS])
        rows = np.arange(min(2, len(self._pool)))
        right = self._answers.on(rows)
        for arm in arms:
            policy, _ = self._makers.knowing(arm, right, 0)
            made = policy or self._makers.make(arm, largest_of(self._tree))
            try:
                self._scene.session.use(Watched(made, VirtualClock()))
                self._scene.session.infer(self._pool.take(rows), math.inf)
            except ConfigError as exc:
                left_out[arm] = exc.received
        return tuple(arm for arm in arms if arm not in left_out), left_out

    # --- what is run --------------------------------------------------------------------------

    def _under(self, load: int) -> None:
        """A load: trials, the stream under every deadline, and what hangs on the least load."""
        settings = self._settings
        trials = self._trials(load, settings.group_size, settings.trials)
        deadlines = plan_deadlines(self._tree, trials, settings.deadlines)
        draws = self._draws(settings.families, settings.groups, settings.group_size)
        with self._forks(self.findings.arms) as forks:
            for deadline in deadlines:
                self._cell(STREAM, load, deadline, draws, forks)
            if not settings.families:
                others = self._draws(CONTENT_FAMILIES, settings.groups, settings.group_size)
                self._cell(CONTENT, load, middle_of(deadlines), others, forks)
        if load == settings.least_load:
            self._frontier(load, trials, draws)
            self._sizes(load)

    def _frontier(self, load: int, trials: Trials, draws: list[Draw]) -> None:
        """Finer deadlines for our policies, as shares of the largest network's median."""
        median = trials.median(largest_network(self._tree))
        with self._forks(self._of(FRONTIER_ARMS)) as forks:
            for share in FRACTIONS:
                deadline = make_deadline(self._tree, trials, share * median, False)
                self._cell(FRONTIER, load, deadline, draws, forks)

    def _sizes(self, load: int) -> None:
        """Groups of several sizes, each under a deadline halfway between its bounds."""
        settings = self._settings
        for size in settings.group_sizes:
            trials = self._trials(load, size, settings.trials_of(size))
            middle = bounds_of(self._tree, trials).middle
            deadline = make_deadline(self._tree, trials, middle, True)
            draws = self._draws(settings.families, settings.groups_of(size), size)
            with self._forks(self._of(SIZE_ARMS)) as forks:
                self._cell(SIZE, load, deadline, draws, forks)

    def _of(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name in self.findings.arms)

    def _draws(self, families: Sequence[str], groups: int, size: int) -> list[Draw]:
        return draw_groups(self._pool, families, groups, size, self._settings.seed)

    # --- how it is run ------------------------------------------------------------------------

    @contextmanager
    def _forks(self, arms: Sequence[str]) -> Iterator[dict[str, Session]]:
        """A session for each arm, with beliefs and memory of its own."""
        with ExitStack() as stack:
            yield {arm: stack.enter_context(self._scene.session.fork()) for arm in arms}

    def _trials(self, load: int, size: int, count: int) -> Trials:
        """Every static route on the trial images, in turns."""
        key = (load, size)
        if key not in self._known:
            ends = static_ends(self._tree)
            found: dict[str, list[float]] = {end: [] for end in ends}
            draw = np.random.default_rng([self._settings.seed, 83, *key])
            pixels = self._scene.trial_pixels
            self._told.start(f"load {load}", count)
            session = self._scene.session
            with self._scene.background(load):
                for index in range(count):
                    rows = draw.choice(len(pixels), size, replace=size > len(pixels))
                    for place in _turn(len(ends), index):
                        session.use(f"static:{ends[place]}")
                        result = session.infer(pixels[rows], math.inf)
                        self._note(load, TRIAL, result)
                        found[ends[place]].append(result.measured_ms)
                    self._told.advance(index + 1, f"{len(ends)} routes, groups of {size}")
            self._known[key] = Trials({end: np.array(ms) for end, ms in found.items()})
            line = f"{len(ends)} routes alone, {count} groups of {size} fitting images"
            self._told.finish(f"load {load}", line)
        self.findings.trials[key] = self._known[key]
        return self._known[key]

    def _cell(
        self,
        phase: str,
        load: int,
        deadline: Deadline,
        draws: list[Draw],
        forks: Mapping[str, Session],
    ) -> None:
        """All arms over all groups; what is finished is kept whatever happens."""
        cell = Cell(phase, load, deadline.ms, deadline.judged, deadline.static_best, draws)
        cell.taken = {arm: [] for arm in forks}
        self.findings.cells.append(cell)
        watched = {}
        for arm, fork in forks.items():
            policy = self._makers.make(arm, deadline.static_best)
            watched[arm] = self._scene.watch(policy, arm, load, cell.size)
            fork.use(watched[arm])
        self._told.start(f"load {load}", len(draws))
        with self._scene.background(load):
            for index in range(-min(self._settings.warm_up, len(draws)), len(draws)):
                self._group(cell, index, forks, watched)
                self._told.advance(max(0, index + 1), f"{phase}, {deadline.ms:.3g} ms")
        self._told.finish(f"load {load}", _line(cell))

    def _group(
        self, cell: Cell, index: int, forks: Mapping[str, Session], watched: Mapping[str, Watched]
    ) -> None:
        """One group by all arms; those before the first, from the stream's end, do not count."""
        draw, arms = cell.draws[index], [*forks]
        pixels, labels = self._pool.take(draw.rows), self._pool.labels[draw.rows]
        right = self._answers.on(draw.rows)
        for place in _turn(len(arms), index):
            arm = arms[place]
            watch = watched[arm]
            policy, scored = self._makers.knowing(arm, right, index % len(cell.draws))
            watch.inner = policy or watch.inner
            watch.reset()
            result = forks[arm].infer(pixels, cell.deadline_ms)
            turn = self._turns[cell.load]
            self._turns[cell.load] = turn + 1
            self._note(cell.load, turn, result)
            if index >= 0:
                taken = self._taken(result, result.labels == labels, scored, watch)
                cell.taken[arm].append(replace(taken, turn=turn))

    def _note(self, load: int, turn: int, result: Result) -> None:
        """Every engine's run; a share of a batch is filled up to the next size by the session."""
        pending: dict[str, int] = {}
        for step in result.steps:
            parent = self._tree.parents.get(step.node)
            rows = step.images if parent is None else self._filled(step.images, pending[parent])
            pending[step.node] = step.images
            row = (load, turn, self._places[step.node], rows, step.measured_ms)
            self.findings.steps.append(row)

    def _filled(self, images: int, pending: int) -> int:
        """As many rows as a share of the pending ones is run with."""
        buckets = self._scene.session.manifest.buckets
        return min((n for n in buckets if images <= n < pending), default=pending)

    def _taken(
        self,
        result: Result,
        correct: npt.NDArray[np.bool_],
        scored: npt.NDArray[np.intp] | None,
        watch: Watched,
    ) -> Taken:
        names, inverse = np.unique(result.nodes, return_inverse=True)
        places = np.array([self._places[str(name)] for name in names], dtype=np.int16)
        counted = correct if scored is None else correct[scored]
        return Taken(
            node=places[inverse],
            right=correct,
            accuracy=float(counted.mean()),
            ms=result.measured_ms,
            decision_ms=watch.decision_ms,
            engines_ms=sum(step.measured_ms for step in result.steps),
            in_time=result.deadline_met,
            decisions=watch.decisions,
        )


def _line(cell: Cell) -> str:
    """What the first arms made of a cell, in a line."""
    arms = [*cell.taken][:TOLD]
    told = ", ".join(f"{arm} {cell.in_time_accuracy(arm).mean():.1%}" for arm in arms)
    what = f"{cell.phase}, {cell.groups} groups of {cell.size}, {cell.deadline_ms:.3g} ms"
    return f"{what}: right in time {told}"


def middle_of(deadlines: Sequence[Deadline]) -> Deadline:
    """The middle one of those that are judged; of all, where none is."""
    judged = [each for each in deadlines if each.judged] or list(deadlines)
    return judged[len(judged) // 2]


def _turn(count: int, index: int) -> list[int]:
    """Places in an order that rotates with the group: none is always first."""
    return [(index + place) % count for place in range(count)]
