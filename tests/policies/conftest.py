"""A bundle of every system, invented: its nodes, what they say of images, what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from opa_trt.policies import Estimator, Knowledge, Predictor, Rightness
from opa_trt.policies.evidence import width
from opa_trt.policies.thresholds import Chain
from opa_trt.tree import BRANCHYNET, CASCADE, FEATURES, IMAGES, LOGITS, OPA, WHOLE, Node

BOTH = (FEATURES, LOGITS)
SYSTEMS_MS = {
    "pioneer": 1.0, "tail1": 1.0, "tail2": 3.0, "tail3": 8.0,
    "whole1": 2.0, "whole2": 4.0, "whole3": 9.0, "exit2": 3.0, "exit3": 5.0,
}  # fmt: skip
SHARP = {"pioneer": 1.2, "whole1": 0.8, "exit2": 1.8}  # how sure a segment is; others: 3


def _node(name: str, segment: str, source: str, macs: int, accuracy: float, **more: Any) -> Node:
    return Node(
        name, segment, source, code=(accuracy, 0.0), macs=macs, accuracy=accuracy,
        resolution=16, **{"outputs": (LOGITS,), **more},
    )  # fmt: skip


@pytest.fixture(scope="session")
def every_node() -> tuple[Node, ...]:
    """The nodes of all four systems."""
    tails = [_node(f"tail{i}", f"tail{i}", FEATURES, 10**i, 0.5 + i / 10) for i in (1, 2, 3)]
    names = tuple(tail.name for tail in tails)
    wholes = [
        _node(f"whole{i}", f"whole{i}", IMAGES, 5 + 10**i, 0.5 + i / 10, system=WHOLE)
        for i in (1, 2, 3)
    ]
    cascade = [
        replace(
            whole, name=f"cascade{i}", system=CASCADE,
            successors=(f"cascade{i + 1}",) if i < 3 else (),
        )
        for i, whole in enumerate(wholes, 1)
    ]  # fmt: skip
    exits = [
        _node("exit1", "pioneer", IMAGES, 5, 0.4, outputs=BOTH, successors=("exit2",)),
        _node("exit2", "exit2", FEATURES, 300, 0.7, outputs=BOTH, successors=("exit3",)),
        _node("exit3", "exit3", FEATURES, 700, 0.8),
    ]
    return (
        _node("pioneer", "pioneer", IMAGES, 5, 0.4, outputs=BOTH, successors=names),
        *tails,
        *wholes,
        *cascade,
        *(replace(node, system=BRANCHYNET) for node in exits),
    )


def chain_of_three(low: float, high: float) -> Chain:
    """Nobody leaves early; some do; more do at once; everybody leaves at the first exit."""
    return Chain(
        np.array([[0, 0], [low, high], [high, low], [np.inf, np.inf]], np.float32),
        np.array([[1, 1, 1], [1, 0.6, 0.25], [1, 0.3, 0.2], [1, 0, 0]], np.float32),
        np.array([0.8, 0.78, 0.7, 0.4], np.float32),
    )


@pytest.fixture(scope="session")
def chains() -> Mapping[str, Chain]:
    """Thresholds of both chains, of confidences and of nats."""
    return {CASCADE: chain_of_three(0.2, 0.5), BRANCHYNET: chain_of_three(0.4, 1.2)}


@pytest.fixture
def everything(invent: Any, every_node: tuple[Node, ...], chains: Any) -> Path:
    """The bundle of all systems."""
    buckets = tuple(range(1, 9))  # a part of a group is filled up to one of them
    return Path(invent(every_node, knowledge=known(every_node, chains), buckets=buckets))


def known(nodes: tuple[Node, ...], chains: Mapping[str, Chain]) -> Knowledge:
    """An estimator, a predictor, models of rightness and thresholds."""
    right, wrong = np.array([0.6, 0.1, 0.1, 0.1, 0.1], "f4"), np.full(5, 0.2, "f4")
    layer = np.array([[0.2], [0.8], [0.0]], "f4")
    opa = [node.name for node in nodes if node.system == OPA]
    weight = np.zeros((width(5), len(opa)), np.float32)
    weight[2, 0] = -1.0  # the pioneer is the less likely right, the more its entropy
    bias = np.linspace(0.5, 1.5, len(opa)).astype(np.float32)
    estimator = Estimator(np.log(np.full(2, 0.5, "f4")), np.log(np.stack([wrong, right])))
    return Knowledge(
        {opa[0]: estimator},
        Predictor((np.eye(3, dtype=np.float32), layer), (np.zeros(3, "f4"), np.zeros(1, "f4"))),
        {node.name: np.array(node.code, dtype=np.float32) for node in nodes},
        {opa[0]: Rightness(tuple(opa), weight, bias)},
        chains,
    )


@pytest.fixture
def every_machine(machine: Any) -> Any:
    """A machine that knows what every segment costs, and whose logits depend on the images."""
    machine.ms = dict(SYSTEMS_MS)
    machine.outputs = {name: _outputs(name) for name in SYSTEMS_MS}
    return machine


def _outputs(segment: str) -> Any:
    """An image's first 64 pixels as features, the first five of them as logits."""

    def outputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if IMAGES in inputs:
            features = inputs[IMAGES].float().flatten(1)[:, :64] / 64
        else:
            features = inputs[FEATURES].flatten(1)
        logits = SHARP.get(segment, 3.0) * features[:, :5]
        gives_features = segment in ("pioneer", "exit2")
        shaped = {FEATURES: features.reshape(-1, 4, 4, 4)} if gives_features else {}
        return {**shaped, LOGITS: logits}

    return outputs
