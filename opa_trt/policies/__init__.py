"""What decides: one file a policy."""

from __future__ import annotations

from typing import Any

from opa_trt.errors import UnknownNameError
from opa_trt.policies.base import (
    STOP,
    Ahead,
    Arrival,
    Budget,
    Decision,
    EntryChoice,
    Outcome,
    Policy,
    PolicyBase,
    PolicyFactory,
    Promise,
    View,
    unreadable,
)
from opa_trt.policies.branchynet import BranchyNetPolicy
from opa_trt.policies.cascade import CascadePolicy
from opa_trt.policies.dynamic_ofa import DynamicOfaPolicy
from opa_trt.policies.knowledge import Estimator, Knowledge, Predictor, Rightness
from opa_trt.policies.opa import OpaPolicy
from opa_trt.policies.opa_split import OpaSplitPolicy
from opa_trt.policies.static import StaticPolicy, route_end
from opa_trt.tree import Tree

__all__ = [
    "STOP",
    "Ahead",
    "Arrival",
    "Budget",
    "Decision",
    "EntryChoice",
    "Estimator",
    "Knowledge",
    "Outcome",
    "Policy",
    "PolicyBase",
    "PolicyFactory",
    "Predictor",
    "Promise",
    "Rightness",
    "View",
    "make_policy",
    "policy_names",
    "route_end",
    "unreadable",
]

_POLICIES: dict[str, PolicyFactory] = {
    "opa": OpaPolicy,
    "opa_split": OpaSplitPolicy,
    "static": StaticPolicy,
    "dynamic_ofa": DynamicOfaPolicy,
    "branchynet": BranchyNetPolicy,
    "cascade": CascadePolicy,
}


def policy_names() -> list[str]:
    """Every policy's name."""
    return list(_POLICIES)


def make_policy(name: str, tree: Tree, knowledge: Knowledge, **options: Any) -> Policy:
    """The policy called ``name`` for one bundle; ``static:NODE`` is ``static`` at that node.

    Raises:
        UnknownNameError: there is none of that name, or no such node.
        ConfigError: an option is unknown or impossible.
    """
    name, _, node = name.partition(":")
    if name not in _POLICIES:
        msg = "policy"
        raise UnknownNameError(msg, name, _POLICIES)
    if node:
        options["node"] = node
    return _POLICIES[name](tree, knowledge, **options)
