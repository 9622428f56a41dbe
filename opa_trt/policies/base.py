"""What decides, as a protocol: pure functions of what is seen, known and remembered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from opa_trt.policies.knowledge import Floats, Knowledge
from opa_trt.tree import OPA, Tree

STOP = -1
Milliseconds = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Promise:
    """From what a way is expected to take to what it is promised to take.

    Interruptions add up as independent ones do, so what is promised beyond the expectation grows
    with the square root of what the whole group takes.

    Args:
        score: ms beyond the expectation, over the root of the whole group's ms. It may, as the
            others may, be a column ``[W, 1]`` with a row for each of several ways.
        before_ms: of the whole group, what was expected of nodes that ran already.
        spread: the least promise over the expectation.
    """

    score: float | Milliseconds = 0.0
    before_ms: float = 0.0
    spread: float | Milliseconds = 1.0

    def ms(self, expected: Milliseconds) -> Milliseconds:
        """What is promised where so much is expected of a way's nodes, in any shape."""
        whole = np.sqrt(expected + self.before_ms)
        whole *= self.score
        whole += expected
        found: Milliseconds = np.maximum(whole, expected * self.spread)
        return found

    @classmethod
    def of_ways(cls, promises: Sequence[Promise], counts: Sequence[int]) -> Promise:
        """Of so many ways each, one below the other, before which nothing ran."""
        scores, spreads = (
            np.repeat([getattr(promise, name) for promise in promises], counts)[:, None]
            for name in ("score", "spread")
        )
        return cls(scores, 0.0, spreads)


