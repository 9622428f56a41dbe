"""Progressive shrinking: stopped and resumed to the bit, refused states, and that it learns."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from opa_trt.errors import CheckpointError, ConfigError, DataError
from opa_trt.progress import Progress
from opa_trt.supernet import Arch, MobileNetV3Space, Supernet
from opa_trt.training import shrinking
from opa_trt.training.batches import Source
from opa_trt.training.evaluation import batches, share_right
from opa_trt.training.plan import PRECISIONS, Steps, TrainingPlan
from opa_trt.training.shrinking import describe
from opa_trt.training.state import STATE_FILE, TrainingState

DEGRADED = Source(size=16, degradations=("noise", "contrast"))
GIVEN = 9  # seed of weights that no run begins with by itself
NAMES = ["full", "kernel", "depth1", "width1", "width2"]


class Stopped(Exception):
    """What a test stops a run with."""


class Stopper(Progress):
    """Stops the run once ``phase`` has done ``step`` steps, or is finished."""

    def __init__(self, phase: str, step: int | None) -> None:
        self.stop = (phase, step)
        self.stage = ""

    def start(self, stage: str, total: int | None = None) -> None:
        self.stage = stage

    def advance(self, done: int, note: str = "") -> None:
        if (self.stage, done) == self.stop:
            raise Stopped

    def finish(self, stage: str, found: str) -> None:
        if (stage, None) == self.stop:
            raise Stopped


class Listener(Progress):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def start(self, stage: str, total: int | None = None) -> None:
        self.heard.append(("start", stage, total))

    def advance(self, done: int, note: str = "") -> None:
        self.heard.append(("advance", done, note.split()[0]))

    def finish(self, stage: str, found: str) -> None:
        self.heard.append(("finish", stage, found))


def stored(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}


def last_weight(state: TrainingState) -> Tensor:
    return state.supernet.state_dict()["parts.head.classifier.weight"]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.fixture(scope="module")
def whole(run_in: Any, tmp_path_factory: pytest.TempPathFactory) -> TrainingState:
    """A run that is never stopped."""
    return run_in(tmp_path_factory.mktemp("whole"), source=DEGRADED)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at the accuracies of the log: half of a short run goes there."""
    monkeypatch.setattr(shrinking, "calibrated_accuracy", lambda *_: 0.5)


def stop(run: Any, phase: str, step: int | None = None, **changes: Any) -> None:
    with pytest.raises(Stopped):
        run(progress=Stopper(phase, step), **changes)


# --- stopped and resumed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "step"),
    [
        ("full", 1),  # before the first checkpoint: starts again
        ("full", 2),  # right after a checkpoint
        ("full", 3),  # a step past one: that step is run again
        ("full", 4),  # the checkpoint after a phase's last step
        ("full", None),  # between phases
        ("kernel", 3),  # with a teacher
        ("width1", 2),  # after channels were sorted, which must not happen twice
        ("width2", 1),  # after channels were sorted, with no checkpoint since
        ("width2", None),  # finished
    ],
)
def test_a_stopped_run_ends_with_the_same_weights(
    run: Any, whole: TrainingState, phase: str, step: int | None
) -> None:
    stop(run, phase, step, source=DEGRADED)
    resumed = run(source=DEGRADED)
    assert_equal(resumed.supernet.state_dict(), whole.supernet.state_dict())
    assert_equal(resumed.teacher.state_dict(), whole.teacher.state_dict())
    assert resumed.log == whole.log


@pytest.mark.usefixtures("unmeasured")
def test_a_run_may_be_stopped_again_and_again(run: Any, whole: TrainingState) -> None:
    for phase in NAMES:
        stop(run, phase, 2, source=DEGRADED)
    assert_equal(run(source=DEGRADED).supernet.state_dict(), whole.supernet.state_dict())


