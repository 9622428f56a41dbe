"""The real ``opa`` decision, timed, whose answer is then replaced by a tail that is wanted.

So every tail can be measured with the same decision in front of it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from opa_trt import Session, policies
from opa_trt.policies import Budget, Decision, Knowledge, OpaPolicy, View
from opa_trt.tree import Tree

NAME = "steered"


class Steered(OpaPolicy):
    """``opa`` decides, ``tail`` runs.

    Attributes:
        tail: the successor that every image goes to.
        ms: what the last decision took, replacing its answer included.
    """

    name = NAME

    def __init__(self, tree: Tree, knowledge: Knowledge, **options: object) -> None:
        super().__init__(tree, knowledge, **options)
        self.tail = ""
        self.ms = 0.0

    def step(self, view: View, budget: Budget, state: None) -> tuple[Decision, None]:
        begun = time.perf_counter()
        decision, state = super().step(view, budget, state)
        place = view.successors.index(self.tail)
        wanted = replace(decision, choice=np.full_like(decision.choice, place))
        self.ms = 1e3 * (time.perf_counter() - begun)
        return wanted, state


def steer(session: Session) -> Steered:
    """Let a session decide by ``Steered`` from now on; set its ``tail`` before every group."""
    made: list[Steered] = []

    def factory(tree: Tree, knowledge: Knowledge, **options: Any) -> Steered:
        made.append(Steered(tree, knowledge, **options))
        return made[-1]

    with mock.patch.dict(policies._POLICIES, {NAME: factory}):
        session.use(NAME)
    return made[-1]
