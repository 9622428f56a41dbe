"""What the stages of a build have found so far, so that a build that stops can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from opa_trt import atomic

FACTS, ARRAYS, BLOBS = "facts.json", "arrays.safetensors", "blobs"


@dataclass(frozen=True)
class Finding:
    """What one stage found: plain facts, arrays, and blobs of bytes by name; one line to show."""

    line: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)


class Work:
    """A folder with one folder a finished stage, valid for one ``key`` only.

    Args:
        folder: made with the first finding.
        key: hash of all that the build depends on; findings of another key are not read.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def load(self, stage: str) -> Finding | None:
        """What ``stage`` found under this key, or None."""
        place = self.folder / stage
        try:
            record = json.loads((place / FACTS).read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record["key"] != self.key:
                return None
            arrays = load((place / ARRAYS).read_bytes())
            blobs = {name: (place / BLOBS / name).read_bytes() for name in record["blobs"]}
        except (OSError, ValueError, KeyError, SafetensorError):
            return None
        return Finding(record["line"], record["facts"], arrays, blobs)

    def save(self, stage: str, finding: Finding) -> None:
        """Keep what ``stage`` found, whole or not at all."""
        record = {
            "key": self.key,
            "line": finding.line,
            "facts": dict(finding.facts),
            "blobs": sorted(finding.blobs),
        }
        with atomic.folder(self.folder / stage) as place:
            (place / BLOBS).mkdir()
            for name, data in finding.blobs.items():
                (place / BLOBS / name).write_bytes(data)
            arrays = {key: np.asarray(value, order="C") for key, value in finding.arrays.items()}
            (place / ARRAYS).write_bytes(save(arrays))
            (place / FACTS).write_text(json.dumps(record), encoding="utf-8")

    def discard(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
