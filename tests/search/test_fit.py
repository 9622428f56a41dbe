"""Archs to measure, the predictor that is trained on them, and how it is judged."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from opa_trt.errors import BackendUnavailable, ConfigError
from opa_trt.progress import Progress
from opa_trt.search.accuracy_predictor import read_accuracy
from opa_trt.search.fit import Fit, FitSettings, fit, split_pairs
from opa_trt.search.metrics import agreement, kendall, number
from opa_trt.search.sampling import draw_archs, every_arch
from opa_trt.supernet import Genome, MobileNetV3Space, Population

LITTLE: dict[str, Any] = {
    "classes": 2,
    "resolutions": (16, 20, 24),
    "depth_choices": (1, 2),
    "kernel_choices": (3, 5),
    "expand_choices": (1, 2),
    "stem_width": 8,
    "stage_widths": (8, 16),
    "stage_strides": (1, 2),
    "stage_act": ("relu", "h_swish"),
    "stage_squeeze_excite": (False, True),
    "head_width": 16,
    "feature_width": 16,
}
ARCHS = 3 * 20**2  # resolutions × (4 of depth 1 + 16 of depth 2) in each of two stages
SETTINGS = FitSettings(hidden=(32, 32), batch_size=16, most_epochs=60, patience=20)


@pytest.fixture(scope="module")
def genome() -> Genome:
    return MobileNetV3Space(**LITTLE).genome


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def truth(genome: Genome, population: Population) -> npt.NDArray[np.float64]:
    """An accuracy that every choice adds its share to."""
    codes = genome.one_hot(population)
    shares = np.random.default_rng(5).normal(size=codes.shape[1])
    accuracy: npt.NDArray[np.float64] = 0.8 + 0.02 * codes @ shares
    return accuracy


def fitted(genome: Genome, count: int = 300, **arguments: Any) -> Fit:
    population = draw_archs(genome, count, 0)
    arguments = {"settings": SETTINGS, **arguments}
    return fit(genome, population, truth(genome, population), **arguments)


# --- which archs --------------------------------------------------------------------------------


def rows(population: Population) -> set[bytes]:
    return {row.tobytes() for row in population}


@pytest.mark.parametrize("count", [20, 250, 400, ARCHS - 1])
def test_no_arch_is_drawn_twice(genome: Genome, count: int) -> None:
    assert len(rows(draw_archs(genome, count, 0))) == count


def test_smallest_and_largest_come_first(genome: Genome) -> None:
    first = [genome.arch(row) for row in draw_archs(genome, 20, 3)[:6]]
    sides, space = (16, 20, 24), genome.space
    assert first == [made(side) for side in sides for made in (space.smallest, space.largest)]


def test_resolutions_are_drawn_evenly(genome: Genome) -> None:
    counts = np.bincount(draw_archs(genome, 150, 1)[:, 0])
    assert counts.min() >= 40


def test_every_choice_is_drawn_evenly() -> None:
    genome = MobileNetV3Space(**{**LITTLE, "expand_choices": (1, 2, 4)}).genome
    population = draw_archs(genome, 400, 2)
    active = genome.active(population)
    for column, count in enumerate(genome.counts):
        shares = np.bincount(population[active[:, column], column], minlength=count)
        assert shares.min() > 0.7 * shares.mean()


def test_more_archs_begin_with_the_same() -> None:
    genome = MobileNetV3Space(**{**LITTLE, "stage_widths": (8, 8, 16), "stage_strides": (1, 1, 2),
                                 "stage_act": ("relu",) * 3,
                                 "stage_squeeze_excite": (False,) * 3}).genome  # fmt: skip
    few, many = draw_archs(genome, 100, 4), draw_archs(genome, 700, 4)
    assert np.array_equal(few, many[:100])


def test_another_seed_draws_others(genome: Genome) -> None:
    assert rows(draw_archs(genome, 100, 0)) != rows(draw_archs(genome, 100, 1))


def test_a_space_with_fewer_archs_gives_all(genome: Genome) -> None:
    population = draw_archs(genome, ARCHS + 1, 0)
    assert len(rows(population)) == ARCHS == len(population)
    assert np.array_equal(population, genome.canonical(population))


def test_every_arch_is_listed_or_none(genome: Genome) -> None:
    assert every_arch(genome, ARCHS - 1) is None
    listed = every_arch(genome, ARCHS)
    assert listed is not None
    drawn = genome.sample(60_000, np.random.default_rng(0))
    assert rows(listed) == rows(drawn)


# --- the split ----------------------------------------------------------------------------------


def test_a_fifth_is_held_out_and_a_tenth_of_the_rest_chooses() -> None:
    split = split_pairs(100, 0)
    assert [len(split.held_out), len(split.choosing), len(split.fitted)] == [20, 8, 72]
    together = np.concatenate([split.held_out, split.choosing, split.fitted])
    assert sorted(together.tolist()) == list(range(100))


def test_too_few_pairs(genome: Genome) -> None:
    with pytest.raises(ConfigError, match="19 archs") as caught:
        fitted(genome, 19)
    assert "at least 20" in caught.value.expected
    assert caught.value.remedy


# --- the fit ------------------------------------------------------------------------------------


def test_what_can_be_learned_is_learned(genome: Genome) -> None:
    found = fitted(genome)
    population = draw_archs(genome, 300, 0)
    measured = truth(genome, population)[found.split.held_out]
    scores = agreement(found.predicted, measured)
    assert scores.r2 > 0.9
    assert scores.tau > 0.8


def test_the_same_pairs_and_seed_give_the_same_predictor(genome: Genome) -> None:
    one, two = fitted(genome, 60), fitted(genome, 60)
    for left, right in zip(one.predictor.layers, two.predictor.layers, strict=True):
        assert all(map(np.array_equal, left, right))


def test_another_seed_gives_another_predictor(genome: Genome) -> None:
    one, two = fitted(genome, 60), fitted(genome, 60, seed=1)
    assert not np.array_equal(one.predictor.layers[0][0], two.predictor.layers[0][0])


def test_other_draws_are_left_alone(genome: Genome) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fitted(genome, 20)
    assert torch.get_rng_state().equal(before)


def test_it_begins_at_the_mean(genome: Genome) -> None:
    found = fitted(genome, 100, settings=FitSettings(hidden=(8,), most_epochs=0))
    mean = truth(genome, draw_archs(genome, 100, 0))[found.split.fitted].mean()
    assert found.epochs == 0
    assert found.predictor.layers[-1][1][0] == pytest.approx(mean, rel=1e-6)


def test_the_published_network_is_the_default(genome: Genome) -> None:
    found = fitted(genome, 20, settings=FitSettings(most_epochs=1))
    outputs = [weight.shape[0] for weight, _ in found.predictor.layers]
    assert outputs == [400, 400, 400, 1]
    assert found.predictor.inputs == int(genome.counts[genome.one_hot_columns].sum())


class Epochs(Progress):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def advance(self, done: int, note: str = "") -> None:
        self.heard.append(note)


def test_it_stops_when_it_gets_no_better_and_keeps_the_best(genome: Genome) -> None:
    heard, patience = Epochs(), 3
    settings = FitSettings(hidden=(16,), learning_rate=0.05, most_epochs=500, patience=patience)
    found = fitted(genome, 100, settings=settings, progress=heard)
    assert len(heard.heard) == found.epochs + patience < 500
    shorter = FitSettings(hidden=(16,), learning_rate=0.05, most_epochs=found.epochs)
    again = fitted(genome, 100, settings=shorter)
    assert np.array_equal(found.predicted, again.predicted)


def test_a_predictor_predicts_the_same_from_disk(genome: Genome, tmp_path: Path) -> None:
    found, population = fitted(genome, 60), draw_archs(genome, 60, 0)
    found.predictor.save(tmp_path / "p.safetensors")
    predict = read_accuracy(tmp_path / "p.safetensors").bind(genome)
    assert np.array_equal(predict(population[found.split.held_out]), found.predicted)


# --- how it is judged ---------------------------------------------------------------------------


def test_agreement_of_known_values() -> None:
    scores = agreement([1.0, 2.0, 3.0, 5.0], [1.0, 2.0, 4.0, 3.0])
    assert scores.rmse == pytest.approx(math.sqrt(5 / 4))
    assert scores.r2 == pytest.approx(1 - 5 / 5)
    assert scores.tau == pytest.approx(4 / 6)


def test_predicting_the_mean_explains_nothing() -> None:
    measured = np.array([0.7, 0.8, 0.9])
    scores = agreement(np.full(3, measured.mean()), measured)
    assert scores.rmse == pytest.approx(measured.std())
    assert scores.r2 == pytest.approx(0.0)
    assert math.isnan(scores.tau)
    assert scores.to_dict()["tau"] is None


def test_what_means_nothing_is_no_number() -> None:
    assert number(agreement([0.5, 0.6], [0.8, 0.8]).r2) is None
    assert number(0.25) == 0.25


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(BackendUnavailable) as caught:
        kendall([1, 2], [2, 1])
    assert "opa-trt[build]" in caught.value.remedy
