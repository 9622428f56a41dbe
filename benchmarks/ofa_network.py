"""Once-for-all's MobileNetV3 (width 1.0) with seeded random weights, as a bundle and as wholes.

Speed does not depend on what weights say, but on their being ordinary numbers: batch norm is
calibrated on noise, and the classifiers are scaled, so that activations and logits are those of a
trained network in size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import opa_trt
from opa_trt.builder.canary import canary_arrays
from opa_trt.builder.monolith import monolith
from opa_trt.builder.network import Cut, Pioneer
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
from opa_trt.errors import BundleError
from opa_trt.policies import Estimator, Knowledge, Predictor
from opa_trt.supernet import Arch, MobileNetV3Space, Supernet, published_space
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.fold import fold
from opa_trt.supernet.onnx_form import onnx_bytes
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.supernet.space import Space
from opa_trt.supernet.trace import content, trace, trace_bytes
from opa_trt.training.exit_head import exit_head
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
    Tree,
)

PIONEER, BACKEND = "pioneer", "torchscript"
STAGES = 2  # of the pioneer
HEAD_WIDTH = 128  # of its exit head
HIDDEN = (124, 124, 124)  # of the predictor
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CALIBRATION = 32  # images of noise
SPREAD = 2.0  # standard deviation of the logits
SUFFIX = {TORCHSCRIPT: "pt", ONNX: "onnx"}


@dataclass(frozen=True)
class Design:
    """Which network: its space, what it reads, how many tails, for which batches.

    ``tails`` are spread evenly in MACs from the smallest to the largest; one is the largest.
    """

    side: int
    max_batch: int
    buckets: tuple[int, ...]
    tails: int = 3
    space: Space = field(default_factory=lambda: published_space("mobilenet_v3", width=1.0))
    seed: int = 0

    @property
    def tail_names(self) -> tuple[str, ...]:
        """By ascending MACs."""
        return tuple(f"tail{place + 1}" for place in range(self.tails))

    @property
    def file_name(self) -> str:
        """Tells designs, and versions of what is packed, from each other."""
        code = Path(__file__).read_bytes()
        digest = hashlib.sha256(code + repr(self).encode()).hexdigest()[:8]
        return f"{self.side}px-{self.tails}tails-{digest}.opa"

    def images(self, batch: int) -> Tensor:
        """Seeded noise, ``[batch, 3, side, side] uint8``."""
        draw = np.random.default_rng([self.seed, batch])
        shape = (batch, 3, self.side, self.side)
        return torch.from_numpy(draw.integers(0, 256, shape, dtype=np.uint8))


@dataclass(frozen=True)
class Network:
    """A packed network."""

    design: Design
    path: Path

    def segment(self, name: str) -> Segment:
        """A node's segment, as the bundle holds it."""
        return Bundle(self.path).segment(name)

    def monolith(self, tail: str) -> Segment:
        """The plain sub-network of ``tail`` as one segment, without the exit head."""
        return monolith(self.segment(PIONEER), self.segment(tail), f"whole-{tail}")


def network(folder: Path, design: Design) -> Network:
    """The network of ``design`` in ``folder``, made if it is not there yet."""
    path = folder / design.file_name
    try:
        Bundle(path)
    except BundleError:
        Parts(design).pack(path)
    return Network(design, path)


def tiny(*, tails: int = 2, max_batch: int = 4) -> Design:
    """A network that is made in a second or two: for trials of the benchmarks themselves."""
    space = MobileNetV3Space(
        classes=10,
        width=0.25,
        depth_choices=(1,),
        stage_widths=(24, 40, 80),
        stage_strides=(2, 2, 2),
        stage_act=("relu", "relu", "h_swish"),
        stage_squeeze_excite=(False, True, False),
    )
    return Design(32, max_batch, (1, max_batch), tails, space)


def whole(design: Design, arch: Arch) -> nn.Module:
    """``arch`` as one folded module, from ``[N, 3, side, side] uint8`` images to logits."""
    net = Supernet(design.space, seed=design.seed).extract(arch)
    inputs = preprocess(design.side)(design.images(CALIBRATION))
    calibrate(net, [inputs])
    _spread(net, net(inputs))
    return fold(nn.Sequential(preprocess(design.side), net).eval())


