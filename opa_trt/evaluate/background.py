"""Background applications for experiments: processes that load the machine for a limited time.

As in OPA (section V-A), an application computes a three-layer network again and again. Each ends by
itself at its time limit or when this process has gone, and is ended with its context at the latest.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from opa_trt.errors import BackendUnavailable, ConfigError, RuntimeStateError, UnknownNameError
from opa_trt.evaluate.application import GRACE, READY, STARTING
from opa_trt.machine import has_gpu

SECONDS = 60.0
MOST, LONGEST = 64, 3600.0  # applications, and seconds each
KINDS = ("cpu", "cuda")
PATIENCE = 2.0  # seconds between asking a process to end and killing it
SCRIPT = Path(__file__).with_name("application.py")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Ended:
    """What became of an application.

    Args:
        pid: its process.
        how: ``limit`` (by itself), ``stopped`` (when it was asked to), ``killed`` (it hung) or
            ``failed`` (it ended without a word).
        runs, seconds: how often it computed its network in what time; None if it did not say.
    """

    pid: int
    how: str
    runs: int | None = None
    seconds: float | None = None


@contextmanager
def applications(
    count: int, kind: str = "cpu", *, seconds: float = SECONDS, threads: int = 1
) -> Iterator[Applications]:
    """``count`` applications compute within; none is left afterwards, whatever happens.

    The context begins when all of them are under way. They outlive neither their limit nor this
    process, even if it is killed.

    Args:
        count: how many; 0 is allowed.
        kind: ``cpu``, or ``cuda`` for the GPU.
        seconds: the limit of each, at most an hour.
        threads: of each, on the CPU.

    Raises:
        ConfigError: a count, a limit or threads that cannot be.
        UnknownNameError: another kind.
        BackendUnavailable: ``cuda`` without a GPU that torch can use.
        RuntimeStateError: an application did not start; or one ended before the context did
            without being waited for, so that what ran within was not loaded to its end.
    """
    _check(count, kind, seconds, threads)
    started: list[_Process] = []
    try:
        for _ in range(count):
            started.append(_Process(_command(kind, seconds), threads))
        for process in started:
            process.wait_until_ready()
        running = Applications(started, seconds)
        yield running
        running.close()
    finally:
        for process in started:
            process.ask()
        for process in started:
            process.end(PATIENCE)


class Applications:
    """Applications that are under way.

    Args:
        processes: theirs.
        seconds: the time limit of each.
    """

    def __init__(self, processes: Sequence[_Process], seconds: float) -> None:
        self._processes, self._seconds = processes, seconds
        self._begun = time.monotonic()
        self._waited = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Their process ids."""
        return tuple(process.pid for process in self._processes)

    @property
    def alive(self) -> int:
        """How many of them run."""
        return sum(process.running for process in self._processes)

    def wait(self) -> tuple[Ended, ...]:
        """Wait until all have ended by themselves; one that is late is killed."""
        self._waited = True
        limit = self._begun + self._seconds + GRACE
        return tuple(process.end(limit - time.monotonic()) for process in self._processes)

    def stop(self) -> tuple[Ended, ...]:
        """End them: asked first, and killed if they do not within two seconds."""
        self._waited = True
        for process in self._processes:
            process.ask()
        return tuple(process.end(PATIENCE) for process in self._processes)

    def close(self) -> None:
        """End them.

        Raises:
            RuntimeStateError: some had ended already, and nobody had waited for that.
        """
        gone = len(self._processes) - self.alive
        if gone and not self._waited:
            message = f"{gone} of {len(self._processes)} background applications ended too early."
            remedy = f"give them more than {self._seconds:g} seconds, at most {LONGEST:g}."
            raise RuntimeStateError(message, remedy=remedy)
        self.stop()


def _check(count: int, kind: str, seconds: float, threads: int) -> None:
    if not 0 <= count <= MOST:
        message = f"{count} background applications."
        raise ConfigError(message, expected=f"0 to {MOST}.")
    if kind not in KINDS:
        what = "kind of application"
        raise UnknownNameError(what, kind, KINDS)
    if not (math.isfinite(seconds) and 0 < seconds <= LONGEST):
        message = f"a time limit of {seconds:g} seconds."
        raise ConfigError(message, expected=f"above 0, at most {LONGEST:g}.")
    if threads < 1:
        message = f"threads = {threads}."
        raise ConfigError(message, expected="at least 1.")
    if kind == "cuda" and not has_gpu():
        message = "no GPU that torch can use."
        remedy = "load the CPU, or install a CUDA build of torch on a machine that has one."
        raise BackendUnavailable(message, remedy=remedy)


def _command(kind: str, seconds: float) -> list[str]:
    # -P: this folder is no place to import from, lest a module here hides one of numpy's or torch's
    return [sys.executable, "-P", str(SCRIPT), kind, repr(seconds), str(os.getpid())]


class _Process:
    """One application, in a process group of its own: Ctrl-C is for the one that started it."""

    def __init__(self, command: Sequence[str], threads: int) -> None:
        self._popen = subprocess.Popen(
            command,
            env={**os.environ, **dict.fromkeys(THREADS, str(threads))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self.pid = self._popen.pid
        self._asked = False
        self._ended: Ended | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    def wait_until_ready(self) -> None:
        """Wait for its first run.

        Raises:
            RuntimeStateError: it failed, or did nothing for a minute.
        """
        assert self._popen.stdout is not None
        readable, _, _ = select.select([self._popen.stdout], [], [], STARTING)
        if readable and self._popen.stdout.readline().strip() == READY:
            return
        message = f"a background application did nothing for {STARTING} seconds."
        if readable:
            assert self._popen.stderr is not None
            said = self._popen.stderr.read().strip().splitlines() or ["it said nothing"]
            message = f"a background application failed: {said[-1]}."
        raise RuntimeStateError(message)

    def ask(self) -> None:
        """Ask it to end, if it has not ended yet."""
        if self.running:
            self._asked = True
            self._popen.terminate()

    def end(self, patience: float) -> Ended:
        """What became of it, after at most so many seconds: then it is killed."""
        if self._ended is None:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(max(0.0, patience))
            if killed := self.running:
                self._popen.kill()
                self._popen.wait()
            self._ended = self._read(killed or self._popen.returncode == -signal.SIGALRM)
        return self._ended

    def _read(self, killed: bool) -> Ended:
        """Its last words, once it has ended; its pipes are closed."""
        with self._popen.stdout as out, self._popen.stderr:  # type: ignore[union-attr]
            words = out.read().split()[-2:]
        if killed:
            return Ended(self.pid, "killed")
        if len(words) < 2:
            return Ended(self.pid, "stopped" if self._asked else "failed")
        how = "stopped" if self._asked else "limit"
        return Ended(self.pid, how, int(words[0]), float(words[1]))
