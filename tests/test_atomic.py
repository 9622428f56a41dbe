"""A reader sees the old or the new, never half of it, and a failure leaves no trace."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from opa_trt import atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_are_written_and_parents_made(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a" / "b" / "file", b"data")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"data"
    assert names(tmp_path / "a" / "b") == ["file"]


def test_text_is_utf_8(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "file", "größer\n")
    assert (tmp_path / "file").read_bytes() == "größer\n".encode()


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a much longer old one")
    atomic.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_others_can_read_the_file(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "file", b"")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], step: str
) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), failing)
    with pytest.raises(error):
        atomic.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    with atomic.folder(tmp_path / "made") as beside:
        (beside / "file").write_text("x")
        assert not (tmp_path / "made").exists()
        assert beside.parent == tmp_path
    assert (tmp_path / "made" / "file").read_text() == "x"
    assert names(tmp_path) == ["made"]


def test_an_old_folder_stands_until_the_block_ends(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("old")
    with atomic.folder(tmp_path / "made") as beside:
        (beside / "new").write_text("new")
        assert names(tmp_path / "made") == ["old"]
    assert names(tmp_path / "made") == ["new"]
    assert names(tmp_path) == ["made"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def half() -> None:
        with atomic.folder(tmp_path / "made") as beside:
            (beside / "file").write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert names(tmp_path) == []


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_a_failed_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rename: int
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("old")
    rename, calls = Path.rename, []

    def failing(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == failing_rename:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt), atomic.folder(tmp_path / "made"):
        pass
    assert names(tmp_path) == ["made"]
    assert names(tmp_path / "made") == ["old"]


def test_a_folder_that_cannot_be_cleared_away_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").mkdir()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    with atomic.folder(tmp_path / "made") as beside:
        (beside / "new").write_text("new")
    assert names(tmp_path / "made") == ["new"]


# --- a disk that fills --------------------------------------------------------------------------


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk(io.FileIO):
    """A file that takes a few bytes, and no more."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[:4])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("step", ["write", "fsync", "chmod", "rename"])
def test_a_file_that_finds_no_space_leaves_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, old: bytes | None
) -> None:
    if old is not None:
        (tmp_path / "file").write_bytes(old)
    if step == "write":
        monkeypatch.setattr(os, "fdopen", FullDisk)
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        monkeypatch.setattr(Path, "chmod" if step == "chmod" else "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_bytes(tmp_path / "file", b"much longer than there is room")
    assert names(tmp_path) == ([] if old is None else ["file"])
    assert old is None or (tmp_path / "file").read_bytes() == old


def test_what_went_wrong_first_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", no_space)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_bytes(tmp_path / "file", b"data")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_folder_that_finds_no_space_leaves_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, old: bool
) -> None:
    if old:
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "old").write_text("old")
    write, written = Path.write_bytes, []

    def filling(path: Path, data: bytes) -> int:
        if len(written) == failing:
            write(path, data[:2])
            no_space()
        written.append(path)
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", filling)

    def fill() -> None:
        with atomic.folder(tmp_path / "made") as beside:
            for name in ("a/first", "a/b/second", "third"):
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                (beside / name).write_bytes(b"data")
                (beside / name).chmod(0o444)

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert len(written) == failing
    assert names(tmp_path) == (["made"] if old else [])
    assert not old or names(tmp_path / "made") == ["old"]


def test_a_folder_for_which_there_is_no_space_at_all_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "chmod", no_space)
    with pytest.raises(OSError, match="No space left"), atomic.folder(tmp_path / "made"):
        pass
    assert names(tmp_path) == []
