"""What the benchmark of training computes; what it measures is no test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
import torch

from opa_trt.supernet import Arch, Supernet

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
BATCH = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the benchmark sets the number for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a benchmark by name, as its own folder sees it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module


@pytest.fixture
def in_threads(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainings run in threads of this process, which start faster than processes."""
    module = script("train")

    @contextmanager
    def process(kind: str) -> Iterator[Callable[[str], float]]:
        lines: SimpleQueue[str | None] = SimpleQueue()
        answers: SimpleQueue[float] = SimpleQueue()
        thread = Thread(target=module.serve, args=(iter(lines.get, None), answers.put))
        thread.start()

        def ask(line: str) -> float:
            lines.put(line)
            return answers.get(timeout=60)

        yield ask
        lines.put(None)
        thread.join()

    monkeypatch.setattr(module, "process", process)


def task(way: str, step: str = "elastic", things: tuple[str, ...] = ()) -> str:
    """A line that asks for a training."""
    facts = {"batch": BATCH, "threads": 1, "device": "cpu", "quick": True}
    return json.dumps({"way": way, "step": step, "things": things, **facts})


def test_every_line_is_answered_and_a_task_begins_anew(script: Any) -> None:
    answers: list[float] = []
    lines = [task("plain"), "", task("ours"), "", "", task("plain")]
    script("train").serve(iter(lines), answers.append)
    assert len(answers) == len(lines)
    assert min(answers) > 0


@pytest.mark.parametrize("step", ["full", "elastic"])
def test_both_train_the_same_sub_networks(
    script: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def ran(way: str) -> list[Arch]:
        found: list[Arch] = []
        forward = Supernet.forward

        def noted(net: Supernet, images: torch.Tensor, arch: Arch) -> torch.Tensor:
            assert images.shape == (BATCH, 3, 32, 32)
            found.append(arch)
            return forward(net, images, arch)

        with monkeypatch.context() as patch:
            patch.setattr(Supernet, "forward", noted)
            script("train").serve(iter([task(way, step), "", ""]), lambda ms: None)
        return found

    plain = ran("plain")
    assert plain == ran("ours")
    assert len(plain) == 3 * {"full": 1, "elastic": 1 + 4}[step]  # a teacher and its pupils
    assert (len(set(plain)) > 1) is (step == "elastic")


def test_a_step_has_the_same_gradients_with_every_thing(script: Any) -> None:
    module = script("plain_training")
    setting = module.setting("elastic", BATCH, tiny=True)
    inputs, labels = next(module.at_once(setting, module.random_images(32, 10, BATCH)))

    def gradients(*things: str) -> torch.Tensor:
        training = module.PlainTraining(setting, set(things))
        torch.manual_seed(0)  # dropout
        training.step(inputs, labels, module.drawn(setting, 0))
        found = [weight.grad for weight in training.net.parameters() if weight.grad is not None]
        return torch.cat([gradient.flatten() for gradient in found])

    plain = gradients()
    for things, least in (((module.CHANNELS_LAST,), 0.9999), ((module.BFLOAT16,), 0.999)):
        assert torch.cosine_similarity(gradients(*things), plain, dim=0) > least


@pytest.mark.parametrize("way", ["one_by_one", "at_once"])
def test_both_augmentations_shift_mirror_and_cut(script: Any, way: str) -> None:
    module = script("plain_training")
    setting = module.setting("full", BATCH, tiny=True)
    images = module.random_images(32, 10, BATCH)
    inputs, labels = next(getattr(module, way)(setting, images))
    assert inputs.shape == (BATCH, 3, 32, 32)
    assert sorted(labels.tolist()) == sorted(images.labels.tolist())
    cut = (inputs.abs() < 0.02).all(1).sum((1, 2))  # the mean colour, but for rounding
    assert (cut >= (setting.plan.cutout // 2) ** 2).all()
    assert (cut <= setting.plan.cutout**2 + 4).all()


def test_without_augmentation_both_give_the_same_inputs(script: Any) -> None:
    module = script("plain_training")
    made = module.setting("full", BATCH, tiny=True)
    setting = module.replace(made, plan=module.replace(made.plan, shift=0, flip=False, cutout=0))
    images = module.random_images(32, 10, BATCH)
    first, second = (
        next(batches(setting, images))[0] for batches in (module.one_by_one, module.at_once)
    )
    order = [inputs[:, 0, 0, 0].argsort() for inputs in (first, second)]
    torch.testing.assert_close(first[order[0]], second[order[1]])


@pytest.mark.parametrize(
    ("flags", "missing"), [("avx2 fma", True), ("avx2 avx512_bf16", False), ("amx_bf16", False)]
)
def test_bfloat16_needs_a_processor_that_computes_in_it(
    script: Any, monkeypatch: pytest.MonkeyPatch, flags: str, missing: bool
) -> None:
    module = script("plain_training")
    monkeypatch.setattr(module, "instruction_set", lambda: flags)
    assert (module.BFLOAT16 in module.left_out("cpu")) is missing


def test_a_trial(
    script: Any,
    in_threads: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "train.md"
    arguments = ["--quick", "--json", "--out", str(out), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    module = script("train")
    monkeypatch.setattr(module, "left_out", lambda device: dict.fromkeys(module.THINGS[1:], "so"))
    module.main()
    report = json.loads(capsys.readouterr().out)
    things = ["ours", "channels-last weights and inputs"]
    ways = [(step, way) for step in ("full", "elastic") for way in things]
    assert [(row["step"], row["way"]) for row in report["rows"]] == ways
    assert set(report["ratio"]) == {"full", "elastic"}
    assert report["goal"] is report["met"] is None
    assert "| elastic | ours | 2 |" in out.read_text(encoding="utf-8")
    assert "*bfloat16* is left out: so." in out.read_text(encoding="utf-8").replace("\n", " ")


def test_the_ratio_is_that_of_images_a_second(script: Any) -> None:
    found = script("train").figures([(200.0, 100.0)] * 6, 10)
    assert found["ratio"] == [2.0, 2.0, 2.0]
    assert found["images_s"] == 100
    assert found["plain_images_s"] == 50


def test_a_process_that_keeps_memory_is_told_so(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("train")
    seen: list[dict[str, str]] = []

    def started(command: list[str], env: dict[str, str], **rest: Any) -> _Refusing:
        seen.append({name: value for name, value in env.items() if name.startswith("MALLOC_")})
        return _Refusing()

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setattr(module.subprocess, "Popen", started)
    for kind in (module.PLAIN, module.KEPT):
        with module.process(kind) as ask, pytest.raises(SystemExit, match="ended at: a task"):
            ask("a task")
    assert seen == [{}, module.KEEPING]


class _Refusing:
    """A process that ends without an answer."""

    def __init__(self) -> None:
        self.stdin = self.stdout = self

    def __enter__(self) -> _Refusing:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def write(self, line: str) -> None:
        pass

    def flush(self) -> None:
        pass

    def readline(self) -> str:
        return ""
