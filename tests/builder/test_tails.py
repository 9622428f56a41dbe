"""Candidates over the pioneer, their fronts, what a search picks, and which become tails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.builder.network import Cut, run_batches
from opa_trt.builder.picks import (
    STEPS,
    Provisional,
    Setting,
    fit_provisional,
    requirements,
    try_picks,
)
from opa_trt.builder.tails import Trials, candidates, choose, pareto_layers
from opa_trt.policies import Predictor
from opa_trt.progress import Progress
from opa_trt.search.online import OnlineSearch, Tails
from opa_trt.supernet import Arch, MobileNetV3Space, Supernet
from opa_trt.supernet.calibration import calibrate

SPACE = MobileNetV3Space(
    classes=3,
    resolutions=(16, 20),
    depth_choices=(1, 2),
    kernel_choices=(3, 5),
    expand_choices=(1, 2),
    stem_width=8,
    stage_widths=(8, 8, 16),
    stage_strides=(1, 2, 2),
    stage_act=("relu", "relu", "h_swish"),
    stage_squeeze_excite=(False, False, True),
    head_width=16,
    feature_width=16,
)
PIONEER = SPACE.arch(resolution=20, depths=1, kernel_sizes=5, expand_ratios=2)

Points = list[tuple[int, float]]

POINTS = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 12).map(lambda n: n / 12)), min_size=1, max_size=14
)


@pytest.fixture(scope="module")
def cut() -> Cut:
    return Cut(Supernet(SPACE, seed=4), stages=1)


def dominates(one: tuple[int, float], other: tuple[int, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def layers_by_force(points: Points) -> list[int]:
    """Peel off what nothing that is left dominates, again and again."""
    layers, layer = [-1] * len(points), 0
    while -1 in layers:
        left = [i for i, found in enumerate(layers) if found == -1]
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        for i in front:
            layers[i] = layer
        layer += 1
    return layers


def split(points: Points) -> tuple[Sequence[int], Sequence[float]]:
    return [macs for macs, _ in points], [accuracy for _, accuracy in points]


# --- Pareto fronts ------------------------------------------------------------------------------


@given(POINTS.map(lambda points: list(dict.fromkeys(points))))
def test_layers_are_those_found_by_force(points: Points) -> None:
    assert pareto_layers(*split(points)) == layers_by_force(points)


def test_neither_of_two_equal_candidates_dominates_the_other() -> None:
    assert pareto_layers([5, 5], [0.5, 0.5]) == [0, 0]


@given(POINTS, st.randoms(use_true_random=False))
def test_layers_do_not_depend_on_the_order(points: Points, shuffle: object) -> None:
    points = list(dict.fromkeys(points))
    order = list(range(len(points)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    layers = pareto_layers(*split(points))
    assert pareto_layers(*split([points[i] for i in order])) == [layers[i] for i in order]


# --- the choice ---------------------------------------------------------------------------------


@given(POINTS, st.integers(1, 16))
def test_as_many_are_chosen_as_asked_for_and_as_there_are(points: Points, count: int) -> None:
    chosen = choose(*split(points), count)
    assert len(chosen) == len(set(chosen)) == min(count, len(points))


@given(POINTS, st.integers(1, 16))
def test_the_chosen_come_by_ascending_macs(points: Points, count: int) -> None:
    macs, accuracy = split(points)
    found = [macs[i] for i in choose(macs, accuracy, count)]
    assert found == sorted(found)


@given(POINTS, st.integers(1, 16))
def test_no_layer_is_touched_before_the_better_ones_are_used_up(points: Points, count: int) -> None:
    macs, accuracy = split(points)
    layers, chosen = pareto_layers(macs, accuracy), set(choose(macs, accuracy, count))
    deepest = max(layers[i] for i in chosen)
    assert all(i in chosen for i, layer in enumerate(layers) if layer < deepest)


@given(POINTS, st.integers(2, 16))
def test_the_fronts_two_ends_are_always_kept(points: Points, count: int) -> None:
    macs, accuracy = split(points)
    front = [i for i, layer in enumerate(pareto_layers(macs, accuracy)) if layer == 0]
    ends = {min(front, key=macs.__getitem__), max(front, key=macs.__getitem__)}
    assert ends <= set(choose(macs, accuracy, count))


def test_a_single_tail_is_the_fronts_most_accurate() -> None:
    assert choose([1, 2, 3], [0.1, 0.5, 0.9], 1) == [2]


def test_a_long_front_is_thinned_evenly_by_accuracy() -> None:
    accuracy = [0.10, 0.11, 0.12, 0.50, 0.88, 0.89, 0.90]
    assert choose(range(7), accuracy, 3) == [0, 3, 6]


def test_the_next_front_fills_up_the_first() -> None:
    #        front: 0, 2   next: 1, 3
    assert choose([1, 2, 3, 4], [0.5, 0.4, 0.9, 0.8], 3) == [0, 2, 3]


# --- candidates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 10, 25])
def test_there_are_as_many_candidates_as_asked_for(cut: Cut, count: int) -> None:
    assert len(set(candidates(cut, PIONEER, count, seed=0))) == count


@pytest.mark.parametrize("count", [1, 2])
def test_there_are_as_few_candidates_as_asked_for(cut: Cut, count: int) -> None:
    assert len(candidates(cut, PIONEER, count, seed=0)) == count


def test_a_small_space_gives_all_that_it_has(cut: Cut) -> None:
    late = Cut(cut.supernet, stages=2)  # 4 archs of depth 1, 16 of depth 2
    assert len(set(candidates(late, PIONEER, 40, seed=0))) == 20


def test_every_candidate_begins_with_the_pioneer(cut: Cut) -> None:
    for arch in candidates(cut, PIONEER, 8, seed=0):
        assert SPACE.graft(arch, PIONEER, 1) == SPACE.graft(PIONEER, PIONEER, 1)


def test_the_smallest_and_the_largest_tail_are_candidates(cut: Cut) -> None:
    found = candidates(cut, PIONEER, 6, seed=0)
    assert found[0] == SPACE.graft(PIONEER, SPACE.smallest(20), 1)
    assert found[-1] == SPACE.graft(PIONEER, SPACE.largest(20), 1)


def test_candidates_come_by_ascending_macs(cut: Cut) -> None:
    macs = [cut.tail_macs(arch) for arch in candidates(cut, PIONEER, 12, seed=0)]
    assert macs == sorted(macs)


def test_a_seed_draws_the_same_candidates(cut: Cut) -> None:
    assert candidates(cut, PIONEER, 9, seed=5) == candidates(cut, PIONEER, 9, seed=5)


def test_another_seed_draws_others(cut: Cut) -> None:
    assert candidates(cut, PIONEER, 9, seed=5) != candidates(cut, PIONEER, 9, seed=6)


def test_candidates_are_spread_evenly_over_log_macs(cut: Cut) -> None:
    sizes = np.log([cut.tail_macs(arch) for arch in candidates(cut, PIONEER, 8, seed=0)])
    gaps = [after - before for before, after in pairwise(sizes)]
    assert max(gaps) < 1.5 * (sizes[-1] - sizes[0]) / len(gaps)


# --- their accuracy -----------------------------------------------------------------------------


class Counter(Progress):
    def __init__(self) -> None:
        self.done: list[int] = []

    def advance(self, done: int, note: str = "") -> None:
        self.done.append(done)


def accuracy_alone(
    cut: Cut, arch: Arch, calibration: list[torch.Tensor], batch: torch.Tensor, labels: torch.Tensor
) -> float:
    """The whole network's accuracy, its tail calibrated on the frozen trunk's features."""
    network = cut.supernet.extract(arch)
    trunk, tail = network[:2], network[2:]
    calibrate(trunk, calibration)
    calibrate(tail, run_batches(trunk, calibration))
    with torch.no_grad():
        return float((network(batch).argmax(1) == labels).float().mean())


def test_accuracy_is_that_of_the_calibrated_network(cut: Cut) -> None:
    draw = torch.Generator().manual_seed(3)
    archs = [SPACE.graft(PIONEER, SPACE.smallest(20), 1), SPACE.graft(PIONEER, SPACE.largest(), 1)]
    calibration = [torch.randn(16, 3, 20, 20, generator=draw) for _ in range(2)]
    batch = torch.randn(40, 3, 20, 20, generator=draw)
    labels = torch.randint(0, 3, (40,), generator=draw)
    trunk = cut.trunk(PIONEER)
    calibrate(trunk, calibration)
    counter = Counter()
    trials = Trials(
        cut,
        run_batches(trunk, calibration),
        run_batches(trunk, list(torch.split(batch, 25))),
        labels,
        counter,
    )
    trials.measure(archs[:1])
    trials.measure(archs[1:])
    wanted = [accuracy_alone(cut, arch, calibration, batch, labels) for arch in archs]
    assert trials.accuracy == pytest.approx(wanted, abs=1e-6)
    assert trials.macs == [cut.tail_macs(arch) for arch in archs]
    assert trials.archs == archs
    assert counter.done == [1, 2]


# --- what a search picks ------------------------------------------------------------------------

SIZE, IMAGES = 10, 60


class Invented(Trials):
    """Trials without a network: tails are right on the more images, the larger their kernels are.

    Attributes:
        asked: the archs of every call of ``measure``.
    """

    def __init__(self, cut: Cut) -> None:
        super().__init__(cut, [], [], torch.zeros(IMAGES), Progress())
        self.asked: list[list[Arch]] = []

    def measure(self, archs: Iterable[Arch]) -> None:
        self.asked.append(list(archs))
        for arch in self.asked[-1]:
            share = 0.4 + 0.5 * merit(arch)
            self.archs.append(arch)
            self.right.append(np.arange(IMAGES) % 10 < round(10 * share))


def merit(arch: Arch) -> float:
    """0 to 1, by the kernel sizes in the last two stages (3 or 5)."""
    kernels = [kernel for stage in arch.kernel_sizes[1:] for kernel in stage]
    return (np.mean(kernels) - 3) / 2


@pytest.fixture(scope="module")
def setting() -> Setting:
    draw = np.random.default_rng(5)
    logits = draw.standard_normal((IMAGES, 3)).astype(np.float32)
    right = draw.random(IMAGES) < 0.6
    return Setting(PIONEER, 100, logits, right, np.arange(IMAGES) % 4, SIZE, seed=0)


@pytest.fixture(scope="module")
def tried(cut: Cut, setting: Setting) -> tuple[Invented, list[int]]:
    """Ten tails evenly by MACs and six that were picked; and the picks of all."""
    made = Invented(cut)
    made.measure(candidates(cut, PIONEER, 10, seed=0))
    return made, try_picks(made, setting, 6)


def test_requirements_go_evenly_from_the_fewest_macs_to_the_most() -> None:
    found = requirements([300.0, 7.0, 20.0])
    assert (len(found), found[0], found[-1]) == (STEPS, 7.0, 300.0)
    ratios = [after / before for before, after in pairwise(found)]
    assert ratios == pytest.approx([ratios[0]] * (STEPS - 1))


def test_the_provisional_predictor_knows_what_was_tried(
    tried: tuple[Invented, list[int]], setting: Setting
) -> None:
    trials, picks = tried
    found = fit_provisional(trials, setting)
    codes = np.stack([SPACE.encode(arch) for arch in trials.archs])
    predicted = found.predictor.accuracies(0.6, codes)
    assert np.corrcoef(predicted, trials.accuracy)[0, 1] > 0.9
    assert ((found.estimates >= 0) & (found.estimates <= 1)).all()
    assert found.choices(trials.macs, codes) == picks
    assert sum(picks) == STEPS * len(found.estimates)


def test_picks_are_tried_before_they_are_counted(tried: tuple[Invented, list[int]]) -> None:
    trials, picks = tried
    first, second = trials.asked
    assert len(second) == len(set(second)) == 6
    assert not set(first) & set(second)
    assert all(SPACE.graft(PIONEER, arch, 1) == arch for arch in second)
    assert len(picks) == len(trials.archs) == 16


def test_picks_are_what_accuracy_depends_on(tried: tuple[Invented, list[int]]) -> None:
    spread, picked = (np.mean([merit(arch) for arch in archs]) for archs in tried[0].asked)
    assert picked > spread


def test_a_space_whose_archs_were_all_tried_has_no_more_picks(cut: Cut, setting: Setting) -> None:
    late = Invented(Cut(cut.supernet, stages=2))
    late.measure(candidates(late.cut, PIONEER, 18, seed=0))
    picks = try_picks(late, setting, 10)  # of 20
    assert len(picks) == len(set(late.archs)) == 20


def test_the_same_seed_picks_the_same(cut: Cut, setting: Setting) -> None:
    found = []
    for _ in range(2):
        trials = Invented(cut)
        trials.measure(candidates(cut, PIONEER, 8, seed=0))
        found.append((try_picks(trials, setting, 4), trials.archs))
    assert found[0] == found[1]


def straight() -> Predictor:
    """An accuracy that is what the code says first, whatever the group."""
    weight = np.zeros((1 + SPACE.encoding_size, 1), dtype=np.float32)
    weight[1] = 1.0
    return Predictor((weight,), (np.zeros(1, np.float32),))


def test_the_best_that_fits_is_counted_for_every_requirement() -> None:
    codes = np.zeros((3, SPACE.encoding_size), dtype=np.float32)
    codes[:, 0] = (0.5, 0.4, 0.9)  # the second costs more and is worse: it is never taken
    estimates = np.array([0.3, 0.3, 0.7], dtype=np.float32)
    found = Provisional(straight(), estimates).choices([1.0, 10.0, 100.0], codes)
    assert found == [3 * (STEPS - 1), 0, 3]


def test_the_search_takes_of_every_requirement_the_most_often_taken_first(cut: Cut) -> None:
    tails = Tails(SPACE, PIONEER, 1)
    searches = [OnlineSearch(tails, straight(), candidates=10, seed=seed) for seed in range(3)]
    found = Provisional(straight(), np.array([0.2, 0.2, 0.8], np.float32)).search(searches)
    assert len(found) == len(set(found)) <= STEPS  # content does not count: one a requirement
    assert SPACE.macs(found[0]) == searches[0].table_macs[0]


def test_of_several_starts_the_best_is_taken(cut: Cut) -> None:
    tails, predictor = Tails(SPACE, PIONEER, 1), straight()
    searches = [
        OnlineSearch(tails, predictor, entries=40, candidates=2, seed=seed) for seed in range(4)
    ]
    found = Provisional(predictor, np.array([0.5], np.float32)).search(searches)
    unit = searches[0].pioneer_macs
    wanted = []
    for draw, macs in enumerate(requirements(searches[0].table_macs)):
        picks = [search.search(0.5, macs, unit, draw=draw) for search in searches]
        wanted.append(max(pick.accuracy for pick in picks))
    got = predictor.accuracies(0.5, np.stack([SPACE.encode(arch) for arch in found]))
    assert set(got.tolist()) == set(wanted)


# --- the choice with picks ----------------------------------------------------------------------


def test_those_most_often_picked_are_kept_after_the_fronts_ends() -> None:
    #        front: 0, 1, 2, 4; the third is dominated
    macs, accuracy = [1, 2, 3, 4, 5], [0.1, 0.3, 0.5, 0.4, 0.9]
    assert choose(macs, accuracy, 3, picks=[0, 0, 1, 7, 0]) == [0, 3, 4]
    assert choose(macs, accuracy, 4, picks=[0, 0, 1, 7, 0]) == [0, 2, 3, 4]


def test_the_front_fills_up_what_was_picked() -> None:
    macs, accuracy = [1, 2, 3, 4, 5], [0.1, 0.3, 0.5, 0.4, 0.9]
    assert choose(macs, accuracy, 4, picks=[0, 0, 0, 1, 0]) in ([0, 1, 3, 4], [0, 2, 3, 4])


@given(POINTS, st.integers(1, 16))
def test_picks_of_nothing_leave_the_front(points: Points, count: int) -> None:
    macs, accuracy = split(points)
    assert choose(macs, accuracy, count, [0] * len(macs)) == choose(macs, accuracy, count)


@given(POINTS, st.integers(1, 16), st.integers(0, 2**32))
def test_picks_do_not_change_how_many_are_chosen(points: Points, count: int, seed: int) -> None:
    macs, accuracy = split(points)
    picks = np.random.default_rng(seed).integers(0, 3, len(macs)).tolist()
    found = choose(macs, accuracy, count, picks)
    assert len(found) == len(set(found)) == min(count, len(points))
    assert [macs[i] for i in found] == sorted(macs[i] for i in found)
