"""Little spaces of every kind, random predictors for them, problems that note what they judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from opa_trt.search.accuracy_predictor import AccuracyPredictor
from opa_trt.search.additive import OperatorCost
from opa_trt.search.problem import Problem, pose
from opa_trt.supernet import Genome, MobileNetV3Space, Population, ProxylessSpace, ResNet50DSpace
from opa_trt.supernet.operators import Operator
from opa_trt.supernet.space import Space

SHARED = Path(__file__).parents[3] / "shared" / "data" / "ofa"

TINY: dict[str, Space] = {
    "mobilenet_v3": MobileNetV3Space(
        classes=3,
        resolutions=(16, 32),
        depth_choices=(1, 2),
        kernel_choices=(3, 5),
        expand_choices=(2, 3),
        stem_width=8,
        stage_widths=(8, 16),
        stage_strides=(1, 2),
        stage_act=("relu", "h_swish"),
        stage_squeeze_excite=(False, True),
        head_width=24,
        feature_width=32,
    ),
    "proxyless": ProxylessSpace(
        classes=3,
        resolutions=(16, 20, 32),
        depth_choices=(2, 3),
        kernel_choices=(3, 5),
        expand_choices=(2, 4),
        width=1.0,
        stem_width=8,
        first_width=8,
        stage_widths=(16, 24),
        stage_strides=(2, 1),
        feature_width=32,
    ),
    "resnet50d": ResNet50DSpace(
        classes=3,
        resolutions=(32, 64),
        expand_choices=(0.25, 0.5),
        width_choices=(0.5, 1.0),
        base_depths=(1, 1),
        extra_depths=(0, 1),
        stem_width=32,
        stage_widths=(32, 64),
        stage_strides=(1, 2),
    ),
}

Spy = Callable[[Problem], "Noted"]


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest) -> Space:
    """A little space of each kind."""
    return TINY[request.param]


@pytest.fixture
def mobile() -> Space:
    """The little MobileNetV3 space."""
    return TINY["mobilenet_v3"]


@pytest.fixture
def lonely(mobile: Space) -> Space:
    """A space of one arch."""
    choices: dict[str, Any] = {"depth_choices": (1,), "kernel_choices": (3,)}
    return replace(mobile, resolutions=(16,), expand_choices=(2,), **choices)


def _every_row(genome: Genome) -> Population:
    raw = np.array(list(product(*map(range, genome.counts))), dtype=np.int16)
    return np.unique(genome.canonical(raw), axis=0)


@pytest.fixture
def every_row() -> Callable[[Genome], Population]:
    """``[A, G]``: every arch of a little genome, once."""
    return _every_row


def _bumpy(seed: int) -> OperatorCost:
    """Costs of operators that follow no order: larger ones are often cheaper."""
    known: dict[tuple[str, int], float] = {}
    draw = np.random.default_rng(seed)

    def cost(operator: Operator, resolution: int) -> float:
        return known.setdefault((operator.key, resolution), float(draw.random()))

    return cost


@pytest.fixture
def bumpy() -> Callable[[int], OperatorCost]:
    """Makes costs (0 to 1) that are random for each operator and resolution."""
    return _bumpy


def _predictor(space: Space, /, seed: int = 0, **changes: Any) -> AccuracyPredictor:
    draw = np.random.default_rng(seed)
    genome = space.genome
    inputs = genome.one_hot(np.zeros((1, len(genome)), dtype=np.int16)).shape[1]
    widths, layers = [inputs, 24, 8, 1], []
    for before, after in pairwise(widths):
        weight = draw.normal(0, before**-0.5, (after, before)).astype(np.float32)
        layers.append((weight, draw.normal(0, 0.1, after).astype(np.float32)))
    last, _ = layers[-1]
    layers[-1] = (0.1 * last, np.array([0.7], dtype=np.float32))
    values = {"layers": layers, "resolutions": space.resolutions, "space": space, **changes}
    return AccuracyPredictor("random", **values)


@pytest.fixture
def predictor() -> Callable[..., AccuracyPredictor]:
    """Makes a random predictor of accuracies around 0.7 for a space."""
    return _predictor


@pytest.fixture
def problem_of() -> Callable[..., Problem]:
    """Makes the problem of a space with a random predictor and MACs."""

    def make(space: Space, seed: int = 0) -> Problem:
        return pose(space, _predictor(space, seed), None)

    return make


@pytest.fixture
def problem(mobile: Space, problem_of: Callable[..., Problem]) -> Problem:
    """That of the little MobileNetV3 space."""
    return problem_of(mobile)


@dataclass
class Noted:
    """A problem, and all that its accuracy was asked for."""

    problem: Problem
    rows: list[Population] = field(default_factory=list)

    def judged(self) -> Population:
        """``[N, G]``, canonical, in the order of the questions."""
        return self.problem.genome.canonical(np.concatenate(self.rows))

    def best(self, target: float) -> float:
        """The highest accuracy of any that was judged and meets ``target``."""
        rows = self.judged()
        good = self.problem.accuracy(rows)[self.problem.cost(rows) <= target]
        return float(good.max())


@pytest.fixture
def spy() -> Spy:
    """Makes a problem note what it judges: what it returns holds the problem to search."""

    def make(problem: Problem) -> Noted:
        noted = Noted(problem)

        def accuracy(population: Population) -> npt.NDArray[np.float32]:
            noted.rows.append(population.copy())
            return problem.accuracy(population)

        noted.problem = replace(problem, accuracy=accuracy)
        return noted

    return make


@pytest.fixture
def optimum(every_row: Callable[[Genome], Population]) -> Callable[[Problem, float], float]:
    """The highest accuracy of any arch that meets a target, by looking at all."""

    def find(problem: Problem, target: float) -> float:
        rows = every_row(problem.genome)
        return float(problem.accuracy(rows)[problem.cost(rows) <= target].max())

    return find


def _operators(space: Space, resolution: int) -> list[Operator]:
    genome, found = space.genome, []
    for term in space.terms():
        choices = [genome.genes[gene].choices for gene in term.genes[1:]]
        for values in product((resolution,), *choices):
            found += term.operators(*values)
    return list(dict.fromkeys(found))


@pytest.fixture
def operators_at() -> Callable[[Space, int], list[Operator]]:
    """Every operator that a space may run at a resolution, once."""
    return _operators


@pytest.fixture
def published() -> Callable[[str], Path]:
    """Finds a file of OFA's among the shared data, or skips: a clone has no such folder."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"shared/data/ofa/{name} is not on this machine")
        return SHARED / name

    return find
