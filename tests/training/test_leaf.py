"""Shallow phases are trained: stopped and resumed to the bit, beside a legacy that stays."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from opa_trt.errors import CheckpointError, DataError
from opa_trt.progress import Progress
from opa_trt.supernet.legacy import Augmented, Configuration, augment
from opa_trt.training import leaf
from opa_trt.training.batches import Batches, Source
from opa_trt.training.leaf import LeafState, describe, train_leaf
from opa_trt.training.leaf_draw import candidate_configurations, draw_configurations
from opa_trt.training.leaf_measure import Measured, calibrate_shallow, front, measure
from opa_trt.training.leaf_plan import LeafPlan, Schedule
from opa_trt.training.state import STATE_FILE
from tests.supernet.legacy.small_networks import PHASES, small

SIDE = 16
SOURCE = Source(size=SIDE)
PLAN = LeafPlan(
    base=Schedule(4, 0.05, decay_every=2),
    fine=Schedule(3, 0.02),
    batch_size=8,
    shift=2,
    flip=True,
    cutmix=0.5,
    checkpoint_every=2,
)
Train = Callable[..., LeafState]


@pytest.fixture(scope="module")
def legacy(stripes: Any) -> torch.nn.Module:
    """A little network that has learned stripes."""
    module = small(2).train()
    batches = Batches(stripes(96), SOURCE, 32, 5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for step in range(24):
        inputs, labels = batches.batch(0, step, SIDE)
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), labels).backward()
        optimizer.step()
    return module.eval()


@pytest.fixture(scope="module")
def network(legacy: torch.nn.Module) -> Augmented:
    return augment(legacy, PHASES, ratio=0.5, divisor=2)


@pytest.fixture(scope="module")
def train_in(stripes: Any, network: Augmented) -> Train:
    """``train_leaf`` on stripes in a folder; keywords replace its arguments."""

    def run(folder: Path, **changes: Any) -> LeafState:
        arguments: dict[str, Any] = {
            "network": network,
            "source": SOURCE,
            "train_images": stripes(),
            "check_images": stripes(10, seed=1),
            "plan": PLAN,
        }
        return train_leaf(folder=folder, **(arguments | changes))

    return run


@pytest.fixture
def train(train_in: Train, tmp_path: Path) -> Train:
    return lambda **changes: train_in(tmp_path / "run", **changes)


@pytest.fixture(scope="module")
def whole(train_in: Train, tmp_path_factory: pytest.TempPathFactory) -> LeafState:
    """A run that is never stopped."""
    return train_in(tmp_path_factory.mktemp("whole"))


class Stopped(Exception):
    """What a test stops a run with."""


class Stopper(Progress):
    """Stops the run once ``phase`` has done ``step`` steps, or is finished (None)."""

    def __init__(self, phase: str, step: int | None) -> None:
        self.stop, self.stage = (phase, step), ""

    def start(self, stage: str, total: int | None = None) -> None:
        self.stage = stage

    def advance(self, done: int, note: str = "") -> None:
        if (self.stage, done) == self.stop:
            raise Stopped

    def finish(self, stage: str, found: str) -> None:
        if (stage, None) == self.stop:
            raise Stopped


def stop(train: Train, phase: str, step: int | None = None, **changes: Any) -> None:
    with pytest.raises(Stopped):
        train(progress=Stopper(phase, step), **changes)


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    wanted = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, wanted[key]), key


def chosen_in(monkeypatch: pytest.MonkeyPatch) -> list[list[Configuration]]:
    """Hears which configurations every step trains."""
    heard: list[list[Configuration]] = []
    original = leaf.draw_configurations

    def draw(*arguments: Any) -> list[Configuration]:
        heard.append(original(*arguments))
        return heard[-1]

    monkeypatch.setattr(leaf, "draw_configurations", draw)
    return heard


# --- the legacy network -------------------------------------------------------------------------


def test_the_legacy_network_is_the_original_after_training(
    whole: LeafState, legacy: torch.nn.Module, stripes: Any
) -> None:
    trained, inputs = whole.network, SOURCE.tensor(stripes(16, seed=2).pixels.copy())
    with torch.no_grad():
        assert torch.equal(trained(inputs, trained.legacy_configuration), legacy(inputs))


def test_nothing_of_the_legacy_network_changes_and_all_shallow_phases_do(
    whole: LeafState, network: Augmented
) -> None:
    assert_same(whole.network.legacy, network.legacy)
    assert_same(whole.network.links, network.links)
    before = network.shallow.state_dict()
    for key, value in whole.network.shallow.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert not torch.equal(value, before[key]), key


def test_the_given_network_is_left_as_it_is(
    whole: LeafState, network: Augmented, legacy: torch.nn.Module
) -> None:
    assert whole.network is not network
    assert_same(network, augment(legacy, PHASES, ratio=0.5, divisor=2))


# --- stopped and resumed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "step"),
    [
        ("base", 1),  # before the first checkpoint: starts again
        ("base", 2),  # right after a checkpoint
        ("base", 3),  # a step past one: that step is run again
        ("base", 4),  # after the last step: it is measured again
        ("base", None),  # between phases
        ("fine", 1),  # the front comes from the log
        ("fine", 2),
        ("fine", None),  # finished
    ],
)
def test_a_stopped_run_ends_with_the_same_weights(
    train: Train, whole: LeafState, phase: str, step: int | None
) -> None:
    stop(train, phase, step)
    torch.manual_seed(99)  # what the caller draws between does not matter
    resumed = train()
    assert_same(resumed.network, whole.network)
    assert resumed.log == whole.log


def test_another_seed_gives_other_weights(train: Train, whole: LeafState) -> None:
    one, other = (s.network.shallow.state_dict() for s in (train(seed=1), whole))
    assert not torch.equal(one["0.closing.0.weight"], other["0.closing.0.weight"])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"plan": replace(PLAN, window=7)},
        {"source": Source(size=SIDE, mean=(0.4, 0.4, 0.4))},
    ],
)
def test_a_state_of_another_run_is_refused(train: Train, change: dict[str, Any]) -> None:
    stop(train, "base", 2)
    with pytest.raises(CheckpointError, match="the state of another training run"):
        train(**change)


def test_a_state_of_another_network_or_of_other_images_is_refused(
    train: Train, legacy: torch.nn.Module, stripes: Any
) -> None:
    stop(train, "base", 2)
    other = augment(legacy, PHASES, ratio=0.5, divisor=2, seed=3)
    for change in ({"network": other}, {"train_images": stripes(seed=4)}):
        with pytest.raises(CheckpointError, match="another training run"):
            train(**change)


def test_how_often_a_run_is_saved_does_not_matter(train: Train, whole: LeafState) -> None:
    stop(train, "base", 3)
    assert_same(train(plan=replace(PLAN, checkpoint_every=1)).network, whole.network)


def test_the_state_holds_no_legacy_weights(train: Train, tmp_path: Path) -> None:
    from safetensors import safe_open

    stop(train, "base", 2)
    with safe_open(tmp_path / "run" / STATE_FILE, framework="pt") as file:
        kinds = {key.split("/")[0] for key in file.keys()}  # noqa: SIM118
    assert kinds == {"shallow", "losses", "momentum"}


# --- what a run does ----------------------------------------------------------------------------


def test_base_training_takes_all_configurations_but_the_legacy_one(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = chosen_in(monkeypatch)
    stop(train, "base", 2)
    every = [Configuration.numbered(3, number) for number in range(1, 8)]
    assert heard == [every, every]


def test_base_training_takes_a_sample_of_many(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = chosen_in(monkeypatch)
    stop(train, "base", 4, plan=replace(PLAN, configurations=3))
    assert [len(set(chosen)) for chosen in heard] == [3] * 4
    assert len({tuple(chosen) for chosen in heard}) > 1
    assert not any(each.is_legacy for chosen in heard for each in chosen)


def test_fine_tuning_takes_the_front_of_the_base_training(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {0: 0.9, 1: 0.5, 2: 0.8, 4: 0.4, 7: 0.3}
    costs = {0: 9.0, 1: 8.0, 2: 7.0, 4: 6.0, 7: 1.0}  # by number; 1 is beaten by 2
    number = {Configuration.numbered(3, place): place for place in range(8)}
    monkeypatch.setattr(
        leaf, "measure", lambda _, chosen, *__: [accuracies.get(number[c], 0.1) for c in chosen]
    )
    heard = chosen_in(monkeypatch)
    state = train(cost=lambda configuration: costs.get(number[configuration], 10.0))
    front_of_base = [Configuration.numbered(3, place) for place in (7, 4, 2)]
    assert [set(chosen) for chosen in heard[-3:]] == [set(front_of_base)] * 3
    assert [each.configuration for each in state.front] == [
        *front_of_base,
        Configuration.of(3),
    ]


def test_nothing_is_fine_tuned_where_the_legacy_network_is_the_whole_front(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        leaf, "measure", lambda _, chosen, *__: [0.9 if c.is_legacy else 0.1 for c in chosen]
    )
    heard = chosen_in(monkeypatch)
    state = train(cost=lambda configuration: float(len(configuration.places)))
    assert len(heard) == PLAN.base.steps
    assert [each.configuration.is_legacy for each in state.front] == [True]
    assert state.phase == 2


def test_the_log_says_what_every_configuration_is_worth(whole: LeafState) -> None:
    base, fine = whole.log
    assert (base["phase"], fine["phase"]) == ("base", "fine")
    assert len(base["configurations"]) == 8
    kept = [row["shallow"] for row in base["configurations"] if row["front"]]
    assert sorted(row["shallow"] for row in fine["configurations"]) == sorted(kept)
    costs = whole.network.costs(SIDE)
    for row in whole.measured:
        assert row.cost == costs.of(row.configuration).macs
    assert json.loads(json.dumps(whole.log)) == whole.log


def test_the_logged_accuracy_is_that_of_the_configuration(whole: LeafState, stripes: Any) -> None:
    images = stripes(10, seed=1)
    inputs, labels = SOURCE.tensor(images.pixels.copy()), torch.tensor(images.labels)
    for row in whole.measured:
        with torch.no_grad():
            right = whole.network(inputs, row.configuration).argmax(1) == labels
        assert row.accuracy == right.double().mean().item()


def test_an_accuracy_does_not_depend_on_what_else_is_measured(
    network: Augmented, stripes: Any
) -> None:
    images = stripes(80, seed=1)
    source = Source(size=SIDE, degradations=("noise", "contrast"))
    every = [*network.configurations()]
    together = measure(network, every, source, images)
    assert [measure(network, [each], source, images)[0] for each in every] == together


def test_batch_norms_are_calibrated_on_what_all_configurations_give(
    network: Augmented, stripes: Any
) -> None:
    own, images = copy.deepcopy(network), stripes()
    trained = [Configuration.numbered(3, number) for number in range(1, 8)]
    calibrate_shallow(own, trained, SOURCE, images)
    assert_same(own.legacy, network.legacy)
    seen: list[torch.Tensor] = []
    hooked = copy.deepcopy(network).train()
    hooked.shallow[2].get_submodule("0.body.1").register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    with torch.no_grad():
        hooked.forward_many(SOURCE.tensor(images.pixels.copy()), trained)
    found = own.shallow[2].get_submodule("0.body.1")
    assert len(seen[0]) == 4 * len(images)
    torch.testing.assert_close(found.running_mean, seen[0].mean((0, 2, 3)))
    torch.testing.assert_close(found.running_var, seen[0].var((0, 2, 3), unbiased=False))


def test_progress_hears_of_phases_and_steps(train: Train) -> None:
    heard: list[tuple[Any, ...]] = []

    class Listener(Progress):
        def start(self, stage: str, total: int | None = None) -> None:
            heard.append(("start", stage, total))

        def advance(self, done: int, note: str = "") -> None:
            heard.append(("advance", done, note.split()[0]))

        def finish(self, stage: str, found: str) -> None:
            heard.append(("finish", stage, found))

    state = train(progress=Listener())
    steps = [("advance", done, "loss") for done in range(1, 5)]
    assert heard[:6] == [("start", "base", 4), *steps, ("finish", "base", describe(state.log[0]))]
    assert heard[-1] == ("finish", "fine", describe(state.log[1]))


def test_a_line_of_the_log_reads_well() -> None:
    rows = [
        Measured(Configuration.of(2), 0.9, 5.0).to_dict(front=True),
        Measured(Configuration.of(2, (0,)), 0.4, 4.0).to_dict(front=False),
        Measured(Configuration.of(2, (0, 1)), 0.5, 1.0).to_dict(front=True),
    ]
    expected = "2 of 3 on the front · {0, 1} 50.0 % · {} 90.0 %"
    assert describe({"configurations": rows}) == expected


def test_images_that_do_not_fit_are_refused(train: Train, stripes: Any) -> None:
    with pytest.raises(DataError, match="16 px"):
        train(source=Source(size=20))
    with pytest.raises(DataError, match="no images"):
        train(check_images=stripes().select([]))


def test_shallow_phases_learn(train: Train, network: Augmented, stripes: Any) -> None:
    images = stripes(60, seed=1)
    every = [*network.configurations()]
    before = measure(network, every, SOURCE, images)
    state = train(
        train_images=stripes(96),
        check_images=images,
        plan=replace(PLAN, base=Schedule(30, 0.05), fine=Schedule(6, 0.02), shift=0, flip=False),
    )
    after = measure(state.network, every, SOURCE, images)
    assert after[0] == before[0] > 0.9
    assert before[-1] < 0.8
    assert after[-1] > 0.9


@pytest.mark.gpu
def test_a_run_on_a_gpu_ends_on_the_cpu_and_goes_on_where_it_stopped(
    train: Train, network: Augmented
) -> None:
    stop(train, "base", 3, device="cuda")
    state = train(device="cuda")
    assert {value.device.type for value in state.network.state_dict().values()} == {"cpu"}
    assert_same(state.network.legacy, network.legacy)
    assert [entry["phase"] for entry in state.log] == ["base", "fine"]


# --- which configurations -----------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_drawn_configurations_are_different_and_never_legacy(
    phases: int, most: int, seed: int
) -> None:
    drawn = draw_configurations(phases, most, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn)) == min(most, 2**phases - 1)
    assert not any(each.is_legacy for each in drawn)


def test_a_pool_is_drawn_from_in_its_order() -> None:
    pool = [Configuration.numbered(4, number) for number in (0, 3, 9, 5)]
    draw = np.random.default_rng(0)
    assert draw_configurations(4, 3, draw, pool) == pool[1:]
    two = draw_configurations(4, 2, draw, pool)
    assert two == [each for each in pool if each in two]
    assert len(two) == 2


@pytest.mark.parametrize(("phases", "count"), [(1, 2), (8, 256), (9, 256), (30, 256)])
def test_candidates_have_both_ends(phases: int, count: int) -> None:
    found = candidate_configurations(phases, 0)
    assert found[0].is_legacy
    assert found[-1] == Configuration.of(phases, range(phases))
    assert count - 1 <= len(set(found)) == len(found) <= count


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    rows = [
        Measured(Configuration.numbered(4, place), accuracy / 6, float(cost))
        for place, (accuracy, cost) in enumerate(pairs)
    ]

    def beaten(row: Measured) -> bool:
        return any(
            (other.cost <= row.cost and other.accuracy > row.accuracy)
            or (other.cost < row.cost and other.accuracy >= row.accuracy)
            for other in rows
        )

    kept = front(rows)
    values = {(row.accuracy, row.cost) for row in rows if not beaten(row)}
    assert {(row.accuracy, row.cost) for row in kept} == values
    assert len(kept) == len(values)
    assert [row.cost for row in kept] == sorted(row.cost for row in kept)
