"""Who is compared: our policies, baselines on the same engines, and what knows or ignores all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ConfigError
from opa_trt.evaluate.oracles import Layout, OraclePolicy, RandomPolicy, cross_validated_oracle
from opa_trt.policies import Knowledge, Policy, make_policy, route_end
from opa_trt.tree import IMAGES, LOGITS, OPA, WHOLE, Tree

Rights = Mapping[str, npt.NDArray[np.bool_]]
AnyPolicy: TypeAlias = Policy | OraclePolicy | RandomPolicy  # the evaluation's own are frozen
OURS, BASELINE, REFERENCE = "ours", "baseline", "reference"
SPLIT, OPA_ARM, DYNAMIC = "opa_split", "opa", "dynamic_ofa"
BRANCHY, CASCADE_ARM = "branchynet", "cascade"
BEST, LARGEST = "static_best", "static_largest"
ORACLE, ORACLE_CV, RANDOM = "oracle", "oracle_cv", "random"


@dataclass(frozen=True)
class Arm:
    """One of those that are compared.

    Args:
        name: in tables.
        kind: ``ours``, ``baseline`` or ``reference``.
        policy: as users write it; as the evaluation calls it for references.
        note: half a sentence for people.
    """

    name: str
    kind: str
    policy: str
    note: str


ARMS = (
    Arm(SPLIT, OURS, "opa_split", "each image goes where it gains most"),
    Arm(OPA_ARM, OURS, "opa", "the best predicted tail for the whole group"),
    Arm(DYNAMIC, BASELINE, "dynamic_ofa", "levels by what was measured lately (reactive manager)"),
    Arm(BRANCHY, BASELINE, "branchynet", "exits along one network, by entropy"),
    Arm(CASCADE_ARM, BASELINE, "cascade", "complete sub-networks, until one is confident"),
    Arm(BEST, BASELINE, "static", "the one route that was best on the fitting images"),
    Arm(LARGEST, BASELINE, "static", "always the largest network, by itself where it is one"),
    Arm(ORACLE, REFERENCE, "oracle", "knows which fitting tail is right most often on the group"),
    Arm(ORACLE_CV, REFERENCE, "cross_validated_oracle", "chooses on one half, scored on the other"),
    Arm(RANDOM, REFERENCE, "random", "any tail that fits"),
)
BASELINES = tuple(arm.name for arm in ARMS if arm.kind == BASELINE)
SIZE_ARMS = (SPLIT, OPA_ARM, DYNAMIC, BEST)
FRONTIER_ARMS = (SPLIT, OPA_ARM)


def arm_of(name: str) -> Arm:
    """The arm of that name."""
    return next(arm for arm in ARMS if arm.name == name)


def static_ends(tree: Tree) -> tuple[str, ...]:
    """The nodes that a static route may end at: those with logits of ``opa``'s routes and of
    complete sub-networks."""
    nodes = tree.nodes.values()
    return tuple(n.name for n in nodes if n.system in (OPA, WHOLE) and LOGITS in n.outputs)


def pioneer_of(tree: Tree) -> str:
    """The entry of ``opa`` with the fewest MACs."""
    return min(tree.entries_of(OPA), key=lambda node: node.macs).name


def largest_of(tree: Tree) -> str:
    """The end of ``opa``'s largest route."""
    return route_end(tree, "largest")


def largest_network(tree: Tree) -> str:
    """The answer of the most MACs in one network, by the shortest way: a pioneer before it whose
    features it does not read would only delay it."""
    return max(
        static_ends(tree),
        key=lambda name: (_network_macs(tree, name), -len(tree.route_to(name).nodes)),
    )


def _network_macs(tree: Tree, name: str) -> int:
    """MACs of the node and of those before it whose features it goes on from."""
    node = tree[name]
    before = 0 if node.source == IMAGES else _network_macs(tree, tree.parents[name])
    return before + node.macs


class Makers:
    """Makes every arm's policy for one bundle.

    Args:
        tree: the bundle's.
        knowledge: the bundle's.
        seed: of references that draw.
    """

    def __init__(self, tree: Tree, knowledge: Knowledge, seed: int) -> None:
        self._tree, self._knowledge, self._seed = tree, knowledge, seed
        self._layout = Layout.of(tree)
        self._largest = largest_network(tree)

    def usable(self, names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Those of the arms that this bundle can run, and why the others cannot."""
        left_out = {}
        silent = [node.name for node in self._tree.nodes.values() if LOGITS not in node.outputs]
        for name in names:
            try:
                system = self.make(name, largest_of(self._tree)).system
                self._tree.entries_of(system)
                mute = [node for node in silent if self._tree[node].system == system]
                if mute and name in (BRANCHY, CASCADE_ARM):
                    message = f"{mute[0]} has no logits, which it reads or stops at."
                    raise ConfigError(message)
            except ConfigError as exc:
                left_out[name] = exc.received
        return tuple(name for name in names if name not in left_out), left_out

    def make(self, name: str, static_best: str) -> AnyPolicy:
        """An arm's policy; an oracle still has to be told of each group by ``knowing``.

        Args:
            name: of the arm.
            static_best: the node that the arm of this name always answers with.

        Raises:
            ConfigError: the bundle lacks what it needs.
        """
        if name == RANDOM:
            return RandomPolicy(self._seed)
        if name in (ORACLE, ORACLE_CV):
            return OraclePolicy(layout=self._layout)
        ends = {BEST: static_best, LARGEST: self._largest}
        options = {"node": ends[name]} if name in ends else {}
        return make_policy(arm_of(name).policy, self._tree, self._knowledge, **options)

    def knowing(
        self, name: str, right: Rights, index: int
    ) -> tuple[OraclePolicy | None, npt.NDArray[np.intp] | None]:
        """The policy of an oracle that is told of a group, and the images that count (None: all).

        The cross-validated oracle takes its two halves in turns, from group to group.

        Args:
            name: of the arm.
            right: by node ``[n] bool``.
            index: of the group.

        Returns:
            None for arms that are told nothing.
        """
        if name == ORACLE:
            return OraclePolicy(right, layout=self._layout), None
        if name == ORACLE_CV:
            fold = cross_validated_oracle(right, self._seed + index, self._layout)[index % 2]
            return fold.policy, fold.scored
        return None, None