@pytest.mark.usefixtures("unmeasured")
def test_what_the_caller_draws_between_does_not_matter(run: Any, whole: TrainingState) -> None:
    stop(run, "depth1", 2, source=DEGRADED)
    torch.manual_seed(99)
    assert_equal(run(source=DEGRADED).supernet.state_dict(), whole.supernet.state_dict())


@pytest.mark.usefixtures("unmeasured")
def test_how_often_a_run_is_saved_does_not_matter(
    run: Any, whole: TrainingState, plan: TrainingPlan
) -> None:
    stop(run, "kernel", 2, source=DEGRADED)
    resumed = run(source=DEGRADED, plan=replace(plan, checkpoint_every=1))
    assert_equal(resumed.supernet.state_dict(), whole.supernet.state_dict())


@pytest.mark.usefixtures("unmeasured")
def test_a_finished_run_is_not_trained_again(run: Any) -> None:
    first, listener = run(), Listener()
    again = run(progress=listener)
    assert listener.heard == []
    assert_equal(again.supernet.state_dict(), first.supernet.state_dict())


@pytest.mark.usefixtures("unmeasured")
def test_the_same_arguments_give_the_same_weights(run: Any, whole: TrainingState) -> None:
    assert_equal(run(source=DEGRADED).supernet.state_dict(), whole.supernet.state_dict())


@pytest.mark.usefixtures("unmeasured")
def test_another_seed_gives_other_weights(run: Any, whole: TrainingState) -> None:
    other = run(source=DEGRADED, seed=1)
    assert not torch.equal(last_weight(other), last_weight(whole))


# --- states that are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"plan": TrainingPlan(batch_size=4, steps=Steps(4, 3, (3,), (3, 3)))},
        {"source": Source(size=16, clean=0.5)},
    ],
)
def test_a_state_of_another_run_is_refused(run: Any, changes: dict[str, Any]) -> None:
    stop(run, "full", 2)
    with pytest.raises(CheckpointError, match="the state of another training run"):
        run(**changes)


def test_a_state_of_other_images_is_refused(run: Any, stripes: Any) -> None:
    stop(run, "full", 2)
    with pytest.raises(CheckpointError, match="another training run"):
        run(train_images=stripes(seed=5))


def test_a_state_of_another_space_is_refused(run: Any, space: MobileNetV3Space) -> None:
    stop(run, "full", 2)
    with pytest.raises(CheckpointError, match="another training run"):
        run(space=replace(space, head_width=40))


def test_a_state_of_another_thread_count_is_refused(run: Any) -> None:
    stop(run, "full", 2)
    with pytest.raises(CheckpointError, match="thread count"):
        run(threads=2)


