"""Policies for evaluation alone: what knowing the truth would bring, and what chance brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ConfigError
from opa_trt.policies import STOP, Arrival, Budget, Decision, EntryChoice, PolicyBase, View
from opa_trt.policies.base import all_to
from opa_trt.policies.entrance import Entrance
from opa_trt.policies.ways import Ways, every_way
from opa_trt.tree import OPA, Tree

Rights = Mapping[str, npt.NDArray[np.bool_]]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Layout:
    """What an oracle must know of a bundle's tree.

    Args:
        ways: on from each of ``opa``'s nodes.
        entrance: to them.
    """

    ways: Mapping[str, Ways]
    entrance: Entrance

    @classmethod
    def of(cls, tree: Tree) -> Layout:
        """That of ``tree``."""
        return cls(every_way(tree, OPA), Entrance(tree))


@dataclass(frozen=True)
class RandomPolicy(PolicyBase):
    """Uniform among the successors that fit the whole group. The state counts the draws.

    Where none fits, it stops; where there is nothing to stop with, the fastest is taken.

    Args:
        seed: of all draws; one sequence of groups is always answered alike.
    """

    seed: int = 0
    name: str = field(default="random", init=False)

    def start(self) -> int:
        """Nothing was drawn."""
        return 0

    def step(self, view: View, budget: Budget, state: int) -> tuple[Decision, int]:
        """The whole group to any successor that fits, or stop where none does."""
        ms = view.latency_ms[:, -1].tolist()
        fitting = [place for place, each in enumerate(ms) if each <= budget.left_ms]
        draw = np.random.default_rng([self.seed, 71, state])
        place = int(draw.choice(fitting)) if fitting else _last_resort(view, ms)
        decision = all_to(place, view, budget.left_ms, fits=bool(fitting), reason="drawn")
        return decision, state + 1


@dataclass(frozen=True)
class OraclePolicy(PolicyBase):
    """The fitting way that is right most often on the group; of equals the fastest.

    It knows one group. The evaluator makes another for each: ``knowing`` gives it.

    Args:
        right: by node name ``[N] bool``, whether it is right on each image of the group.
        rows: the images of the group that count; all by default.
        layout: of the bundle; without it a node's successors are leaves, and there is one entry.
    """

    right: Rights = field(default_factory=dict)
    rows: Rows | None = None
    layout: Layout | None = None
    name: str = field(default="oracle", init=False)

    def knowing(self, right: Rights) -> OraclePolicy:
        """The oracle of another group."""
        return OraclePolicy(right, self.rows, self.layout)

    def enter(
        self, arrival: Arrival, budget: Budget, state: None
    ) -> tuple[EntryChoice | None, None]:
        """Where the way begins that fits and is right most often."""
        if self.layout is None:
            return None, None

        def hits(name: str) -> float:
            return float(np.count_nonzero(self._counted(name)))

        return self.layout.entrance.pick(arrival, budget.left_ms, hits), None

    def step(self, view: View, budget: Budget, state: None) -> tuple[Decision, None]:
        """The whole group along one way, or stop where none fits.

        Raises:
            ConfigError: it was not told of an answer.
        """
        if self.layout is None:
            ways = Ways.of_leaves(view.node, view.successors)
        else:
            ways = self.layout.ways[view.node]
        if unknown := [name for name in ways.ends if name not in self.right]:
            message = f"policy {self.name} was not told whether {', '.join(unknown)} is right."
            raise ConfigError(message, expected="the truth about the group, before it is answered.")
        ms = ways.latency_ms(view)[:, -1].tolist()
        hits = [int(np.count_nonzero(self._counted(name))) for name in ways.ends]
        best, fitting = ways.best(hits, ms, budget.left_ms)
        reason = "nothing fits" if best is None else f"{hits[best]} right"
        place = _last_resort(view, view.latency_ms[:, -1].tolist())
        if best is not None:
            place = ways.begins(best)
        accuracy = ways.by_successor([float(np.mean(self._counted(name))) for name in ways.ends])
        decision = all_to(
            place, view, budget.left_ms, fits=fitting > 0, reason=reason, accuracy=accuracy
        )
        return decision, None

    def _counted(self, name: str) -> npt.NDArray[np.bool_]:
        right = self.right[name]
        return right if self.rows is None else right[self.rows]


@dataclass(frozen=True)
class Fold:
    """One way to cross-validate the oracle: a policy that chooses on half of a group, and the
    places of the other half, on which alone its answer is to be scored."""

    policy: OraclePolicy
    scored: Rows


def cross_validated_oracle(
    right: Rights, seed: int = 0, layout: Layout | None = None
) -> tuple[Fold, Fold]:
    """Both ways: each chooses on one half and is scored on the other. Their mean is the score.

    Both answer the whole group, so that the same successors fit.

    Args:
        right: by node name ``[N] bool``; two images at least.
        seed: of the halves.
        layout: as ``OraclePolicy`` has it.

    Raises:
        ConfigError: fewer than two images, or nodes that know of different numbers.
    """
    counts = {len(values) for values in right.values()}
    if len(counts) != 1 or min(counts) < 2:
        message = f"the truth about groups of {sorted(counts)} images."
        raise ConfigError(message, expected="one group of two images or more, to be halved.")
    (count,) = counts
    order = np.random.default_rng([seed, 72]).permutation(count)
    halves = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    first, second = (_Half(right, half, layout) for half in halves)
    return Fold(first, halves[1]), Fold(second, halves[0])


@dataclass(frozen=True)
class _Half(OraclePolicy):
    """An oracle that knows half of a group."""

    name: str = field(default="cross_validated_oracle", init=False)


def _last_resort(view: View, ms: list[float]) -> int:
    """``STOP``, or the place of the fastest successor where there is nothing to stop with."""
    return STOP if view.logits is not None else ms.index(min(ms))
