"""A comparison once more from its records: no engine runs, and time is virtual.

What every node answers is looked up, and how long it takes is what the same engine took under that
load in the records, in the run nearest to it in turn and batch size. All else is the runtime's
own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.bundle import Bundle
from opa_trt.clock import VirtualClock
from opa_trt.errors import ConfigError, DataError
from opa_trt.evaluate.compare.arms import AnyPolicy
from opa_trt.evaluate.compare.cells import SPLIT, STOPPED, TRIAL, WHOLE
from opa_trt.evaluate.compare.pool import Pool
from opa_trt.evaluate.compare.recorded import coded, recorded_engines
from opa_trt.evaluate.compare.records import Records
from opa_trt.evaluate.compare.runner import Scene
from opa_trt.evaluate.compare.watch import Pause, Recalled
from opa_trt.runtime import Session
from opa_trt.runtime.session import read_knowledge
from opa_trt.runtime.shared import Shared
from opa_trt.tree import Tree

WINDOW = 100  # runs before and after a turn that are looked at
TURNS = 20  # that lie as far apart as batch sizes of which one is half as large again
ALIKE = 1.5
AGAIN = 2.0  # further for each time that a run was used, or if its own turn will come: an outlier
# counts once, and the turn that it belongs to finds it


def replay_scene(bundle: Bundle, records: Records) -> tuple[Scene, Pool]:
    """Where arms can be run from records alone, and the pool that groups are drawn from.

    Args:
        bundle: that was compared.
        records: of that comparison.

    Raises:
        DataError: the records are of another bundle.
    """
    tree = bundle.tree
    if records.digest != bundle.manifest.recipe_sha256 or records.nodes != tuple(tree.nodes):
        message = f"the records are not of {bundle.path}: {len(records.nodes)} other nodes."
        raise DataError(
            message,
            expected=f"those of its own {len(tree.nodes)} nodes, of the same recipe.",
            remedy="name the bundle that was compared, or compare this one.",
        )
    recall = Recall(tree, records)
    engines = recorded_engines(bundle, records.answers, recall.clock, recall.engine_ms)
    knowledge = read_knowledge(bundle)
    shared = Shared(bundle, tree, {}, records.profiles, knowledge, "cpu", recall.clock)
    manifest = bundle.manifest
    pool = coded(records.pool, manifest.images.size)
    scene = Scene(
        session=Session(shared, engines, "static"),
        knowledge=knowledge,
        background=recall.under,
        watch=recall.watch,
        trial_pixels=pool.take(np.arange(min(len(pool), manifest.max_batch))),
    )
    return scene, pool


class Recall:
    """How long engines and policies took, by load, in the order in which it happened.

    Args:
        tree: the bundle's.
        records: what was measured.
    """

    def __init__(self, tree: Tree, records: Records) -> None:
        self.clock = VirtualClock()
        self._records, self._tree = records, tree
        self._load = 0
        self._turns: dict[int, int] = {}
        self._profiles = {n.segment: records.profiles[n.name] for n in tree.nodes.values()}
        self._runs = {int(load): self._read(int(load)) for load in np.unique(records.steps["load"])}

    def _read(self, load: int) -> dict[str, _Runs]:
        """A load's runs by segment, trials only where there is nothing else; ``""`` has all."""
        steps = self._records.steps
        rows = np.flatnonzero(steps["load"] == load)
        nodes = [*self._tree.nodes.values()]
        segments = np.array([nodes[place].segment for place in steps["node"][rows].tolist()])
        turn, images, ms = (steps[name][rows] for name in ("turn", "images", "ms"))
        pairs = zip(segments.tolist(), images.tolist(), strict=True)
        profiled = np.array([self._profiles[name].at(count) for name, count in pairs])
        every = _Runs(turn, images, ms / np.maximum(profiled, 1e-9))
        found = {"": every.counted()}
        for name in np.unique(segments).tolist():
            found[name] = every.at(segments == name).counted()
        return found

    @contextmanager
    def under(self, load: int) -> Iterator[None]:
        """Within, engines take as long as they did under that load.

        Raises:
            ConfigError: nothing was run under it.
        """
        if load not in self._runs:
            known = ", ".join(map(str, self._runs))
            message = f"load {load} was not recorded."
            raise ConfigError(message, expected=f"one of {known}.", remedy="compare under it.")
        before, self._load = self._load, load
        try:
            yield
        finally:
            self._load = before

    def engine_ms(self, segment: str, images: int) -> float:
        """What a run takes: its profile, times what one like it took over its own profile."""
        load = self._load if self._load in self._runs else next(iter(self._runs))
        runs = self._runs[load].get(segment, self._runs[load][""])
        ratio = runs.like(self._turns.get(load, 0), images)
        return self._profiles[segment].at(images) * ratio

    def watch(self, policy: AnyPolicy, arm: str, load: int, size: int) -> Recalled:
        """A policy that takes as long as the arm did."""
        alone = {entry.name for entry in self._tree.entries if not entry.successors}
        return Recalled(policy, self.clock, self._begin, self._pause(arm, load, size), alone)

    def _begin(self) -> None:
        """The next group's turn, as it was counted when it was run; after the last the first."""
        last = int(self._runs[self._load][""].turn[-1])
        self._turns[self._load] = (self._turns.get(self._load, TRIAL) + 1) % max(1, last + 1)

    def _pause(self, arm: str, load: int, size: int) -> Pause:
        """(decision, switch) of the arm's own group that is nearest, in size, load and turn."""
        known = self._records.overheads

        def distance(key: tuple[int, int, str]) -> tuple[bool, float, bool]:
            return key[2] != arm, abs(np.log(key[1] / size)), key[0] != load

        rows = known[min(known, key=distance)] if known else np.zeros((1, 4))
        by_kind = {kind: rows[rows[:, 2] == kind] for kind in (STOPPED, WHOLE, SPLIT)}

        def pause(kind: int) -> tuple[float, float]:
            own = by_kind[kind] if len(by_kind[kind]) else rows
            decided, switched, *_ = own[nearest(own[:, 3], self._turns.get(load, 0))]
            return float(decided), float(switched)

        return pause


@dataclass
class _Runs:
    """Runs in order: in which turn, on how many images, and measured over profiled latency."""

    turn: npt.NDArray[Any]
    images: npt.NDArray[Any]
    ratio: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        self._used = np.zeros(len(self.turn))

    def at(self, chosen: npt.NDArray[np.bool_]) -> _Runs:
        """Some of them."""
        return _Runs(self.turn[chosen], self.images[chosen], self.ratio[chosen])

    def counted(self) -> _Runs:
        """Without trials, unless there is nothing else."""
        counted = self.turn != TRIAL
        return self.at(counted) if counted.any() else self

    def like(self, turn: int, images: int) -> float:
        """The ratio of the run nearest to a turn and a batch size, and used least."""
        middle = int(np.searchsorted(self.turn, turn))
        near = slice(max(0, middle - WINDOW), middle + WINDOW)
        away = np.abs(self.turn[near] - turn) / TURNS
        away += np.abs(np.log(self.images[near] / images)) / np.log(ALIKE)
        away += AGAIN * (self._used[near] + (self.turn[near] > turn))
        place = near.start + int(away.argmin())
        self._used[place] += 1
        return float(self.ratio[place])


def nearest(ascending: npt.NDArray[Any], wanted: float) -> int:
    """The place of the value nearest to ``wanted``; of two, the later."""
    after = min(int(np.searchsorted(ascending, wanted)), len(ascending) - 1)
    before = max(after - 1, 0)
    return before if wanted - ascending[before] < ascending[after] - wanted else after
