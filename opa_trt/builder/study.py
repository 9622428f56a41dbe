"""Which pioneer foretells the deep sub-networks best, and what it costs (OPA, III)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from opa_trt.builder.entries import Shape, check_sides
from opa_trt.builder.exit_heads import CANDIDATE_CALIBRATION, Lesson, learn_head, make_lesson
from opa_trt.builder.fit import draw_rows
from opa_trt.builder.foretelling import Foretold, correlations, foretell, pairwise
from opa_trt.builder.measured import read_splits, read_weights
from opa_trt.builder.network import Cut, Pioneer, logits_macs, run_batches
from opa_trt.builder.pooling import Pools, as_input
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.study_shapes import draw_shapes
from opa_trt.builder.tails import candidates
from opa_trt.clock import Clock, MonotonicClock
from opa_trt.progress import Progress
from opa_trt.supernet import Arch, Supernet
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.fold import fold
from opa_trt.supernet.preprocess import Preprocess

Rights = npt.NDArray[np.bool_]
LATENCY = "median ms of torch eager, batch norm folded, preprocessing and exit head included"


@dataclass(frozen=True)
class StudyPlan:
    """How much is tried.

    Args:
        counts: candidates of one stage, of two, … (the paper's by default).
        deep: sub-networks whose accuracy is foretold, evenly by the logarithm of MACs.
        groups: of the recipe's group size; three quarters are fitted to, the others judge.
        rounds: runs of each candidate in turn, of which the median latency counts.
    """

    counts: tuple[int, ...] = (7, 13, 20)
    deep: int = 6
    groups: int = 400
    rounds: int = 15


QUICK = StudyPlan(counts=(3, 4, 3), deep=4, groups=200, rounds=7)


@dataclass(frozen=True)
class Subject:
    """A network that was measured: what it is, and the share of images that it is right on."""

    arch: str
    macs: int
    ms: float
    accuracy: float


@dataclass(frozen=True)
class Candidate:
    """A pioneer that might be taken, and how well it foretells the deep sub-networks."""

    shape: Shape
    subject: Subject
    foretold: Foretold


@dataclass(frozen=True)
class Study:
    """What was found.

    Args:
        candidates: by stages, then MACs.
        deep: the deep sub-networks, by ascending MACs.
        pairwise: ``[D][D]`` R² of each deep sub-network (row) as one foretells another (column).
        correlation: ``[D][D]`` of their accuracies over all groups.
        chosen: place of the candidate to take.
        facts: resolution, images, groups and how latency was measured.
    """

    candidates: tuple[Candidate, ...]
    deep: tuple[Subject, ...]
    pairwise: list[list[float]]
    correlation: list[list[float]]
    chosen: int
    facts: dict[str, Any]

    @property
    def best(self) -> Candidate:
        """The one with the highest R²."""
        return max(self.candidates, key=lambda one: one.foretold.r2)

    @property
    def taken(self) -> Candidate:
        """The one to take."""
        return self.candidates[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **self.facts,
            "choice": asdict(self.taken.shape),
            "chosen": self.chosen,
            "candidates": [
                asdict(one.shape) | asdict(one.subject) | asdict(one.foretold)
                for one in self.candidates
            ],
            "deep": [asdict(one) for one in self.deep],
            "pairwise": self.pairwise,
            "correlation": self.correlation,
        }

    def line(self) -> str:
        """What is taken, in a line."""
        shape, best, own = self.taken.shape, self.best.foretold, self.taken
        return (
            f"{shape} of {len(self.candidates)} candidates: R² {own.foretold.r2:.2f} at "
            f"{own.subject.ms:.1f} ms eager, batch {self.facts['batch']} (the best: "
            f"{best.r2:.2f}, {best.low:.2f} to {best.high:.2f})"
        )


def study_pioneers(
    supernet: Supernet,
    pools: Pools,
    plan: StudyPlan,
    clock: Clock,
    progress: Progress | None = None,
) -> Study:
    """Measure candidates and deep sub-networks at the recipe's largest resolution.

    All are right or wrong on the images that tails are chosen on; their groups share images, the
    fitted groups and the judging ones too. The recipe's own pioneer is one of the candidates.

    Args:
        supernet: the weights.
        pools: the recipe's images.
        plan: how much is tried.
        clock: what tells the time.
        progress: hears of the stage ``study``.

    Raises:
        RecipeError: no candidate has room for the exits that the recipe asks for.
    """
    recipe, progress = pools.recipe, progress or Progress()
    side = max(recipe.pioneer.resolutions or supernet.space.resolutions)
    shapes = draw_shapes(supernet.space, recipe, plan.counts, side)
    archs = candidates(
        Cut(supernet, 0), supernet.space.largest(side), max(2, plan.deep), recipe.seed
    )
    progress.start("study", len(archs) + len(shapes))
    bench = _Bench(supernet, pools, side, progress)
    deep = [bench.deep(arch) for arch in archs]
    tried = [bench.candidate(shape) for shape in shapes]
    batch = min(recipe.fit.group_size, recipe.compile.max_batch)
    ms = bench.latency([one.module for one in (*deep, *tried)], batch, plan.rounds, clock)
    subjects = [one.subject(each) for one, each in zip((*deep, *tried), ms, strict=True)]
    rows = draw_rows(
        pools.choosing_pool[2], groups=plan.groups, size=recipe.fit.group_size, seed=recipe.seed
    )
    truth = _by_group([one.right for one in deep], rows)
    told = _by_group([one.right for one in tried], rows)
    found = [foretell(one, truth, seed=recipe.seed) for one in told]
    made = tuple(map(Candidate, shapes, subjects[len(deep) :], found))
    facts = {
        "resolution": side, "images": len(pools.choosing_pool[1]), "groups": plan.groups,
        "group_size": recipe.fit.group_size, "seed": recipe.seed, "batch": batch,
        "threads": torch.get_num_threads(), "latency": LATENCY,
    }  # fmt: skip
    return Study(
        made, tuple(subjects[: len(deep)]), pairwise(truth, seed=recipe.seed), correlations(truth),
        choose(made), facts,
    )  # fmt: skip


def study_recipe(
    recipe: Recipe,
    data: Path | None,
    plan: StudyPlan,
    *,
    skip_bad_images: bool = False,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> Study:
    """``study_pioneers`` of a recipe's images and checkpoint.

    Args:
        recipe: its checkpoint must exist.
        data: the image folder, where the recipe reads one.
        plan: how much is tried.
        skip_bad_images: leave out images that cannot be decoded.
        clock: what tells the time; the machine's by default.
        progress: hears of the stages ``data`` and ``study``.

    Raises:
        OpaError: DataError, CheckpointError, RecipeError …
    """
    progress = progress or Progress()
    splits = read_splits(recipe, data, skip_bad_images, progress)
    supernet = read_weights(recipe).supernet
    check_sides(supernet.space, recipe.pioneer.resolutions)
    found = study_pioneers(
        supernet, Pools(recipe, splits), plan, clock or MonotonicClock(), progress
    )
    progress.finish("study", found.line())
    return found


def choose(found: Sequence[Candidate]) -> int:
    """Of the candidates whose R² lies within the interval of the best one's, the fastest's place;
    among equally fast ones that of the fewest MACs."""
    best = max(one.foretold.r2 for one in found)
    low = next(one.foretold.low for one in found if one.foretold.r2 == best)
    near = [place for place, one in enumerate(found) if one.foretold.r2 >= min(low, best)]
    return min(near, key=lambda place: (found[place].subject.ms, found[place].subject.macs))


def _by_group(rights: Sequence[Rights], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """``[networks, groups]`` accuracy on every group."""
    right = np.stack(rights)
    found: npt.NDArray[np.float64] = right[:, rows].mean(axis=2)
    return found


@dataclass(frozen=True)
class _Tried:
    """A network in one piece, and which images it is right on."""

    arch: Arch
    macs: int
    module: nn.Module
    right: Rights

    def subject(self, ms: float) -> Subject:
        return Subject(str(self.arch), self.macs, ms, float(self.right.mean()))


class _Bench:
    """Calibrates, trains and measures one network after the other on the same images."""

    def __init__(self, supernet: Supernet, pools: Pools, side: int, progress: Progress) -> None:
        self._supernet, self._pools, self._side = supernet, pools, side
        self._progress, self._done = progress, 0
        self._calibration = pools.calibration(side, CANDIDATE_CALIBRATION)
        self._inputs, self._labels = pools.choosing_inputs(side)
        self._lesson: Lesson = make_lesson(supernet, pools, side)

    def deep(self, arch: Arch) -> _Tried:
        """A whole sub-network."""
        module = self._supernet.extract(arch)
        calibrate(module, self._calibration)
        macs = self._supernet.space.macs(arch)
        return self._tried(arch, macs, nn.Sequential(self._preprocess(), module), module)

    def candidate(self, shape: Shape) -> _Tried:
        """A pioneer with its exit head."""
        arch = shape.arch(self._supernet.space, self._side)
        cut = Cut(self._supernet, shape.stages)
        trunk = cut.trunk(arch)
        calibrate(trunk, self._calibration)
        features = run_batches(trunk, self._lesson.inputs)
        head = learn_head(self._pools.recipe, self._lesson, features)
        macs = cut.trunk_macs(arch) + logits_macs(head, features[0])
        module = Pioneer(self._preprocess(), trunk, head)
        return self._tried(arch, macs, module, nn.Sequential(trunk, head))

    def latency(
        self, modules: Sequence[nn.Module], batch: int, rounds: int, clock: Clock
    ) -> list[float]:
        """Median ms of each on ``batch`` images, all in turn; their first runs do not count."""
        pixels = np.resize(self._pools.splits.train.pixels[:batch], (batch, 3, *self._shape()))
        images = as_input(pixels, self._pools.recipe.data.float_images)
        folded = [fold(module.eval()) for module in modules]
        times = np.empty((rounds + 1, len(folded)))
        with torch.no_grad():
            for row in times:
                for place, module in enumerate(folded):
                    begun = clock.now_ms()
                    module(images)
                    row[place] = clock.now_ms() - begun
        found: list[float] = np.median(times[1:], axis=0).tolist()
        return found

    def _tried(self, arch: Arch, macs: int, module: nn.Module, plain: nn.Module) -> _Tried:
        logits: Tensor = torch.cat(run_batches(plain.eval(), self._inputs))
        self._done += 1
        self._progress.advance(self._done, str(arch))
        return _Tried(arch, macs, module, (logits.argmax(1) == self._labels).numpy())

    def _preprocess(self) -> Preprocess:
        data = self._pools.recipe.data
        return Preprocess(
            data.size, self._side, data.mean, data.std, bytes_in=not data.float_images
        )

    def _shape(self) -> tuple[int, int]:
        size = self._pools.recipe.data.size
        return size, size
