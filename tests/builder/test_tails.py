"""Candidates over the pioneer, their Pareto fronts, and which of them become tails."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.builder.network import Cut, run_batches
from opa_trt.builder.tails import candidates, choose, pareto_layers, tail_accuracies
from opa_trt.progress import Progress
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
    found = tail_accuracies(
        cut,
        archs,
        run_batches(trunk, calibration),
        run_batches(trunk, list(torch.split(batch, 25))),
        labels,
        counter,
    )
    assert found == [accuracy_alone(cut, arch, calibration, batch, labels) for arch in archs]
    assert counter.done == [1, 2]
