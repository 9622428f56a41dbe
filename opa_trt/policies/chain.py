"""What the policies over a chain of exits share: an image leaves where its doubt is low."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.errors import ConfigError
from opa_trt.policies.base import STOP, Budget, Decision, Milliseconds, PolicyBase, View
from opa_trt.policies.evidence import Floats
from opa_trt.policies.knowledge import Knowledge
from opa_trt.policies.thresholds import DOUBTS, Chain, chain_of
from opa_trt.tree import Tree

Counts = npt.NDArray[np.intp]
_FUZZ = 1e-4  # of an image: shares are float32


class ChainPolicy(PolicyBase):
    """Thresholds chosen anew for every group, at its first exit, and kept until its last.

    Of all known ways to set them, the most accurate is taken whose expected time fits the time
    left: at every exit as many images as its share of the fitting images says, rounded up; and at
    the next one those of this group that would go there. Where the next exit no longer fits the
    images that are pending, they stop. The state is the place of the way that was chosen.
    """

    name: str

    def __init__(self, tree: Tree, knowledge: Knowledge, **options: object) -> None:
        if options:
            message = f"policy {self.name} takes no options, got {sorted(options)}."
            raise ConfigError(message)
        nodes = chain_of(tree, self.system)
        rows = {name: place for place, name in enumerate(tree.nodes)}
        self._places = {node.name: place for place, node in enumerate(nodes)}
        self._rows = [rows[node.name] for node in nodes]
        self._chain = _known(knowledge.chains, self.system, len(nodes)) if nodes else None
        self._doubt = DOUBTS[self.system]

    def start(self) -> int | None:
        """No group has entered."""
        return None

    def step(self, view: View, budget: Budget, state: int | None) -> tuple[Decision, int | None]:
        """Those in doubt to the next exit, if it fits; the others stop."""
        if view.logits is None or view.each_ms is None or self._chain is None:
            message = f"policy {self.name} needs the logits of {view.node}, and every latency."
            raise ConfigError(message, remedy="use another policy for this bundle.")
        place, doubt = self._places[view.node], self._doubt(view.logits)
        fits, expected = True, math.nan
        if place == 0:
            state, expected, fits = self._choose(view, doubt, budget.left_ms)
        stays = np.zeros(view.pending, dtype=np.bool_)
        if state is not None:
            stays = doubt >= self._chain.thresholds[state, place]
        going = int(np.count_nonzero(stays))
        if going and self._next_ms(view, np.array([going]))[0] > budget.left_ms:
            stays[:], fits = False, False
        decision = Decision(
            choice=np.where(stays, 0, STOP).astype(np.int64),
            successors=view.successors,
            predicted_ms=tuple(view.latency_ms[:, -1].tolist()),
            predicted_accuracy=(math.nan,) * len(view.successors),
            estimated_accuracy=math.nan,
            left_ms=budget.left_ms,
            fits=fits,
            reason=self._reason(view, int(np.count_nonzero(stays)), fits),
            notes=self._notes(state, place, expected),
        )
        return decision, state

    def _choose(self, view: View, doubt: Floats, left_ms: float) -> tuple[int | None, float, bool]:
        """The place of the best way that fits, its expected ms, and whether any goes on at all."""
        assert self._chain is not None
        first = self._chain.thresholds[:, 0]
        sent = len(doubt) - np.searchsorted(np.sort(doubt), first, side="left")
        reach = np.ceil(self._chain.reach * len(doubt) - _FUZZ).astype(np.intp)
        expected = self._expected_ms(view, reach)
        fitting = np.maximum(expected, self._next_ms(view, sent)) <= left_ms
        if not fitting.any():
            return None, math.nan, False
        best = max(
            np.flatnonzero(fitting).tolist(),
            key=lambda way: (self._chain_accuracy(way), -expected[way]),
        )
        return best, float(expected[best]), bool((fitting & (reach[:, 1] > 0)).any())

    def _chain_accuracy(self, way: int) -> float:
        assert self._chain is not None
        return float(self._chain.accuracy[way])

    def _expected_ms(self, view: View, reach: Counts) -> Milliseconds:
        """``[V]`` promised ms of all exits after the first, ``reach [V, E]`` images at each."""
        assert view.each_ms is not None
        engines, own = np.zeros(len(reach)), np.zeros(len(reach))
        for place, row in enumerate(self._rows[1:], 1):
            there, before = reach[:, place], reach[:, place - 1]
            engines += np.where(there > 0, view.each_ms[row][view.columns(there)], 0.0)
            switch = view.overhead_ms + view.split_ms * (there < before)
            own += np.where(there > 0, switch, 0.0)
        promised: Milliseconds = np.where(reach[:, 1] > 0, view.promise.ms(engines) + own, 0.0)
        return promised

    def _next_ms(self, view: View, sent: Counts) -> Milliseconds:
        """Promised ms of the next exit for as many of the pending images."""
        ms = view.latency_ms[0][view.columns(sent)]
        found: Milliseconds = np.where(sent > 0, ms + view.split_ms * (sent < view.pending), 0.0)
        return found

    def _notes(self, way: int | None, place: int, expected_ms: float) -> dict[str, Any]:
        if way is None or place > 0 or self._chain is None:
            return {}
        return {
            "thresholds": self._chain.thresholds[way].tolist(),
            "expected_accuracy": self._chain_accuracy(way),
            "expected_ms": expected_ms,
        }

    def _reason(self, view: View, going: int, fits: bool) -> str:
        if not fits:
            return f"nothing fits, so {view.node} answers"
        return f"{going} of {view.pending} are in doubt and go on"


def _known(chains: Any, system: str, exits: int) -> Chain:
    """The chain's thresholds, cut to as many exits as there is room for on this device."""
    chain = chains.get(system)
    if chain is None or chain.reach.shape[1] < exits or exits < 2:
        message = f"the profile has no thresholds for the {exits} exits of {system}."
        raise ConfigError(message, remedy="build the bundle again.")
    return Chain(chain.thresholds[:, : exits - 1], chain.reach[:, :exits], chain.accuracy)