def test_a_refused_state_is_kept(run: Any, tmp_path: Path) -> None:
    stop(run, "full", 2)
    before = (tmp_path / "run" / STATE_FILE).read_bytes()
    with pytest.raises(CheckpointError):
        run(seed=1)
    assert (tmp_path / "run" / STATE_FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_an_unreadable_state_is_refused(run: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        run()


def test_a_truncated_state_is_refused(run: Any, tmp_path: Path) -> None:
    stop(run, "full", 2)
    path = tmp_path / "run" / STATE_FILE
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"delete .* to start again"):
        run()


def test_there_is_nothing_to_restore_in_an_empty_folder(
    tmp_path: Path, space: MobileNetV3Space
) -> None:
    supernet = Supernet(space)
    state = TrainingState(
        supernet, optimizer=torch.optim.SGD(supernet.parameters(), lr=0.1), identity="run"
    )
    assert state.restore(tmp_path) is False


# --- what a run does ----------------------------------------------------------------------------


def test_the_log_has_four_accuracies_for_every_phase(whole: TrainingState) -> None:
    log = whole.log
    assert [entry["phase"] for entry in log] == NAMES
    assert [entry["steps"] for entry in log] == [4, 3, 3, 3, 3]
    for entry in log:
        assert list(entry["accuracy"]) == ["smallest", "largest", "random1", "random2"]
        assert all(0 <= value <= 1 for value in entry["accuracy"].values())


def test_the_log_is_json(whole: TrainingState) -> None:
    assert json.loads(json.dumps(whole.log)) == whole.log


def test_a_run_ends_in_evaluation_mode(whole: TrainingState) -> None:
    assert not whole.supernet.training


@pytest.mark.usefixtures("unmeasured")
def test_progress_hears_of_phases_and_steps(run: Any) -> None:
    listener = Listener()
    state = run(progress=listener)
    first = [item for item in listener.heard if item[0] != "advance"][:2]
    assert first == [("start", "full", 4), ("finish", "full", describe(state.log[0]))]
    assert listener.heard[1:5] == [("advance", done, "loss") for done in (1, 2, 3, 4)]


def test_a_line_of_the_log_reads_well() -> None:
    entry = {"accuracy": {"smallest": 0.7123, "largest": 0.9}}
    assert describe(entry) == "smallest 71.2 % · largest 90.0 %"


def test_there_is_no_teacher_in_the_full_phase(run: Any, tmp_path: Path) -> None:
    stop(run, "full", 4)
    assert stored(tmp_path / "run", "teacher/") == {}


@pytest.mark.usefixtures("unmeasured")
def test_the_teacher_is_the_full_network_and_stays_it(run: Any, tmp_path: Path) -> None:
    stop(run, "full")
    full = stored(tmp_path / "run", "supernet/")
    state = run()
    assert_equal(state.teacher.state_dict(), full)
    assert not state.teacher.training


@pytest.mark.usefixtures("unmeasured")
def test_distillation_changes_what_is_learned(
    run: Any, whole: TrainingState, plan: TrainingPlan
) -> None:
    alone = run(source=DEGRADED, plan=replace(plan, distill_weight=0.0))
    assert not torch.equal(last_weight(alone), last_weight(whole))


@pytest.mark.usefixtures("unmeasured")
def test_channels_are_sorted_once_as_each_width_phase_begins(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[int] = []
    monkeypatch.setattr(Supernet, "sort_channels", lambda _, level: levels.append(level))
    stop(run, "width1", 2)
    assert levels == [0]
    run()
    assert levels == [0, 1]


@dataclass
class Steppings:
    """The learning rate and the number of momentum buffers as every optimiser step begins."""

    rates: list[float] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)


@pytest.fixture
def steppings(monkeypatch: pytest.MonkeyPatch) -> Steppings:
    seen, original = Steppings(), torch.optim.SGD.step

    def step(self: torch.optim.SGD, *args: Any) -> Any:
        (rate,) = {group["lr"] for group in self.param_groups}
        seen.rates.append(rate)
        seen.buffers.append(len(self.state))
        return original(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    return seen


@pytest.mark.usefixtures("unmeasured")
def test_rates_warm_up_and_decay_along_a_cosine(
    run: Any, steppings: Steppings, plan: TrainingPlan
) -> None:
    steps = Steps(full=40, kernel=1, depth=(1,), width=(1, 1))
    stop(run, "full", 40, plan=replace(plan, steps=steps, learning_rate=0.08))
    cosine = 0.04 * (1 + np.cos(np.pi * np.arange(38) / 38))
    np.testing.assert_allclose(steppings.rates, [0.04, 0.08, *cosine])


@pytest.mark.usefixtures("unmeasured")
def test_every_phase_starts_its_own_schedule(run: Any, steppings: Steppings) -> None:
    run()
    starts = [steppings.rates[place] for place in (0, 4, 7, 10, 13)]
    assert starts == [0.05, 0.02, 0.02, 0.02, 0.02]


@pytest.mark.usefixtures("unmeasured")
def test_momentum_starts_anew_in_every_phase(run: Any, steppings: Steppings) -> None:
    run()
    firsts = [place for place, count in enumerate(steppings.buffers) if count == 0]
    assert firsts == [0, 4, 7, 10, 13]


@pytest.mark.usefixtures("unmeasured")
def test_norms_and_biases_are_not_decayed(run: Any, plan: TrainingPlan) -> None:
    decayed, free = run(plan=replace(plan, weight_decay=0.1)).optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in free["params"])


# --- weights to start from ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(space: MobileNetV3Space) -> Supernet:
    """Weights to start from."""
    return Supernet(space, seed=GIVEN)


@pytest.mark.usefixtures("unmeasured")
def test_the_full_phase_is_left_out_with_weights_to_start_from(run: Any, given: Supernet) -> None:
    listener = Listener()
    state = run(start=given, progress=listener)
    assert [item[1] for item in listener.heard if item[0] == "start"] == NAMES[1:]
    assert [entry["phase"] for entry in state.log] == NAMES[1:]


@pytest.mark.usefixtures("unmeasured")
def test_a_last_phase_alone_trains_the_ends_and_another(
    run: Any,
    given: Supernet,
    plan: TrainingPlan,
    space: MobileNetV3Space,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[list[Arch]] = []
    step = shrinking._step
    monkeypatch.setattr(shrinking, "_step", lambda *args: (steps.append(args[4]), step(*args))[1])
    only = replace(plan, steps=Steps(0, 0, (0,), (0, 0), finish=3))
    state = run(start=given, plan=only)
    assert [entry["phase"] for entry in state.log] == ["finish"]
    assert [len(archs) for archs in steps] == [3, 3, 3]
    for largest, smallest, other in steps:
        side = largest.resolution
        assert (largest, smallest) == (space.largest(side), space.smallest(side))
        assert other.resolution == side
    assert not torch.equal(last_weight(state), given.state_dict()["parts.head.classifier.weight"])


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_in_a_last_phase_the_largest_teaches_the_others(
    run: Any,
    given: Supernet,
    plan: TrainingPlan,
    monkeypatch: pytest.MonkeyPatch,
    weight: float,
) -> None:
    learned: list[str] = []
    entropy = F.cross_entropy

    def listen(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        learned.append("soft" if target.is_floating_point() else "labels")
        assert not target.requires_grad
        return entropy(logits, target, **options)

    monkeypatch.setattr(F, "cross_entropy", listen)
    last = replace(plan, steps=Steps(0, 0, (0,), (0, 0), finish=1), distill_weight=weight)
    state = run(start=given, plan=last)
    assert state.teacher is None
    others = ["labels", "soft"] if weight else ["labels"]
    assert learned == ["labels", *others, *others]


def test_the_weights_to_start_from_become_the_teacher(
    given: Supernet, whole_of_given: TrainingState, space: MobileNetV3Space
) -> None:
    before = Supernet(space, seed=GIVEN).state_dict()
    assert_equal(whole_of_given.teacher.state_dict(), before)
    assert_equal(given.state_dict(), before)


@pytest.fixture(scope="module")
def whole_of_given(
    run_in: Any, given: Supernet, tmp_path_factory: pytest.TempPathFactory
) -> TrainingState:
    """A run from given weights that is never stopped."""
    return run_in(tmp_path_factory.mktemp("given"), start=given)


@pytest.mark.parametrize(("phase", "step"), [("kernel", 1), ("kernel", 2), ("width1", 2)])
def test_a_stopped_run_from_given_weights_goes_on(
    run: Any, given: Supernet, whole_of_given: TrainingState, phase: str, step: int
) -> None:
    stop(run, phase, step, start=given)
    resumed = run(start=given)
    assert_equal(resumed.supernet.state_dict(), whole_of_given.supernet.state_dict())
    assert resumed.log == whole_of_given.log


def test_weights_can_be_blended_with_those_before(
    run: Any, given: Supernet, whole_of_given: TrainingState, plan: TrainingPlan
) -> None:
    blended = replace(plan, blend=0.25)
    state = run(start=given, plan=blended)
    before, trained = given.state_dict(), whole_of_given.supernet.state_dict()
    for name, found in state.supernet.state_dict().items():
        if found.is_floating_point():
            wanted = 0.75 * before[name] + 0.25 * trained[name]
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert [entry["phase"] for entry in state.log[-2:]] == ["width2", "blend"]
    again = run(start=given, plan=blended)  # nothing is blended twice
    assert_equal(again.supernet.state_dict(), state.supernet.state_dict())
    assert again.log == state.log


def test_without_weights_before_there_is_nothing_to_blend(
    run: Any, plan: TrainingPlan, whole: TrainingState
) -> None:
    state = run(source=DEGRADED, plan=replace(plan, blend=0.25))
    assert_equal(state.supernet.state_dict(), whole.supernet.state_dict())


def test_a_state_that_began_with_other_weights_is_refused(
    run: Any, given: Supernet, space: MobileNetV3Space
) -> None:
    stop(run, "kernel", 2, start=given)
    for other in (None, Supernet(space, seed=8)):
        with pytest.raises(CheckpointError, match="another training run"):
            run(start=other)


def test_weights_of_another_space_are_no_start(run: Any, space: MobileNetV3Space) -> None:
    other = Supernet(replace(space, resolutions=(16,)))
    with pytest.raises(CheckpointError, match="of another space"):
        run(start=other)


# --- precision ----------------------------------------------------------------------------------


# Few steps: where a processor does not know bfloat16, torch computes it slowly.
BRIEF = TrainingPlan(
    batch_size=4,
    steps=Steps(1, 1, (1,), (2, 1)),
    checkpoint_every=1,
    precision="bfloat16",
)


@pytest.fixture(scope="module")
def rounded(run_in: Any, tmp_path_factory: pytest.TempPathFactory) -> TrainingState:
    """A run in bfloat16 that is never stopped."""
    return run_in(tmp_path_factory.mktemp("rounded"), plan=BRIEF)


def test_weights_stay_float32_in_bfloat16(rounded: TrainingState) -> None:
    assert {parameter.dtype for parameter in rounded.supernet.parameters()} == {torch.float32}


@pytest.mark.usefixtures("unmeasured")
def test_a_stopped_run_in_bfloat16_ends_with_the_same_weights(
    run: Any, rounded: TrainingState
) -> None:
    stop(run, "width1", 1, plan=BRIEF)
    assert_equal(run(plan=BRIEF).supernet.state_dict(), rounded.supernet.state_dict())


# --- what is refused at the start ---------------------------------------------------------------


def test_a_plan_for_another_space_is_refused(run: Any, plan: TrainingPlan) -> None:
    with pytest.raises(ConfigError, match=r"training\.steps\.depth has 2 entries"):
        run(plan=replace(plan, steps=Steps(1, 1, (1, 1), (1, 1))))


@pytest.mark.parametrize("which", ["train_images", "check_images"])
def test_a_run_without_images_is_refused(run: Any, stripes: Any, which: str) -> None:
    with pytest.raises(DataError, match="no images"):
        run(**{which: stripes().select([])})


def test_images_of_another_size_than_the_source_says_are_refused(run: Any) -> None:
    with pytest.raises(DataError, match="16 px"):
        run(source=Source(size=20))


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [*({"precision": name} for name in PRECISIONS), {"cutmix": 0.5, "colour": 0.2}]
)
def test_a_short_training_learns_an_easy_task(
    run: Any, stripes: Any, plan: TrainingPlan, changes: dict[str, Any]
) -> None:
    steps = Steps(28, 4, (4,), (4, 4))
    state = run(
        train_images=stripes(96),
        check_images=stripes(60, seed=1),
        plan=replace(plan, steps=steps, shift=1, **changes),
    )
    assert min(state.log[-1]["accuracy"].values()) > 0.9


def test_accuracy_counts_right_answers(stripes: Any) -> None:
    images = stripes(10)

    def always_lying(inputs: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(inputs), 2)

    labelled = batches(Source(size=16), images, 16)
    assert share_right(always_lying, labelled) == 0.5  # type: ignore[arg-type]
