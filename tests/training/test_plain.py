"""A network of any make is trained from labels: stopped and resumed to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opa_trt.errors import CheckpointError, DataError
from opa_trt.progress import Progress
from opa_trt.training.batches import Source
from opa_trt.training.plain import PlainState, train_plain
from opa_trt.training.plan import PRECISIONS, Steps, TrainingPlan
from tests.supernet.legacy.small_networks import small

SIDE = 16
PLAN = TrainingPlan(
    batch_size=16,
    steps=Steps(full=5),
    learning_rate=0.05,
    shift=2,
    flip=True,
    checkpoint_every=2,
)
Train = Callable[..., PlainState]


class Stopped(Exception):
    """What a test stops a run with."""


class Listener(Progress):
    """Hears of steps, and stops the run after one of them."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.steps, self.lines = stop, 0, list[str]()

    def advance(self, done: int, note: str = "") -> None:
        self.steps += 1
        if done == self.stop:
            raise Stopped

    def finish(self, stage: str, found: str) -> None:
        self.lines.append(f"{stage} {found}")


@pytest.fixture
def train(stripes: Any, tmp_path: Path) -> Train:
    def run(**changes: Any) -> PlainState:
        arguments: dict[str, Any] = {
            "network": small(2),
            "source": Source(size=SIDE),
            "train_images": stripes(),
            "check_images": stripes(10, seed=1),
            "plan": PLAN,
            "folder": tmp_path / "run",
        }
        return train_plain(**(arguments | changes))

    return run


def weights(state: PlainState) -> dict[str, torch.Tensor]:
    return state.network.state_dict()


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_stopped_run_ends_with_the_same_weights(train: Train, tmp_path: Path, stop: int) -> None:
    whole = train(folder=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(progress=Listener(stop))
    resumed = train()
    assert resumed.log == whole.log
    for key, value in weights(whole).items():
        assert torch.equal(weights(resumed)[key], value), key


def test_a_finished_run_is_not_trained_again(train: Train) -> None:
    first, listener = train(), Listener()
    again = train(progress=listener)
    assert listener.steps == 0
    assert torch.equal(weights(again)["classifier.weight"], weights(first)["classifier.weight"])


def test_the_network_that_is_given_stays_as_it_is(train: Train) -> None:
    network = small(2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = train(network=network)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert not torch.equal(weights(state)["classifier.weight"], before["classifier.weight"])
    assert not state.network.training


def test_a_state_of_another_network_is_refused(train: Train) -> None:
    train()
    with pytest.raises(CheckpointError, match="another training run"):
        train(network=small(2, seed=1))


def test_images_of_another_size_are_refused(train: Train) -> None:
    with pytest.raises(DataError, match="images of 16 px"):
        train(source=Source(size=20))


@pytest.mark.parametrize(
    "changes", [*({"precision": name} for name in PRECISIONS), {"cutmix": 0.5}]
)
def test_it_learns_stripes(train: Train, changes: dict[str, Any], stripes: Any) -> None:
    plan = TrainingPlan(batch_size=24, steps=Steps(full=30), learning_rate=0.05, **changes)
    listener = Listener()
    state = train(plan=plan, train_images=stripes(48), progress=listener)
    (entry,) = state.log
    assert entry["accuracy"] >= 0.9
    assert listener.lines == [f"full {entry['accuracy']:.1%} of 10 held-out images"]
