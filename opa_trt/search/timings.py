"""Latencies found so far, in a file of JSON lines, so that a measurement that stops can go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opa_trt.errors import ConfigError
from opa_trt.journal import Journal, Kind, number, read_run

KIND = Kind("opa_trt.timings", 1, "measurements", ConfigError)
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
        journal: the file that every addition is appended to at once.
        found: what it holds.
    """

    journal: Journal
    found: dict[str, Timing] = field(default_factory=dict)

    def add(self, ms: Mapping[str, float], yardstick: float) -> None:
        """Keep the latencies (ms) of things that took turns with the yardstick."""
        self._merge(ms, yardstick)
        self.journal.append({"yardstick": yardstick, "ms": dict(ms)})

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
        self.journal.discard()


def open_timings(path: Path, identity: Mapping[str, Any]) -> Timings:
    """What ``path`` holds, or a fresh file there.

    Args:
        path: may exist; a last line that is cut short is dropped.
        identity: all that the latencies depend on, as plain values.

    Raises:
        ConfigError: the file is damaged, or of another identity (says of which part).
        OSError: it cannot be written.
    """
    journal = Journal(path, KIND, identity)
    timings = Timings(journal)
    for ms, yardstick in journal.resume(_entry):
        timings._merge(ms, yardstick)
    return timings


def backend_of(path: Path) -> str | None:
    """The backend that a measurement in ``path`` began with; None where there is none.

    Raises:
        ConfigError: the file is no file of measurements.
    """
    run = read_run(path, KIND)
    if run is None:
        return None
    try:
        return str(run["target"]["backend"])
    except (KeyError, TypeError) as exc:
        raise KIND.foreign(path) from exc


def _entry(line: Any) -> tuple[dict[str, float], float]:
    return {name: number(ms) for name, ms in line["ms"].items()}, number(line["yardstick"])