def as_segment(
    name: str, module: nn.Module, example: Tensor, gives: tuple[TensorSpec, ...]
) -> Segment:
    """A folded module with its portable forms; ``example`` says what it reads."""
    images = example.dtype == torch.uint8
    dtype = str(example.dtype).removeprefix("torch.")
    reads = TensorSpec(IMAGES if images else FEATURES, tuple(example.shape[1:]), dtype)
    traced = trace(module, example)
    forms = {
        TORCHSCRIPT: trace_bytes(traced),
        ONNX: onnx_bytes(traced, example, reads.name, [spec.name for spec in gives]),
    }
    return Segment(name, (reads,), gives, forms, content(traced))


def preprocess(side: int) -> Preprocess:
    """ImageNet's normalisation, without resizing."""
    return Preprocess(side, side, MEAN, STD)


@dataclass(frozen=True)
class Parts:
    """A network as it is made: modules, segments, nodes."""

    design: Design

    @cached_property
    def cut(self) -> Cut:
        """The super-network, and where pioneer and tails meet."""
        return Cut(Supernet(self.design.space, seed=self.design.seed), STAGES)

    @cached_property
    def pioneer_arch(self) -> Arch:
        """The recipes' default choices, where the space has them; the smallest rest."""
        space = self.design.space
        usual = (
            ("depths", 2, space.depth_options[0]),
            ("kernel_sizes", 3, space.kernel_choices),
            ("expand_ratios", 4, space.expand_choices),
        )
        picked = {key: value for key, value, choices in usual if value in choices}
        smallest = space.smallest(self.design.side)
        return space.graft(space.arch(resolution=self.design.side, **picked), smallest, STAGES)

    @cached_property
    def archs(self) -> list[Arch]:
        """The tails' whole archs, by ascending MACs."""
        space, design = self.design.space, self.design
        draw = np.random.default_rng(design.seed)
        ends = [space.smallest(design.side), space.largest(design.side)]
        drawn = [space.sample(draw, resolution=design.side) for _ in range(20 * design.tails)]
        pool = [space.graft(self.pioneer_arch, arch, STAGES) for arch in (*ends, *drawn)]
        macs = np.array([space.macs(arch) for arch in pool])
        wanted = np.linspace(macs[1], macs[0], design.tails)[::-1]
        return [pool[int(np.abs(macs - target).argmin())] for target in wanted]

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The pioneer and every tail, folded."""
        pre, design = preprocess(self.design.side), self.design
        inputs = pre(design.images(CALIBRATION))
        trunk = self.cut.trunk(self.pioneer_arch)
        calibrate(trunk, [inputs])
        features = trunk(inputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(design.seed)
            head = exit_head(features.shape[1], HEAD_WIDTH, design.space.classes)
        head.eval().requires_grad_(False)
        calibrate(head, [features])
        _spread(head, head(features))
        made: dict[str, nn.Module] = {PIONEER: fold(Pioneer(pre, trunk, head).eval())}
        for name, arch in zip(design.tail_names, self.archs, strict=True):
            tail = self.cut.calibrated_tail(arch, [features])
            _spread(tail, tail(features))
            made[name] = fold(tail)
        return made

    @cached_property
    def segments(self) -> dict[str, Segment]:
        """Every node's segment in the forms that every backend here reads one of."""
        images, design = self.design.images(2), self.design
        features = self.modules[PIONEER](images)[0]
        given = TensorSpec(FEATURES, tuple(features.shape[1:]))
        logits = TensorSpec(LOGITS, (design.space.classes,))
        pioneer = as_segment(PIONEER, self.modules[PIONEER], images, (given, logits))
        tails = {
            name: as_segment(name, self.modules[name], features, (logits,))
            for name in design.tail_names
        }
        return {PIONEER: pioneer, **tails}

    def nodes(self, tails: Sequence[str]) -> tuple[Node, ...]:
        """The pioneer and some of the tails."""
        space, side = self.design.space, self.design.side
        known = dict(zip(self.design.tail_names, self.archs, strict=True))

        def code(arch: Arch) -> tuple[float, ...]:
            return tuple(map(float, space.encode(arch)))

        return (
            Node(
                PIONEER, PIONEER, IMAGES, (FEATURES, LOGITS), tuple(tails), side,
                code(self.pioneer_arch), self.cut.trunk_macs(self.pioneer_arch),
            ),
            *(
                Node(
                    name, name, FEATURES, (LOGITS,), (), side,
                    code(known[name]), self.cut.tail_macs(known[name]),
                )
                for name in tails
            ),
        )  # fmt: skip

    def pack(self, path: Path, tails: Sequence[str] = ()) -> None:
        """Write the bundle, with these tails alone if some are given."""
        path.parent.mkdir(parents=True, exist_ok=True)
        nodes = self.nodes(tails or self.design.tail_names)
        segments = {node.segment: self.segments[node.segment] for node in nodes}
        modules = {name: self.modules[name] for name in segments}
        images = segments[PIONEER].inputs[0]
        batches = (1, self.design.max_batch)
        canary = canary_arrays(Tree(nodes), modules, images, batches, self.design.seed)
        files = {
            f"segments/{name}.{SUFFIX[form]}": data
            for name, segment in segments.items()
            for form, data in segment.forms.items()
        }
        knowledge = random_knowledge(nodes, self.design.space.classes)
        arrays = {PROFILE: knowledge.to_arrays(), CANARY: canary}
        packed = {name: pack_arrays(values) for name, values in arrays.items()}
        pack(path, _manifest(self.design, nodes, segments), {**files, **packed})