@dataclass(frozen=True)
class View:
    """What a policy sees after a node ran.

    Args:
        node: the node that ran.
        logits: its ``[N, C] float32`` logits for the images that are pending, or None.
        successors: names of the nodes that may follow.
        batches: ascending batch sizes; the last one is N.
        latency_ms: ``[S, B]`` promised latency of the cheapest way to logits through each
            successor, at each of ``batches``, at the present slowdown.
        slowdown: the present estimate (1 is as profiled).
        split_ms: what it costs beyond that to send on a part of the images only.
        overhead_ms: what of ``latency_ms`` the runtime itself takes, for each node of a way.
        each_ms: ``[nodes, B]`` latency to be expected of every node by itself, in the tree's
            order; None where nobody asked for it.
        promise: from what a way's nodes are expected to take to what it is promised to.
    """

    node: str
    logits: Floats | None
    successors: tuple[str, ...]
    batches: tuple[int, ...]
    latency_ms: Milliseconds
    slowdown: float = 1.0
    split_ms: float = 0.0
    overhead_ms: float = 0.0
    each_ms: Milliseconds | None = None
    promise: Promise = Promise()

    @property
    def pending(self) -> int:
        """How many images wait for a decision."""
        return self.batches[-1]

    def columns(self, images: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """The places in ``batches`` of the smallest that hold so many of the pending images."""
        return np.searchsorted(self.batches, images)


@dataclass(frozen=True)
class Ahead:
    """What a policy can expect to see after an entry.

    Args:
        view: of the first chunk, without logits.
        left_ms: the time that will be left then, if the entry takes as long as it mostly does.
    """

    view: View
    left_ms: float


@dataclass(frozen=True)
class Arrival:
    """What a policy sees of a group before anything has run.

    Args:
        images: how many.
        entries: names of the nodes of its system where they may enter.
        group_ms: ``[E]`` promised latency of the whole group by the cheapest way to logits
            through each entry, in as many chunks as it takes.
        each_ms: latency to be expected of every node by itself, for the whole group.
        slowdown: as last known.
        promises: by entry, from what a way is expected to take to what it is promised to.
        ahead: what comes after each entry that has successors; told where the policy may also
            enter beside its own system.
    """

    images: int
    entries: tuple[str, ...]
    group_ms: Milliseconds
    each_ms: Mapping[str, float]
    slowdown: float = 1.0
    promises: Mapping[str, Promise] = field(default_factory=dict)
    ahead: Mapping[str, Ahead] = field(default_factory=dict)

    @cached_property
    def promised_ms(self) -> dict[str, float]:
        """``group_ms`` by entry."""
        return dict(zip(self.entries, self.group_ms.tolist(), strict=True))


@dataclass(frozen=True)
class EntryChoice:
    """Where a group is to enter.

    Args:
        node: an entry's name.
        reason: half a sentence for people.
        accuracy: by entry, what share of the images was expected right in time behind it (0 to 1),
            where that was thought about.
    """

    node: str
    reason: str
    accuracy: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """The time that is left for these images, in ms."""

    left_ms: float


@dataclass(frozen=True)
class Decision:
    """What was decided for each pending image, and what it was based on.

    Args:
        choice: ``[N] int64`` index into the successors, or ``STOP``.
        successors: what the indices mean.
        predicted_ms: promised latency of each successor for the whole group.
        predicted_accuracy: of each successor on this group (0 to 1); nan where not predicted.
        estimated_accuracy: of the node that ran, on this group; nan where not estimated.
        left_ms: the budget.
        fits: whether anything but stopping fitted.
        reason: half a sentence for people.
    """

    choice: npt.NDArray[np.int64]
    successors: tuple[str, ...]
    predicted_ms: tuple[float, ...]
    predicted_accuracy: tuple[float, ...]
    estimated_accuracy: float
    left_ms: float
    fits: bool
    reason: str
    notes: dict[str, Any] = field(default_factory=dict)


def all_to(
    place: int,
    view: View,
    left_ms: float,
    *,
    fits: bool,
    reason: str,
    accuracy: tuple[float, ...] = (),
    estimated: float = math.nan,
) -> Decision:
    """The whole group to one successor, or ``STOP``.

    Args:
        place: among the successors.
        view: what was seen.
        left_ms: the budget.
        fits: whether anything but stopping fitted.
        reason: half a sentence for people.
        accuracy: predicted of each successor; none where not predicted.
        estimated: accuracy of the node that ran; nan where not estimated.
    """
    return Decision(
        choice=np.full(view.pending, place, dtype=np.int64),
        successors=view.successors,
        predicted_ms=tuple(view.latency_ms[:, -1].tolist()),
        predicted_accuracy=accuracy or (math.nan,) * len(view.successors),
        estimated_accuracy=estimated,
        left_ms=left_ms,
        fits=fits,
        reason=reason,
    )


def nothing_fits(view: View, left_ms: float) -> Decision:
    """Stopping for want of time: what the images look like is not even read."""
    reason = f"nothing fits, so {view.node} answers"
    return all_to(STOP, view, left_ms, fits=False, reason=reason)


def unreadable(view: View, left_ms: float) -> Decision:
    """Stopping, where logits are not all finite: nothing can be read from them."""
    reason = f"the logits of {view.node} are not finite"
    stopped = all_to(STOP, view, left_ms, fits=False, reason=reason)
    return replace(stopped, notes={"unreadable": True})


@dataclass(frozen=True)
class Outcome:
    """What became of a group.

    Args:
        images: how many.
        entry: where they entered.
        measured_ms: from entry to logits on the host.
        deadline_ms: as asked.
    """

    images: int
    entry: str
    measured_ms: float
    deadline_ms: float


class Policy(Protocol):
    """What decides. No clock, no device, no unseeded randomness.

    Attributes:
        name: as users write it.
        system: whose nodes it sends images through.
        beside: systems at whose entries it may let a group enter, too, where the bundle has them.
        explores: whether ``enter`` may be asked again with hopes instead of promises, so that what
            has not run for long is tried now and then; its answer depends on the arrival alone.
    """

    name: str
    system: str
    beside: tuple[str, ...]
    explores: bool

    def start(self) -> Any:
        """The state before the first group."""

    def enter(self, arrival: Arrival, budget: Budget, state: Any) -> tuple[EntryChoice | None, Any]:
        """Where a group enters, or None: the largest resolution whose cheapest way fits.

        Asked only where there are several entries.
        """

    def step(self, view: View, budget: Budget, state: Any) -> tuple[Decision, Any]:
        """For each pending image stop or a successor; and the state for the next call."""

    def learn(self, outcome: Outcome, state: Any) -> Any:
        """The state after a group was answered."""


class PolicyBase:
    """A policy's usual answers: of ``opa``'s system, any entry, nothing remembered."""

    system = OPA
    beside: tuple[str, ...] = ()
    explores = False

    def start(self) -> Any:
        """Nothing is remembered."""
        return None

    def enter(self, arrival: Arrival, budget: Budget, state: Any) -> tuple[EntryChoice | None, Any]:
        """The session picks the entry."""
        return None, state

    def learn(self, outcome: Outcome, state: Any) -> Any:
        """Nothing is learned."""
        return state


class PolicyFactory(Protocol):
    """Makes a policy for one bundle."""

    def __call__(self, tree: Tree, knowledge: Knowledge, **options: Any) -> Policy:
        """ConfigError where an option is unknown or impossible."""
