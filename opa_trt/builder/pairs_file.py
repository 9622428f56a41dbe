"""Archs and their measured accuracy on disk: a line each, so that measuring can stop and go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opa_trt.errors import CheckpointError
from opa_trt.supernet import Arch

FORMAT = "opa_trt.accuracy_pairs"
VERSION = 1
SHOWN = 200  # bytes of a damaged line that a message shows


@dataclass(frozen=True)
class Pair:
    """An arch, its accuracy (0 to 1), and the seconds that measuring took."""

    arch: Arch
    accuracy: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "arch": self.arch.to_dict(),
            "accuracy": self.accuracy,
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class PairsFile:
    """JSON lines: what was measured and how (``run``), then a pair a line.

    Args:
        path: made when pairs are first added.
        run: all that the accuracies depend on; a file that says otherwise is refused.
    """

    path: Path
    run: Mapping[str, Any]

    def read(self) -> list[Pair]:
        """The pairs so far; a last line that was only half written is left out.

        Raises:
            CheckpointError: the file is of another run, or none of ours.
        """
        lines = self._lines()
        if not lines:
            return []
        self._check_first(lines[0])
        return [self._pair(line, number) for number, line in enumerate(lines[1:], 2)]

    @contextmanager
    def appending(self) -> Iterator[Callable[[Pair], None]]:
        """A function that adds a pair, kept even where the next one is never measured.

        Raises:
            CheckpointError: as ``read`` says.
            OSError: the file cannot be written.
        """
        lines = self._lines()
        if lines:
            self._check_first(lines[0])
        whole = sum(map(len, lines))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(whole)
            if not whole:
                file.write(self._first())

            def append(pair: Pair) -> None:
                file.write(_line(pair.to_dict()))
                file.flush()

            yield append

    def _lines(self) -> list[bytes]:
        """The lines that are whole, each with its end; a beginning that is not ours is refused."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            last = lines.pop()
            if not lines and not self._first().startswith(last):
                raise self._foreign()
        return lines

    def _first(self) -> bytes:
        return _line({"format": FORMAT, "version": VERSION, "run": dict(self.run)})

    def _check_first(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            format_, version, run = found["format"], int(found["version"]), dict(found["run"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as exc:
            raise self._foreign() from exc
        if format_ != FORMAT or version > VERSION:
            raise self._foreign()
        wanted = json.loads(json.dumps(dict(self.run)))
        if run != wanted:
            differing = sorted(k for k in run.keys() | wanted if run.get(k) != wanted.get(k))
            message = f"{self.path} holds the pairs of another run (other {', '.join(differing)})."
            raise CheckpointError(
                message,
                expected="pairs of the same weights, space, images and seed.",
                remedy="delete it to measure again, or name another --out.",
            )

    def _foreign(self) -> CheckpointError:
        message = f"{self.path} is no file of accuracy pairs that this version reads."
        return CheckpointError(
            message,
            expected=f"{FORMAT!r}, version {VERSION} at most.",
            remedy="move it away, or name another --out.",
        )

    def _pair(self, line: bytes, number: int) -> Pair:
        try:
            found = json.loads(line)
            accuracy, seconds = float(found["accuracy"]), float(found["seconds"])
            arch = Arch.from_dict(found["arch"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            text = line[:SHOWN].decode(errors="replace")
            message = f"line {number} of {self.path} is no pair: {text!r}."
            raise CheckpointError(
                message,
                expected="arch, accuracy and seconds.",
                remedy="delete that line; its arch is measured again.",
            ) from exc
        return Pair(arch, accuracy, seconds)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
