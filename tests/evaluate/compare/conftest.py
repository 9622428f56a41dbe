"""An invented bundle of every system, on a machine whose load, answers and latencies are known.

An image's brightness is its label, and its red channel says how hard it is: a node is right on
images that are easier than its quality.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import opa_trt
from opa_trt.backends.null import NullBackend
from opa_trt.bundle import (
    CANARY,
    PROFILE,
    Bundle,
    ImageSpec,
    Manifest,
    SegmentEntry,
    pack,
    pack_arrays,
)
from opa_trt.clock import VirtualClock
from opa_trt.evaluate.compare import Comparison, Data, Settings, compare
from opa_trt.policies import Estimator, Knowledge, Predictor, Rightness
from opa_trt.policies.evidence import width
from opa_trt.policies.thresholds import Chain
from opa_trt.runtime import Session
from opa_trt.runtime.session import read_knowledge
from opa_trt.store import EngineStore
from opa_trt.training.data import Images, Splits
from opa_trt.tree import (
    BRANCHYNET,
    CASCADE,
    FEATURES,
    IMAGES,
    LOGITS,
    OPA,
    WHOLE,
    Node,
    PlanEntry,
    TensorSpec,
)

CLASSES = ("ant", "bee", "cat", "dog", "elk")
SIDE, MAX_BATCH = 16, 8
QUALITY = {
    "pioneer": 0.4, "tiny": 0.5, "small": 0.6, "medium": 0.7, "large": 0.9,
    "whole": 0.75, "first": 0.4, "second": 0.7, "exit1": 0.4, "exit2": 0.7,
    "low": 0.3, "low1": 0.45,
}  # fmt: skip
MS = {
    "pioneer": 1.0, "tiny": 1.0, "small": 2.0, "medium": 4.0, "large": 8.0,
    "whole": 4.0, "first": 1.0, "second": 3.0, "exit1": 1.0, "exit2": 3.0,
    "low": 0.5, "low1": 1.0,
}  # fmt: skip
SMALL = Settings(
    groups=12,
    group_size=8,
    warm_up=2,
    trials=24,
    loads=(0, 1),
    group_sizes=(1, 4),
    families=("noise",),
    images=160,
    draws=200,
)


def more_nodes() -> tuple[Node, ...]:
    """A complete sub-network, a cascade of two and a network with two exits."""
    logits, both = (LOGITS,), (FEATURES, LOGITS)
    return (
        Node("whole", "whole", IMAGES, logits, (), SIDE, (), 50, 0.75, WHOLE),
        Node("first", "first", IMAGES, logits, ("second",), SIDE, (), 10, 0.4, CASCADE),
        Node("second", "second", IMAGES, logits, (), SIDE, (0.7, 0.0), 30, 0.7, CASCADE),
        Node("exit1", "exit1", IMAGES, both, ("exit2",), SIDE, (), 10, 0.4, BRANCHYNET),
        Node("exit2", "exit2", FEATURES, logits, (), SIDE, (0.7, 0.0), 30, 0.7, BRANCHYNET),
    )


def make_knowledge(nodes: tuple[Node, ...]) -> Knowledge:
    """What a build would have learned of these nodes."""
    rightness = {}
    for entry in (node for node in nodes if node.successors and node.system == OPA):
        names = (entry.name, *entry.successors)
        weight = np.zeros((width(len(CLASSES)), len(names)), dtype=np.float32)
        weight[0] = [1.5, *[0.3] * len(entry.successors)]  # of the log-odds
        bias = [-2.0, *[6 * QUALITY[name] - 3 for name in entry.successors]]
        rightness[entry.name] = Rightness(names, weight, np.array(bias, dtype=np.float32))
    same = np.eye(3, dtype=np.float32)
    last = np.array([[0.2], [0.8], [0.0]], dtype=np.float32)
    chain = Chain(  # stop all, send half, send all
        np.array([[9.0], [0.7], [0.0]], np.float32),
        np.array([[1, 0], [1, 0.5], [1, 1]], np.float32),
        np.array([0.4, 0.6, 0.7], np.float32),
    )
    typical = np.zeros((16, width(len(CLASSES))), dtype=np.float32)
    typical[:, 0] = np.linspace(-2, 4, len(typical))  # of the log-odds
    right = np.array([0.6, 0.1, 0.1, 0.1, 0.1], dtype=np.float32)
    even = np.log(np.full(2, 0.5, np.float32))
    return Knowledge(
        dict.fromkeys(rightness, Estimator(even, np.log(np.stack([right * 0 + 0.2, right])))),
        Predictor((same, same, same, last), (*[np.zeros(3, np.float32)] * 3, np.zeros(1, "f4"))),
        {node.name: np.array(node.code, dtype=np.float32) for node in nodes},
        rightness,
        {CASCADE: chain, BRANCHYNET: chain},
        dict.fromkeys(rightness, typical),
    )


def make_images(count: int, seed: int) -> Images:
    """Images whose label and hardness can be read from their pixels."""
    draw = np.random.default_rng(seed)
    labels, hardness = draw.integers(0, 5, count), draw.random(count)
    grey = np.repeat(np.repeat((25 + 50 * labels)[:, None, None, None], SIDE, 2), SIDE, 3)
    pixels = np.repeat(grey, 3, 1).astype(np.float64)
    pixels[:, 0] += 24 * hardness[:, None, None]
    pixels[:, 2, 0, 0], pixels[:, 2, 0, 1] = seed, np.arange(count)  # no two are the same
    return Images(np.rint(pixels).astype(np.uint8), labels, CLASSES)


def _give(name: str, specs: tuple[str, ...]) -> Callable[[Mapping[str, Tensor]], Any]:
    """What a segment answers: the label if the image is easy enough, else the next class."""

    def outputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if IMAGES in inputs:
            means = inputs[IMAGES].float().mean((2, 3))
            label = ((means[:, 1] - 25) / 50).round().clamp(0, 4)
            hard = ((means[:, 0] - means[:, 1]) / 24).clamp(0, 1)
        else:
            label, hard = inputs[FEATURES][:, 0, 0, 0], inputs[FEATURES][:, 0, 0, 1]
        label, hard = label.nan_to_num().clamp(0, 4), hard.nan_to_num()  # before the first run
        room = QUALITY[name] - hard
        answer = torch.where(room > 0, label, (label + 1) % 5).long()
        logits = torch.zeros(len(label), 5)
        logits[torch.arange(len(label)), answer] = 1 + 6 * room.clamp(min=0)
        given = {LOGITS: logits}
        if FEATURES in specs:
            given[FEATURES] = torch.zeros(len(label), 4, 4, 4)
            given[FEATURES][:, 0, 0, 0], given[FEATURES][:, 0, 0, 1] = label, hard
        return given

    return outputs


@dataclass
class Stage:
    """The invented bundle on its machine: loads slow it down, and latencies jitter."""

    bundle: Bundle
    clock: VirtualClock = field(default_factory=VirtualClock)
    slowdown: float = 1.0
    loads: list[int] = field(default_factory=list)  # that were started, in order

    def __post_init__(self) -> None:
        self._draw = np.random.default_rng(0)
        outputs = {n.segment: _give(n.segment, n.outputs) for n in self.bundle.tree.nodes.values()}
        backend = NullBackend(self.clock, self._ms, outputs)
        store = EngineStore(self.bundle.path.parent / "store")
        self.session: Session = opa_trt.load(
            self.bundle.path, backend=backend, clock=self.clock, store=store
        )
        self.knowledge = read_knowledge(self.bundle)

    def _ms(self, name: str, count: int) -> float:
        jitter = float(np.exp(0.04 * self._draw.standard_normal()))
        return self.slowdown * jitter * MS[name] * (0.5 + 0.5 * count / MAX_BATCH)

    @contextmanager
    def background(self, load: int) -> Iterator[None]:
        """Every application adds half of the unloaded latency."""
        self.loads.append(load)
        self.slowdown = 1 + 0.5 * load
        yield
        self.slowdown = 1.0

    def compare(self, data: Data, settings: Settings = SMALL, **options: Any) -> Comparison:
        """On this machine."""
        options = {"background": self.background, **options}
        return compare(self.session, self.knowledge, data, settings, self.clock, **options)


def opa_nodes() -> tuple[Node, ...]:
    """A pioneer and four tails."""
    tails = ("tiny", "small", "medium", "large")
    both = (FEATURES, LOGITS)
    return (
        Node("pioneer", "pioneer", IMAGES, both, tails, SIDE, (), 10, QUALITY["pioneer"]),
        *(
            Node(
                name, name, FEATURES, (LOGITS,), (), SIDE, (QUALITY[name], 0.0),
                int(10 * MS[name]), QUALITY[name],
            )
            for name in tails
        ),
    )  # fmt: skip


def low_nodes() -> tuple[Node, ...]:
    """A pioneer of a lower resolution, and its tail."""
    return (
        Node("low", "low", IMAGES, (FEATURES, LOGITS), ("low1",), 8, (), 5, QUALITY["low"]),
        Node(
            "low1", "low1", FEATURES, (LOGITS,), (), 8, (QUALITY["low1"], 0.0), 10, QUALITY["low1"]
        ),
    )


def pack_nodes(path: Path, nodes: tuple[Node, ...], **changes: Any) -> Bundle:
    """A bundle for the null backend from nodes alone."""
    specs = {
        IMAGES: TensorSpec(IMAGES, (3, SIDE, SIDE), "uint8"),
        FEATURES: TensorSpec(FEATURES, (4, 4, 4)),
        LOGITS: TensorSpec(LOGITS, (len(CLASSES),)),
    }
    canary: dict[str, Any] = {}
    segments = {}
    for node in nodes:
        outputs = tuple(specs[name] for name in node.outputs)
        segments[node.segment] = SegmentEntry((specs[node.source],), outputs, node.segment, {})
        for batch in (1, MAX_BATCH):
            canary[f"{IMAGES}/{batch}"] = np.zeros((batch, *specs[IMAGES].shape), np.uint8)
            for spec in outputs:
                zeros = np.zeros((batch, *spec.shape), np.float32)
                canary[f"{node.name}/{batch}/{spec.name}"] = zeros
    values: dict[str, Any] = {
        "name": "invented",
        "version": opa_trt.__version__,
        "recipe": {"name": "invented", "data": {"source": "folder"}},
        "recipe_sha256": hashlib.sha256(b"invented").hexdigest(),
        "classes": CLASSES,
        "images": ImageSpec(SIDE, "uint8", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "nodes": nodes,
        "segments": segments,
        "engines": (),
        "backend": "null",
        "plan": dict.fromkeys(segments, (PlanEntry("null", "fp32", 1, MAX_BATCH),)),
        "max_batch": MAX_BATCH,
        "threads": 1,
        "buckets": (1, 4, 8),
        "files": {},
        **changes,
    }
    knowledge = pack_arrays(make_knowledge(nodes).to_arrays())
    pack(path, Manifest(**values), {PROFILE: knowledge, CANARY: pack_arrays(canary)})
    return Bundle(path)


def make_data() -> Data:
    """Sixty test images."""
    return Data("invented", Splits(make_images(20, 1), make_images(12, 2), make_images(60, 3)))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of every system. Not to be changed."""
    path = tmp_path_factory.mktemp("compare") / "invented.opa"
    return pack_nodes(path, (*opa_nodes(), *more_nodes()))


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of ``opa`` alone. Not to be changed."""
    return pack_nodes(tmp_path_factory.mktemp("compare") / "small.opa", opa_nodes())


@pytest.fixture(scope="session")
def two_entries(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A bundle with pioneers at two resolutions, on its machine."""
    path = tmp_path_factory.mktemp("compare") / "entries.opa"
    return Stage(pack_nodes(path, (*low_nodes(), *opa_nodes())))


@pytest.fixture(scope="session")
def compared(bundle: Bundle) -> Comparison:
    """Every arm under two loads. Not to be changed."""
    return Stage(bundle).compare(make_data())


@pytest.fixture
def stage(small_bundle: Bundle) -> Stage:
    """A machine of its own for the small bundle."""
    return Stage(small_bundle)


@pytest.fixture
def data() -> Data:
    """Sixty test images."""
    return make_data()


@pytest.fixture
def little() -> Settings:
    """As little as can be compared."""
    return replace(SMALL, groups=3, warm_up=1, trials=4, loads=(0,), group_sizes=(2,), images=40)


@pytest.fixture
def settings() -> Settings:
    """Those of ``compared``."""
    return SMALL
