"""A training step of a super-network as one writes it in plain torch, and what can be added to it.

The peer of benchmarks/train.py. Images are cropped, mirrored and cut one by one in a data set's
``__getitem__`` and collated by torch's loader; memory format and precision are the defaults; the
loss is read every step. Each of ``THINGS`` but ``KEPT``, which is a matter of the process, is a
change of a few lines.
"""

from __future__ import annotations

import copy
import platform
import random
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from opa_trt.builder import read_recipe
from opa_trt.builder.sources import source_of
from opa_trt.device import CPU, CUDA
from opa_trt.machine import instruction_set
from opa_trt.progress import Progress
from opa_trt.supernet import Arch, Space, Supernet
from opa_trt.training.batches import Batches, Source
from opa_trt.training.data import Images
from opa_trt.training.optimizer import GRADIENT_NORM
from opa_trt.training.plan import Phase, Steps, TrainingPlan, phases
from opa_trt.training.precision import computing
from opa_trt.training.state import TOLD_EVERY

CHANNELS_LAST = "channels-last weights and inputs"
KEPT = "freed memory kept"
BFLOAT16 = "bfloat16"
TENSORS = "augmentation of whole batches"
SELDOM = f"the loss read every {TOLD_EVERY}th step"
THINGS = (CHANNELS_LAST, KEPT, BFLOAT16, TENSORS, SELDOM)

FULL, ELASTIC = "full", "elastic"
ENDLESS = 10**6  # steps of a phase
SEED = 0
TINY = {
    "depth_choices": [1],
    "stem_width": 8,
    "stage_widths": [8, 8],
    "stage_strides": [2, 2],
    "stage_act": ["relu", "h_swish"],
    "stage_squeeze_excite": [False, True],
    "head_width": 16,
    "feature_width": 16,
}


@dataclass(frozen=True)
class Setting:
    """What is trained: the network, the plan of one endless phase, how images become inputs."""

    space: Space
    plan: TrainingPlan
    source: Source
    device: str

    @property
    def phase(self) -> Phase:
        """The one phase of the plan."""
        (phase,) = phases(self.plan, self.space)
        return phase


def setting(step: str, batch: int, device: str = CPU, *, tiny: bool = False) -> Setting:
    """The recipe ``cifar10`` in its full phase, or in its last width phase, in float32.

    There is one resolution, that of the images. With ``tiny`` the network has but two stages.
    """
    recipe = read_recipe("cifar10")
    table = {**recipe.space, "resolutions": [recipe.data.size], **(TINY if tiny else {})}
    space = replace(recipe, space=table).make_space()
    depths, widths = (space.choice_counts.get(kind, 1) - 1 for kind in ("depth", "expand"))
    steps = Steps(0, 0, (0,) * depths, (0,) * widths)
    if step == FULL:
        steps = replace(steps, full=ENDLESS)
    else:
        steps = replace(steps, width=(*steps.width[1:], ENDLESS))
    plan = replace(
        recipe.training,
        batch_size=batch,
        steps=steps,
        precision="float32",
        checkpoint_every=ENDLESS,
    )
    return Setting(space, plan, source_of(recipe), device)


def left_out(device: str) -> dict[str, str]:
    """Those of ``THINGS`` that are no use on this machine, and why."""
    if device == CUDA:
        bfloat16 = torch.cuda.is_bf16_supported()
        missing = {KEPT: "the GPU's memory is torch's own to keep"}
        return missing if bfloat16 else missing | {BFLOAT16: "this GPU does not compute in it"}
    missing = {SELDOM: "nothing is pending on a CPU, so a loss is there when it is read"}
    if platform.libc_ver()[0] != "glibc":
        missing[KEPT] = "the C library is not glibc"
    if not {"avx512_bf16", "amx_bf16"} & set(instruction_set().split()):
        missing[BFLOAT16] = "this processor has neither AVX512-BF16 nor AMX, and computes it slowly"
    return missing


