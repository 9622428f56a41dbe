"""Small bundles made by hand: real little networks, and invented ones on a virtual clock."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import settings
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import opa_trt
from opa_trt.backends.null import NullBackend
from opa_trt.bundle import (
    CANARY,
    PROFILE,
    EngineEntry,
    ImageSpec,
    Manifest,
    SegmentEntry,
    pack,
    pack_arrays,
)
from opa_trt.clock import VirtualClock
from opa_trt.machine import has_gpu
from opa_trt.policies import Estimator, Knowledge, Predictor, Rightness
from opa_trt.policies.evidence import width
from opa_trt.supernet.onnx_form import onnx_bytes
from opa_trt.tree import (
    FEATURES,
    IMAGES,
    LOGITS,
    ONNX,
    TORCHSCRIPT,
    Node,
    PlanEntry,
    Segment,
    TensorSpec,
)

CLASSES = ("ant", "bee", "cat", "dog", "elk")
SIDE = 16
MAX_BATCH = 8
BUCKETS = (1, 4, 8)
# Milliseconds for a full batch, predicted quality and measured accuracy of the four tails.
TAIL_MS = {"tiny": 1.0, "small": 2.0, "medium": 4.0, "large": 8.0}
QUALITY = {"tiny": 0.5, "small": 0.6, "medium": 0.7, "large": 0.9}
IMAGES_SPEC = TensorSpec(IMAGES, (3, SIDE, SIDE), "uint8")
FEATURES_SPEC = TensorSpec(FEATURES, (4, 4, 4))
LOGITS_SPEC = TensorSpec(LOGITS, (len(CLASSES),))
SUFFIX = {TORCHSCRIPT: "pt", ONNX: "onnx"}
SPECS = {IMAGES: IMAGES_SPEC, FEATURES: FEATURES_SPEC, LOGITS: LOGITS_SPEC}

Arrays = dict[str, npt.NDArray[Any]]

# Property tests are seeded, and no test looks at the wall clock.
settings.register_profile("opa_trt", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("opa_trt")

# The networks are tiny and several processes test at once: more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # heard by the processes that this one starts
torch.set_num_threads(1)
threadpool_limits(1)


# --- every test ---------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes run the tests, a file's stay together; so do those of conformance,
    which share what vendors compiled."""
    for item in items:
        folder = item.path.parent
        group = folder if folder.name == "conformance" else item.path
        item.add_marker(pytest.mark.xdist_group(str(group)))


def pytest_collection_finish() -> None:
    """What was imported so far stays; looking through it again and again would take seconds."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked ``gpu`` skips where there is none, and fails where one was promised."""
    if item.get_closest_marker("gpu") is None or has_gpu():
        return
    if os.environ.get("OPA_TRT_EXPECT_GPU") == "1":
        pytest.fail("OPA_TRT_EXPECT_GPU=1, but torch sees no GPU", pytrace=False)
    pytest.skip("no GPU that torch can use")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("OPA_TRT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """Loading a bundle sets torch's threads; the next test finds them as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TickingClock(VirtualClock):
    """A clock that 10 ms pass on whenever it is read, so that profiling real engines ends soon."""

    def now_ms(self) -> float:
        """The present, in ms."""
        self.advance(10.0)
        return super().now_ms()


@pytest.fixture
def ticking() -> TickingClock:
    """For sessions whose engines are real, and whose latencies do not matter."""
    return TickingClock()


# --- real little networks -----------------------------------------------------------------------


class PioneerNet(nn.Module):
    """``[N, 3, 16, 16] uint8`` to features ``[N, 4, 4, 4]`` and logits ``[N, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.head = nn.Linear(4, len(CLASSES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.stem(images.float() / 255))
        return features, self.head(features.mean((2, 3)))


class TailNet(nn.Module):
    """Features to logits, through ``width`` channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(4, width, 3, padding=1)
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, features: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(features)).mean((2, 3)))


def trace(module: nn.Module, example: Tensor) -> bytes:
    """A module as TorchScript bytes."""
    data = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, example), data)
    return data.getvalue()


