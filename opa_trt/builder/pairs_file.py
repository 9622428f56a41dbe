"""Archs and their measured accuracy on disk: a line each, so that measuring can stop and go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opa_trt.errors import CheckpointError
from opa_trt.journal import Journal, Kind, number
from opa_trt.supernet import Arch

KIND = Kind("opa_trt.accuracy_pairs", 1, "accuracy pairs", CheckpointError)


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
    """A journal of pairs.

    Args:
        path: the file.
        run: all that the accuracies depend on; a file that says otherwise is refused.
    """

    path: Path
    run: Mapping[str, Any]

    def resume(self) -> list[Pair]:
        """The pairs so far; the file is ready for more.

        Raises:
            CheckpointError: it is of another run, damaged, or none of ours.
            OSError: it cannot be written.
        """
        return self._journal.resume(_pair)

    def append(self, pair: Pair) -> None:
        """Add a pair, kept even where the next one is never measured."""
        self._journal.append(pair.to_dict())

    @property
    def _journal(self) -> Journal:
        return Journal(self.path, KIND, self.run)


def _pair(found: Any) -> Pair:
    accuracy, seconds = number(found["accuracy"], most=1.0), number(found["seconds"])
    return Pair(Arch.from_dict(found["arch"]), accuracy, seconds)
