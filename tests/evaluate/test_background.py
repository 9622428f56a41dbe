"""Background applications start, end at their limit, and outlive nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from opa_trt.errors import BackendUnavailable, ConfigError, RuntimeStateError, UnknownNameError
from opa_trt.evaluate import background
from opa_trt.evaluate.background import applications

GENEROUS = 60.0  # seconds, after which a test gives up
HANGS = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(*pids: int) -> None:
    wait_for(lambda: not any(map(alive, pids)))


def wait_for(reached: Callable[[], bool]) -> None:
    limit = time.monotonic() + GENEROUS
    while not reached():
        assert time.monotonic() < limit, "still there"
        time.sleep(0.02)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications that run ``HANGS`` instead."""
    monkeypatch.setattr(background, "_command", lambda *_: [sys.executable, "-c", HANGS])
    monkeypatch.setattr(background, "PATIENCE", 0.1)


def test_they_run_within_and_are_gone_afterwards() -> None:
    with applications(2, "cpu", seconds=600) as running:
        pids = running.pids
        assert running.alive == 2
        assert all(map(alive, pids))
    assert len(set(pids)) == 2
    assert not any(map(alive, pids))


def test_none_is_fine() -> None:
    with applications(0) as running:
        assert running.pids == running.wait() == ()


def test_they_end_by_themselves_at_their_limit() -> None:
    with applications(1, seconds=0.05) as running:
        (ended,) = running.wait()
    assert ended.pid == running.pids[0]
    assert ended.how == "limit"
    assert ended.runs is not None
    assert ended.runs >= 1
    assert ended.seconds is not None
    assert ended.seconds >= 0.05


def test_stopping_says_how_often_they_computed() -> None:
    with applications(1, seconds=600) as running:
        (ended,) = running.stop()
        assert running.stop() == (ended,)
    assert ended.how == "stopped"
    assert ended.runs is not None


def test_an_error_within_ends_them() -> None:
    with pytest.raises(KeyboardInterrupt), applications(1, seconds=600) as running:
        raise KeyboardInterrupt
    assert not alive(running.pids[0])


def test_load_that_ran_out_is_told() -> None:
    with (
        pytest.raises(RuntimeStateError, match="1 of 1 background applications ended too early"),
        applications(1, seconds=0.01) as running,
    ):
        wait_for(lambda: not running.alive)


def test_one_that_hangs_is_killed(script: None) -> None:
    with applications(1, seconds=600) as running:
        (ended,) = running.stop()
    assert ended.how == "killed"
    assert ended.runs is None
    assert not alive(ended.pid)


def test_one_that_hangs_is_killed_after_its_limit(
    script: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "GRACE", 0.1)
    with applications(1, seconds=0.01) as running:
        (ended,) = running.wait()
    assert ended.how == "killed"


def test_one_that_does_not_begin_is_killed(script: None, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [sys.executable, "-c", HANGS.replace("print", "str").replace(", flush=True", "")]
    monkeypatch.setattr(background, "_command", lambda *_: silent)
    monkeypatch.setattr(background, "STARTING", 0.5)
    started: list[int] = []
    made = background._Process.__init__

    def noted(self: background._Process, command: list[str], threads: int) -> None:
        made(self, command, threads)
        started.append(self.pid)

    monkeypatch.setattr(background._Process, "__init__", noted)
    with pytest.raises(RuntimeStateError, match="did nothing"), applications(1):
        pass
    assert [alive(pid) for pid in started] == [False]


def test_one_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = [sys.executable, "-c", "raise SystemExit('no room')"]
    monkeypatch.setattr(background, "_command", lambda *_: fails)
    with pytest.raises(RuntimeStateError, match="no room"), applications(1):
        pass


def test_a_hang_in_the_network_ends_with_the_systems_alarm() -> None:
    # A handler that Python never comes to run would not do: nothing is installed for the alarm.
    code = (
        "import signal, time; from runpy import run_path;"
        f"made = run_path({str(background.SCRIPT)!r});"
        "main = made['main']; main.__globals__.update(STARTING=0, GRACE=1);"
        "main.__globals__['_on_cpu'] = lambda: lambda: time.sleep(600);"
        "import os; main('cpu', 0.01, os.getppid())"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=GENEROUS, check=False)
    assert done.returncode == -signal.SIGALRM


def test_a_parent_that_is_killed_leaves_nobody() -> None:
    code = (
        "import time; from opa_trt.evaluate.background import applications\n"
        "with applications(2, seconds=600) as running:\n"
        "    print(*running.pids, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2
        assert all(map(alive, pids))
        os.kill(parent.pid, signal.SIGKILL)
    wait_until_gone(*pids)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"count": -1}, ConfigError),
        ({"count": 65}, ConfigError),
        ({"count": 1, "seconds": 0}, ConfigError),
        ({"count": 1, "seconds": float("nan")}, ConfigError),
        ({"count": 1, "seconds": 3601}, ConfigError),
        ({"count": 1, "threads": 0}, ConfigError),
        ({"count": 1, "kind": "tpu"}, UnknownNameError),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, float], error: type[Exception]) -> None:
    with pytest.raises(error), applications(**values):  # type: ignore[arg-type]
        pass


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "has_gpu", lambda: False)
    with pytest.raises(BackendUnavailable, match="no GPU"), applications(1, "cuda"):
        pass


@pytest.mark.gpu
def test_a_gpu_is_loaded() -> None:
    with applications(1, "cuda", seconds=0.5) as running:
        (ended,) = running.wait()
    assert (ended.how, ended.runs is not None) == ("limit", True)
