"""Which deadlines are run under a load, and which of them are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from opa_trt.errors import ConfigError
from opa_trt.evaluate.compare.arms import largest_of, pioneer_of, static_ends
from opa_trt.evaluate.compare.cells import Trials
from opa_trt.tree import Tree

SLACK = 1.2  # times the pioneer's p99, and the largest route's median
TIGHT = (2 / 3, 5 / 6)  # of the tightest judged deadline: reported, not judged
FRONTIER = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)  # of the largest network's median


@dataclass(frozen=True)
class Bounds:
    """Between which deadlines a load is judged, in ms."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Halfway."""
        return (self.low + self.high) / 2

    def judges(self, deadline_ms: float) -> bool:
        """Whether a deadline lies within."""
        return self.low <= deadline_ms <= self.high


@dataclass(frozen=True)
class Deadline:
    """A deadline under one load.

    Args:
        ms: of every group.
        judged: whether it counts for goals.
        static_best: the node whose route is right in time most often on the fitting images.
        fits: how many static routes have their median within it.
    """

    ms: float
    judged: bool
    static_best: str
    fits: int


def bounds_of(tree: Tree, trials: Trials) -> Bounds:
    """From 1.2 times the pioneer's p99 to 1.2 times the largest route's median, as timed."""
    low = SLACK * trials.p99(pioneer_of(tree))
    return Bounds(low, max(low, SLACK * trials.median(largest_of(tree))))


def plan_deadlines(
    tree: Tree, trials: Trials, given: Sequence[float] | None
) -> tuple[Deadline, ...]:
    """Ascending deadlines for a load.

    Args:
        tree: the bundle's.
        trials: static routes under that load.
        given: by the user; None for both bounds, halfway between, and two tighter ones.
    """
    bounds = bounds_of(tree, trials)
    if given is None:
        tight = [(share * bounds.low, False) for share in TIGHT]
        chosen = dict.fromkeys((bounds.low, bounds.middle, bounds.high), True)
        pairs = [*tight, *chosen.items()]
    else:
        pairs = [(ms, bounds.judges(ms)) for ms in given]
    return tuple(make_deadline(tree, trials, ms, judged) for ms, judged in pairs)


def make_deadline(tree: Tree, trials: Trials, ms: float, judged: bool) -> Deadline:
    """A deadline with what the trials say of it."""
    fits = sum(trials.median(node) <= ms for node in trials.ms)
    return Deadline(ms, judged, best_static(tree, trials, ms), fits)


def best_static(tree: Tree, trials: Trials, deadline_ms: float) -> str:
    """The static route that is right in time most often on the fitting images.

    Of equals the one that is in time more often, then the fastest.
    """

    def merit(node: str) -> tuple[float, float, float]:
        within = trials.within(node, deadline_ms)
        return within * tree[node].accuracy, within, -trials.median(node)

    return max(trials.ms, key=merit)


def check_reachable(
    given: Sequence[float] | None, tree: Tree, route_ms: Callable[[str], float]
) -> None:
    """Refuse deadlines that no route meets even without load, before anything runs.

    Args:
        given: by the user, in ms.
        tree: the bundle's.
        route_ms: from the end of a route to its profiled median in ms.

    Raises:
        ConfigError: says what the fastest route takes.
    """
    if given is None:
        return
    ms: Mapping[str, float] = {node: route_ms(node) for node in static_ends(tree)}
    fastest = min(ms, key=lambda node: ms[node])
    if max(given) < ms[fastest]:
        listed = ", ".join(f"{each:g}" for each in given)
        message = f"deadlines {listed} ms: no route meets any of them."
        raise ConfigError(
            message,
            expected=f"one of at least {ms[fastest]:.3g} ms, which the route to {fastest} takes "
            "(median, a group of this size, no load).",
        )