@cache
def random_images(side: int, classes: int, count: int) -> Images:
    """Seeded noise."""
    draw = np.random.default_rng(SEED)
    pixels = draw.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    names = tuple(f"class{place}" for place in range(classes))
    return Images(pixels, draw.integers(0, classes, count), names)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images that are augmented one by one, as the plan says, when they are asked for."""

    def __init__(self, images: Images, source: Source, plan: TrainingPlan) -> None:
        self.pixels, self.labels = torch.tensor(images.pixels), images.labels.tolist()
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (source.mean, source.std))
        self.plan = plan

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, side = self.pixels[index].float() / 255, self.pixels.shape[-1]
        if self.plan.flip and random.random() < 0.5:
            image = image.flip(-1)
        if shift := self.plan.shift:
            image = F.pad(image, (shift,) * 4, mode="replicate")
            top, left = random.randint(0, 2 * shift), random.randint(0, 2 * shift)
            image = image[:, top : top + side, left : left + side]
        if cutout := self.plan.cutout:
            image = image.clone()
            top, left = (random.randrange(side) - cutout // 2 for _ in range(2))
            rows, columns = (slice(max(0, at), at + cutout) for at in (top, left))
            image[:, rows, columns] = self.mean
        return (image - self.mean) / self.std, self.labels[index]


def one_by_one(setting: Setting, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of ``Pictures`` on the device: ``[N, 3, S, S] float32`` and ``[N] int64``."""
    pictures = Pictures(images, setting.source, setting.plan)
    loader = DataLoader(pictures, setting.plan.batch_size, shuffle=True, drop_last=True)
    while True:
        for inputs, labels in loader:
            yield inputs.to(setting.device), labels.to(setting.device)


def at_once(setting: Setting, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """The same by the library's ``Batches``."""
    plan, side = setting.plan, setting.source.size
    batches = Batches(images, setting.source, plan.batch_size, SEED, plan, setting.device)
    for step in range(ENDLESS):
        yield batches.batch(0, step, side)


def drawn(setting: Setting, step: int) -> list[Arch]:
    """The sub-networks of a step: those that the library's training draws."""
    space, phase = setting.space, setting.phase
    draw = np.random.default_rng([SEED, 0, step])
    side = int(draw.choice(space.resolutions))
    return [
        space.sample(draw, resolution=side, largest=phase.largest) for _ in range(phase.subnets)
    ]


class PlainTraining:
    """A network, its optimiser and, in the elastic phase, its teacher; with some of ``THINGS``."""

    def __init__(self, setting: Setting, things: Set[str]) -> None:
        self.plan, self.things = setting.plan, things
        self.net = Supernet(setting.space, seed=SEED).to(setting.device).train()
        if CHANNELS_LAST in things:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher = copy.deepcopy(self.net).eval() if setting.phase.elastic else None
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            setting.phase.rate / ENDLESS,  # the images are noise: there is nothing to learn
            self.plan.momentum,
            weight_decay=self.plan.weight_decay,
            nesterov=True,
        )

    def step(self, inputs: Tensor, labels: Tensor, archs: list[Arch]) -> Tensor:
        """One step of the optimiser; the mean loss, ``[] float32``."""
        if CHANNELS_LAST in self.things:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        soft = None
        if self.teacher is not None:
            largest = self.net.space.largest(archs[0].resolution)
            with torch.no_grad():
                soft = self._logits(self.teacher, inputs, largest).softmax(1)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=inputs.device)
        for arch in archs:
            loss = self._loss(self._logits(self.net, inputs, arch), labels, soft) / len(archs)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.net.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        return total

    def _loss(self, logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
        loss = F.cross_entropy(logits, labels, label_smoothing=self.plan.label_smoothing)
        if soft is None:
            return loss
        weight = self.plan.distill_weight
        return (loss + weight * F.cross_entropy(logits, soft)) / (1 + weight)

    def _logits(self, net: Supernet, inputs: Tensor, arch: Arch) -> Tensor:
        with computing(BFLOAT16 if BFLOAT16 in self.things else "float32", inputs.device):
            logits: Tensor = net(inputs, arch)
        return logits.float()


def train_plainly(setting: Setting, images: Images, things: Set[str], progress: Progress) -> None:
    """Train for the whole phase; ``progress`` hears of every step."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    training = PlainTraining(setting, things)
    batches = (at_once if TENSORS in things else one_by_one)(setting, images)
    read_every = TOLD_EVERY if SELDOM in things else 1
    progress.start(setting.phase.name, setting.phase.steps)
    for step in range(setting.phase.steps):
        inputs, labels = next(batches)
        loss, note = training.step(inputs, labels, drawn(setting, step)), ""
        if (step + 1) % read_every == 0:
            note = f"loss {loss.item():.3f}"
        progress.advance(step + 1, note)
