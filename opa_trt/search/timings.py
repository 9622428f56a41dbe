"""Latencies found so far, in a file of JSON lines, so that a measurement that stops can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opa_trt import atomic
from opa_trt.errors import ConfigError

FORMAT = "opa_trt.timings"
CALM = 1.1  # a yardstick this many times its best: the machine was busy


@dataclass(frozen=True)
class Timing:
    """Latency (ms) of one thing, and of the yardstick that took turns with it."""

    ms: float
    yardstick: float


@dataclass
class Timings:
    """Latencies by name; of two for one name, the one of the calmer moment counts.

    Args:
        path: the file that every addition is appended to at once.
        found: what it holds.
    """

    path: Path
    found: dict[str, Timing] = field(default_factory=dict)

    def add(self, ms: Mapping[str, float], yardstick: float) -> None:
        """Keep the latencies (ms) of things that took turns with the yardstick."""
        self._merge(ms, yardstick)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"yardstick": yardstick, "ms": dict(ms)}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _merge(self, ms: Mapping[str, float], yardstick: float) -> None:
        for name, value in ms.items():
            known = self.found.get(name)
            if known is None or yardstick < known.yardstick:
                self.found[name] = Timing(value, yardstick)

    def calm_ms(self, names: Iterable[str]) -> dict[str, float]:
        """Their latencies (ms) as at the calmest moment: each divided by its yardstick's excess."""
        found = {name: self.found[name] for name in names}
        calmest = min((timing.yardstick for timing in found.values()), default=1.0)
        return {
            name: timing.ms * (calmest / timing.yardstick if timing.yardstick else 1.0)
            for name, timing in found.items()
        }

    def busy(self, names: Iterable[str]) -> list[str]:
        """Those that were timed while the yardstick took over ``CALM`` times its best."""
        found = {name: self.found[name].yardstick for name in names}
        calmest = min(found.values(), default=0.0)
        return [name for name, yardstick in found.items() if yardstick > CALM * calmest]

    def spread(self, names: Iterable[str]) -> float:
        """The yardstick's slowest over its fastest time, among those that count."""
        found = [self.found[name].yardstick for name in names]
        return max(found) / min(found) if found and min(found) > 0 else 1.0

    def discard(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)


def open_timings(path: Path, identity: Mapping[str, Any]) -> Timings:
    """What ``path`` holds, or a fresh file there.

    Args:
        path: may exist; a last line that is cut short is dropped.
        identity: all that the latencies depend on, as plain values.

    Raises:
        ConfigError: the file is damaged, or of another identity (says of which part).
        OSError: it cannot be written.
    """
    header = {"format": FORMAT, **_plain(identity)}
    kept = _lines(path)
    timings = Timings(path)
    if kept:
        _check_header(path, kept[0], header)
        for line in kept[1:]:
            timings._merge(line["ms"], line["yardstick"])
    atomic.write_text(path, "".join(json.dumps(line) + "\n" for line in kept or [header]))
    return timings


def backend_of(path: Path) -> str | None:
    """The backend that a measurement in ``path`` began with; None where there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    lines = _lines(path)
    return str(lines[0]["target"]["backend"]) if lines else None


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _lines(path: Path) -> list[dict[str, Any]]:
    """Its whole lines, the header first."""
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        lines = [json.loads(line) for line in whole]
        for number, line in enumerate(lines):
            _check_line(line, number)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        message = f"{path} is damaged, or no file of measurements: {exc!r}."
        raise ConfigError(message, remedy=f"delete {path} to measure from the start.") from exc
    return lines


def _check_line(line: dict[str, Any], number: int) -> None:
    if number == 0:
        if line["format"] != FORMAT or not line["target"]["backend"]:
            message = f"its format is {line['format']}"
            raise ValueError(message)
    elif not all(float(ms) >= 0 for ms in [line["yardstick"], *line["ms"].values()]):
        message = f"line {number + 1} has a latency below 0"
        raise ValueError(message)


def _check_header(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            was, now = _difference(found.get(key), wanted.get(key))
            message = f"{path} holds measurements of another {key}: {was}."
            raise ConfigError(
                message,
                expected=f"{now}.",
                remedy=f"delete {path} to measure from the start, or choose another --out.",
            )


def _difference(found: Any, wanted: Any) -> tuple[str, str]:
    """The first entry in which two values differ, as text."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**wanted, **found}:
            if found.get(key) != wanted.get(key):
                return f"{key} = {found.get(key)}", f"{key} = {wanted.get(key)}"
    return str(found), str(wanted)