def random_knowledge(nodes: Sequence[Node], classes: int, seed: int = 0) -> Knowledge:
    """An estimator and a predictor of the usual sizes that have learned nothing."""
    draw = np.random.default_rng(seed)
    codes = {node.name: np.array(node.code, dtype=np.float32) for node in nodes}
    sizes = (1 + len(nodes[0].code), *HIDDEN, 1)
    chances = draw.dirichlet(np.ones(classes), 2).astype(np.float32)
    layers = [
        draw.standard_normal(shape).astype(np.float32) / np.float32(shape[0] ** 0.5)
        for shape in pairwise(sizes)
    ]
    even = np.log(np.full(2, 0.5, np.float32))
    return Knowledge(
        {nodes[0].name: Estimator(even, np.log(np.maximum(chances, 1e-9)))},
        Predictor(tuple(layers), tuple(np.full(n, 0.1, np.float32) for n in sizes[1:])),
        codes,
    )


def _manifest(design: Design, nodes: tuple[Node, ...], segments: Mapping[str, Segment]) -> Manifest:
    recipe = {"name": "ofa-random"}
    return Manifest(
        name="ofa-random",
        version=opa_trt.__version__,
        recipe=recipe,
        recipe_sha256=hashlib.sha256(repr(recipe).encode()).hexdigest(),
        classes=tuple(f"class{i}" for i in range(design.space.classes)),
        images=ImageSpec(design.side, "uint8", MEAN, STD),
        nodes=nodes,
        segments={
            name: SegmentEntry(
                segment.inputs,
                segment.outputs,
                segment.content,
                {form: f"segments/{name}.{SUFFIX[form]}" for form in segment.forms},
            )
            for name, segment in segments.items()
        },
        engines=(),
        backend=BACKEND,
        plan={name: (PlanEntry(BACKEND, max_batch=design.max_batch),) for name in segments},
        max_batch=design.max_batch,
        threads=torch.get_num_threads(),
        buckets=design.buckets,
        files={},
    )


@torch.no_grad()
def _spread(module: nn.Module, logits: Tensor) -> None:
    """Scale the last linear layer so that logits spread as a trained network's do."""
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    factor = SPREAD / float(logits.std())
    last.weight *= factor
    last.bias *= factor
