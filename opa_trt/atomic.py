"""Write beside, then rename: a reader sees the old file or the new one, never half of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``; on any failure what was there before stays, and nothing else.

    Raises:
        OSError: the disk is full or read-only, or something else is in the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what is told
            beside.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of UTF-8 text."""
    write_bytes(path, text.encode())


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A fresh folder beside ``path`` that takes its place when the block ends well.

    A folder already at ``path`` is replaced only then; on any failure it stays as it was, and
    nothing is left beside it.

    Raises:
        OSError: the disk is full or read-only, or something else is in the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = beside.with_name(beside.name + ".old")
    try:
        beside.chmod(0o755)
        yield beside
        if path.exists():
            path.rename(old)
        beside.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            with suppress(OSError):
                old.rename(path)
        shutil.rmtree(beside, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
