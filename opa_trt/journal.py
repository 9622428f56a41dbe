"""Results in a file of JSON lines, so that work that stops can go on: what they depend on, then
a result a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from opa_trt import atomic
from opa_trt.errors import OpaError

SHOWN = 200  # bytes of a damaged line, or characters of a value, that a message shows
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Kind:
    """What journals hold: its format's name and version, in words, and the error of a bad one."""

    format: str
    version: int
    what: str
    error: type[OpaError]

    def foreign(self, path: Path) -> OpaError:
        """The error of a file that is no journal of this kind."""
        return self.error(
            f"{path} is no file of {self.what} that this version reads.",
            expected=f"{self.format!r}, version {self.version} at most.",
            remedy="move it away, or choose another --out.",
        )


@dataclass(frozen=True)
class Journal:
    """A file that results are added to, each at once and for good.

    Args:
        path: the file.
        kind: what it holds.
        run: all that the results depend on, as plain values; a file that says otherwise is refused.
    """

    path: Path
    kind: Kind
    run: Mapping[str, Any]

    def resume(self, entry: Callable[[Any], Entry]) -> list[Entry]:
        """The results so far; the file is ready for more.

        It is made where there is none, and a last line that was only half written is dropped.

        Args:
            entry: a result of a line's value; what cannot be one makes it raise ValueError,
                KeyError, TypeError or the like.

        Raises:
            OpaError: of the kind: the file is of another run, of another kind, or has a line that
                is damaged. It stays as it was.
            OSError: it cannot be written.
        """
        lines, half = _lines(self.path)
        first = _line({"format": self.kind.format, "version": self.kind.version, "run": self.run})
        if not lines and not first.startswith(half):
            raise self.kind.foreign(self.path)
        if lines:
            self._check_run(_run(self.path, self.kind, lines[0]))
        found = [self._entry(entry, line, at) for at, line in enumerate(lines[1:], 2)]
        if half or not lines:
            atomic.write_bytes(self.path, b"".join(line + b"\n" for line in lines) or first)
        return found

    def append(self, value: Mapping[str, Any]) -> None:
        """Add a line to a file that was resumed; it is on disk when this returns."""
        with self.path.open("ab") as file:
            file.write(_line(value))
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)

    def _check_run(self, found: dict[str, Any]) -> None:
        wanted = json.loads(json.dumps(dict(self.run)))
        if found == wanted:
            return
        differing = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
        was, now = _difference(found, wanted)
        message = (
            f"{self.path} holds {self.kind.what} of another run "
            f"(other {', '.join(differing)}): {was}."
        )
        raise self.kind.error(
            message,
            expected=f"{now}.",
            remedy="delete it to measure from the start, or choose another --out.",
        )

    def _entry(self, entry: Callable[[Any], Entry], line: bytes, at: int) -> Entry:
        try:
            return entry(json.loads(line))
        except UNREADABLE as exc:
            text = line[:SHOWN].decode(errors="replace")
            reason = _short(str(exc).partition("\n")[0])
            message = f"line {at} of {self.path} is damaged ({reason}): {text!r}."
            raise self.kind.error(
                message,
                expected=f"a line of {self.kind.what}.",
                remedy="delete that line; what it held is measured again.",
            ) from exc


def read_run(path: Path, kind: Kind) -> dict[str, Any] | None:
    """What the results in ``path`` depend on; None where there are none.

    Raises:
        OpaError: of the kind: the file is of another kind.
    """
    lines, _ = _lines(path)
    return _run(path, kind, lines[0]) if lines else None


def number(value: Any, most: float = math.inf) -> float:
    """A finite number from 0 to ``most``; ValueError where ``value`` is none."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or not 0 <= value <= most:
        message = f"{value!r} is no number from 0 to {most:g}"
        raise ValueError(message)
    return float(value)


def _lines(path: Path) -> tuple[list[bytes], bytes]:
    """The lines that are whole, without their ends, and what follows them."""
    if not path.exists():
        return [], b""
    *whole, half = path.read_bytes().split(b"\n")
    return whole, half


def _run(path: Path, kind: Kind, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
        format_, version, run = found["format"], int(found["version"]), dict(found["run"])
    except UNREADABLE as exc:
        raise kind.foreign(path) from exc
    if format_ != kind.format or version > kind.version:
        raise kind.foreign(path)
    return run


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, default=dict).encode() + b"\n"


def _difference(found: Any, wanted: Any, name: str = "") -> tuple[str, str]:
    """The first entry in which two values differ, as text, named by its keys."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**wanted, **found}:
            was, now = found.get(key), wanted.get(key)
            if was != now:
                return _difference(was, now, f"{name}.{key}" if name else key)
    return f"{name} = {_short(found)}", f"{name} = {_short(wanted)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