def random_images(count: int, seed: int = 0, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """``[count, 3, side, side] uint8``."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def make_knowledge(nodes: tuple[Node, ...]) -> Knowledge:
    """Estimators that trust peaked logits, a predictor of 0.2 × estimate + 0.8 × quality, and
    the odds that a node is right: its confidence's own, and its successors' by their quality."""
    right = np.array([0.6, 0.1, 0.1, 0.1, 0.1], dtype=np.float32)
    wrong = np.full(5, 0.2, dtype=np.float32)
    same = np.eye(3, dtype=np.float32)
    last = np.array([[0.2], [0.8], [0.0]], dtype=np.float32)
    known = {node.name: node for node in nodes}
    rightness = {}
    for node in nodes:
        names = [name for name in (node.name, *node.successors) if LOGITS in known[name].outputs]
        weight = np.zeros((width(len(CLASSES)), len(names)), dtype=np.float32)
        weight[0] = [1.0 if name == node.name else 0.25 for name in names]  # of the log-odds
        bias = [4 * known[name].code[0] - 2 if known[name].code else 0.0 for name in names]
        if node.successors and names:
            rightness[node.name] = Rightness(tuple(names), weight, np.array(bias, np.float32))
    even = np.log(np.array([0.5, 0.5], dtype=np.float32))
    read = [node.name for node in nodes if node.successors] or [*known]
    estimator = Estimator(even, np.log(np.stack([wrong, right])))
    return Knowledge(
        dict.fromkeys(read, estimator),
        Predictor((same, same, same, last), (*[np.zeros(3, np.float32)] * 3, np.zeros(1, "f4"))),
        {node.name: np.array(node.code, dtype=np.float32) for node in nodes},
        rightness,
    )


def make_manifest(
    nodes: tuple[Node, ...], segments: Mapping[str, SegmentEntry], **changes: Any
) -> Manifest:
    """A manifest for these nodes and segments; every field may be changed."""
    values: dict[str, Any] = {
        "name": "toy",
        "version": opa_trt.__version__,
        "recipe": {"name": "toy"},
        "recipe_sha256": hashlib.sha256(b"toy").hexdigest(),
        "classes": CLASSES,
        "images": ImageSpec(SIDE, "uint8", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "nodes": nodes,
        "segments": segments,
        "engines": (),
        "backend": "torchscript",
        "max_batch": MAX_BATCH,
        "threads": 1,
        "buckets": BUCKETS,
        "files": {},
        **changes,
    }
    entry = PlanEntry(values["backend"], "fp32", 1, values["max_batch"])
    return Manifest(**{"plan": dict.fromkeys(segments, (entry,)), **values})


@dataclass(frozen=True)
class Toy:
    """A pioneer and four tails: modules, their traces and what they give for the canary."""

    modules: dict[str, nn.Module]
    forms: dict[str, dict[str, bytes]]
    canary: Arrays
    nodes: tuple[Node, ...]

    @property
    def traces(self) -> dict[str, bytes]:
        """Every segment's TorchScript."""
        return {name: forms[TORCHSCRIPT] for name, forms in self.forms.items()}

    def images(self, count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
        """``[count, 3, 16, 16] uint8``."""
        return random_images(count, seed)

    def segment(self, name: str) -> Segment:
        """As a bundle would give it."""
        return Segment(name, *self._tensors(name), self.forms[name], self._content(name))

    def eager(self, name: str, inputs: Tensor) -> dict[str, Tensor]:
        """What the module itself gives, by output name."""
        with torch.no_grad():
            given = self.modules[name](inputs)
        values = given if isinstance(given, tuple) else (given,)
        return {spec.name: v for spec, v in zip(self.segment(name).outputs, values, strict=True)}

    def monolith(self, tail: str, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits of pioneer and ``tail`` as one eager network."""
        features = self.eager("pioneer", torch.from_numpy(images))[FEATURES]
        return self.eager(tail, features)[LOGITS].numpy()

    def pack(
        self,
        path: Path,
        *,
        canary: Arrays | None = None,
        engines: Mapping[EngineEntry, bytes] | None = None,
        files: Mapping[str, bytes] | None = None,
        **changes: Any,
    ) -> Path:
        """The bundle, packed at ``path``; parts may be replaced."""
        made = dict(engines or {})
        places = {
            name: {form: f"segments/{name}.{SUFFIX[form]}" for form in forms}
            for name, forms in self.forms.items()
        }
        segments = {
            name: SegmentEntry(*self._tensors(name), self._content(name), places[name])
            for name in self.forms
        }
        nodes = changes.pop("nodes", self.nodes)
        manifest = make_manifest(nodes, segments, **{"engines": tuple(made), **changes})
        content = {
            places[name][form]: data
            for name, forms in self.forms.items()
            for form, data in forms.items()
        }
        content |= {entry.file: data for entry, data in made.items()}
        content[PROFILE] = pack_arrays(make_knowledge(nodes).to_arrays())
        content[CANARY] = pack_arrays(self.canary if canary is None else canary)
        pack(path, manifest, {**content, **(files or {})})
        return path

    def _content(self, name: str) -> str:
        return hashlib.sha256(self.traces[name]).hexdigest()

    def _tensors(self, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if name == "pioneer":
            return (IMAGES_SPEC,), (FEATURES_SPEC, LOGITS_SPEC)
        return (FEATURES_SPEC,), (LOGITS_SPEC,)


def _toy_nodes() -> tuple[Node, ...]:
    pioneer = Node(
        "pioneer", "pioneer", IMAGES, (FEATURES, LOGITS), tuple(TAIL_MS), SIDE, (), 10, 0.4
    )
    tails = [
        Node(name, name, FEATURES, (LOGITS,), (), SIDE, (QUALITY[name], 0.0), int(10 * ms), 0.5 + i)
        for i, (name, ms) in enumerate(TAIL_MS.items())
    ]
    return (pioneer, *(replace(tail, accuracy=QUALITY[tail.name]) for tail in tails))


def _forms(module: nn.Module, example: Tensor) -> dict[str, bytes]:
    first = example.dtype == torch.uint8
    names = (IMAGES, [FEATURES, LOGITS]) if first else (FEATURES, [LOGITS])
    return {TORCHSCRIPT: trace(module, example), ONNX: onnx_bytes(module, example, *names)}


@pytest.fixture(scope="session")
def toy() -> Toy:
    """The little network; traced once a session, never changed."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        modules: dict[str, nn.Module] = {"pioneer": PioneerNet().eval()}
        modules |= {name: TailNet(2 + i).eval() for i, name in enumerate(TAIL_MS)}
    example = torch.from_numpy(random_images(2))
    features = torch.rand(2, *FEATURES_SPEC.shape)
    forms = {
        name: _forms(module, example if name == "pioneer" else features)
        for name, module in modules.items()
    }
    made = Toy(modules, forms, {}, _toy_nodes())
    for batch in (1, MAX_BATCH):
        images = random_images(batch, seed=batch)
        outputs = {"pioneer": made.eager("pioneer", torch.from_numpy(images))}
        for name in TAIL_MS:
            outputs[name] = made.eager(name, outputs["pioneer"][FEATURES])
        made.canary[f"{IMAGES}/{batch}"] = images
        for name, tensors in outputs.items():
            for key, tensor in tensors.items():
                made.canary[f"{name}/{batch}/{key}"] = tensor.numpy()
    return made


@pytest.fixture
def toy_bundle(toy: Toy, tmp_path: Path) -> Path:
    """The little network's bundle."""
    return toy.pack(tmp_path / "toy.opa")


# --- invented networks on a virtual clock -------------------------------------------------------


@dataclass
class Machine:
    """A machine whose engines take as long as they are told, and whose load can change.

    A segment takes ``ms[name]`` for a full batch, half of that as overhead, times ``slowdown``.
    """

    clock: VirtualClock = field(default_factory=VirtualClock)
    ms: dict[str, float] = field(default_factory=lambda: {"pioneer": 1.0, **TAIL_MS})
    slowdown: float = 1.0
    outputs: dict[str, Any] = field(default_factory=dict)

    def cost(self, name: str, batch: int) -> float:
        """ms of one run, unloaded."""
        return self.ms[name] * (0.5 + 0.5 * batch / MAX_BATCH)

    def load(self, path: Path, **options: Any) -> opa_trt.Session:
        """The bundle at ``path`` on this machine."""
        backend = NullBackend(
            self.clock, lambda name, n: self.slowdown * self.cost(name, n), self.outputs
        )
        return opa_trt.load(path, backend=backend, clock=self.clock, **options)


@pytest.fixture
def machine() -> Machine:
    """A machine without load, at time 0."""
    return Machine()


@pytest.fixture
def invent(tmp_path: Path) -> Callable[..., Path]:
    """Packs a bundle for the null backend from nodes alone."""

    def packed(nodes: tuple[Node, ...], knowledge: Knowledge | None = None, **changes: Any) -> Path:
        segments, canary = {}, {}
        for node in nodes:
            specs = tuple(SPECS[name] for name in node.outputs)
            segments[node.segment] = SegmentEntry((SPECS[node.source],), specs, node.segment, {})
            for batch in (1, MAX_BATCH):
                canary[f"{IMAGES}/{batch}"] = random_images(batch)
                for spec in specs:
                    values = np.zeros((batch, *spec.shape), dtype=np.float32)
                    canary[f"{node.name}/{batch}/{spec.name}"] = values
        manifest = make_manifest(nodes, segments, backend="null", **changes)
        files = {
            PROFILE: pack_arrays((knowledge or make_knowledge(nodes)).to_arrays()),
            CANARY: pack_arrays(canary),
        }
        pack(tmp_path / "invented.opa", manifest, files)
        return tmp_path / "invented.opa"

    return packed
