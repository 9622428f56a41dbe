"""Where a store keeps what: engines for all machines, latencies and marks for each.

::

    engines/<key>.engine
    profiles/<machine>/<key>.json
    verified/<machine>/<key>.json

Other processes write and remove files at any moment: one that has vanished is never an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ENGINE = ".engine"
_HALF_WRITTEN = re.compile(r"\..+\.(engine|json)\.[^.]+")  # as atomic.write_bytes names them


@dataclass(frozen=True)
class StoredFile:
    """A file as it was when the folder was read.

    Args:
        path: where it is.
        bytes: its size.
        used_ns: when it was last written or used, in ns since the epoch.
    """

    path: Path
    bytes: int
    used_ns: int

    @property
    def key(self) -> str:
        """The key of the engine that it is or belongs to."""
        return self.path.stem

    def unchanged(self) -> bool:
        """Whether it is still there, and nobody has written or used it since."""
        try:
            return self.path.stat().st_mtime_ns == self.used_ns
        except OSError:
            return False


@dataclass(frozen=True)
class Layout:
    """The folder of a store.

    Args:
        root: which need not exist.
    """

    root: Path

    def engine(self, key: str) -> Path:
        """Where the engine of that key is, or would be."""
        return self.root / "engines" / f"{key}{ENGINE}"

    def profile(self, machine: str, key: str) -> Path:
        """Where the latencies of that engine on ``machine`` are, or would be."""
        return self.root / "profiles" / machine / f"{key}.json"

    def mark(self, machine: str, key: str) -> Path:
        """Where it is noted, or would be, that the engine's canary matched on ``machine``."""
        return self.root / "verified" / machine / f"{key}.json"

    def engines(self) -> list[StoredFile]:
        """Every engine, the least recently used first.

        Raises:
            OSError: the folder is there and cannot be read.
        """
        files = [file for file in _files(self.root / "engines") if _is_engine(file.path)]
        return sorted(files, key=lambda file: (file.used_ns, file.key))

    def beside(self) -> list[StoredFile]:
        """Every profile and mark of every machine.

        Raises:
            OSError: as ``engines`` says.
        """
        return [
            file
            for folder in self._folders_of_machines()
            for file in _files(folder)
            if file.path.suffix == ".json" and not file.path.name.startswith(".")
        ]

    def half_written(self) -> list[StoredFile]:
        """What writers left, or are writing right now.

        Raises:
            OSError: as ``engines`` says.
        """
        folders = [self.root / "engines", *self._folders_of_machines()]
        files = [file for folder in folders for file in _files(folder)]
        return [file for file in files if _HALF_WRITTEN.fullmatch(file.path.name)]

    def remove_engine(self, key: str) -> None:
        """Remove an engine and, first, the marks that its like must earn again.

        Raises:
            OSError: it is there and cannot be removed.
        """
        for machine in _subfolders(self.root / "verified"):
            (machine / f"{key}.json").unlink(missing_ok=True)
        self.engine(key).unlink(missing_ok=True)

    def _folders_of_machines(self) -> list[Path]:
        return [
            folder for kind in ("profiles", "verified") for folder in _subfolders(self.root / kind)
        ]


def touch(path: Path) -> None:
    """Note that a file was used now, where that can be noted."""
    with suppress(OSError):
        os.utime(path)


def _is_engine(path: Path) -> bool:
    return path.suffix == ENGINE and not path.name.startswith(".")


def _files(folder: Path) -> Iterator[StoredFile]:
    """Every plain file, with its size; none where there is no such folder."""
    for entry in _entries(folder):
        try:
            if not entry.is_file():
                continue
            found = entry.stat()
        except FileNotFoundError:  # somebody else removed it
            continue
        yield StoredFile(folder / entry.name, found.st_size, found.st_mtime_ns)


def _subfolders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
