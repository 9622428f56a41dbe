"""A bundle as a folder: packed once, verified whenever it is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from opa_trt import atomic
from opa_trt.bundle.manifest import FileEntry, Manifest
from opa_trt.errors import BundleCorrupt, BundleError, ConfigError
from opa_trt.tree import Segment, Tree

MANIFEST = "manifest.json"
PROFILE = "profile.safetensors"
CANARY = "canary.safetensors"
Arrays = dict[str, npt.NDArray[np.generic]]


class Bundle:
    """An opened bundle: every file's path, size and sha256 have been checked.

    Args:
        path: the folder.

    Raises:
        BundleError: no such folder, or no bundle.
        BundleCorrupt: a file is missing, truncated or altered, or leads out of the folder.
        BundleVersionError: a later format version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            what = "has no manifest.json" if self.path.is_dir() else "does not exist"
            message = f"{path} {what}."
            raise BundleError(
                message,
                expected="a bundle folder.",
                remedy="build one with `opa-trt build RECIPE --out FOLDER`.",
            )
        text = (self.path / MANIFEST).read_bytes().decode("utf-8", errors="replace")
        self.manifest = Manifest.from_json(text, str(self.path / MANIFEST))
        self.tree = self._checked_tree()
        self._check_names()
        with ThreadPoolExecutor() as pool:  # hashing lets other threads run
            for checked in [
                pool.submit(self._check, *item) for item in self.manifest.files.items()
            ]:
                checked.result()

    def read(self, name: str) -> bytes:
        """The bytes of a file, verified once more as they are read."""
        if name not in self.manifest.files:
            message = f"{self.path} lists no file {name!r}."
            raise BundleCorrupt(message, remedy="build the bundle again.")
        entry, path = self.manifest.files[name], self.path / name
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise _unreadable(path) from exc
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _altered(path)
        return data

    def arrays(self, name: str) -> Arrays:
        """The arrays of a safetensors file.

        Raises:
            BundleCorrupt: it cannot be read as one.
        """
        try:
            return dict(load(self.read(name)))
        except SafetensorError as exc:
            message = f"{self.path / name} is not readable: {exc}."
            raise BundleCorrupt(message, remedy="build the bundle again.") from exc

    def segment(self, name: str) -> Segment:
        """A segment; the bytes of a portable form are read when they are asked for."""
        entry = self.manifest.segments[name]
        forms = _Forms(self, entry.forms)
        return Segment(name, entry.inputs, entry.outputs, forms, entry.content)

    def _checked_tree(self) -> Tree:
        try:
            return self.manifest.tree
        except ConfigError as exc:
            message = f"the nodes of {self.path} are no tree: {exc}"
            raise BundleCorrupt(message, remedy="build the bundle again.") from exc

    def _check_names(self) -> None:
        manifest = self.manifest
        named = {file for entry in manifest.segments.values() for file in entry.forms.values()}
        named |= {engine.file for engine in manifest.engines} | {PROFILE, CANARY}
        if missing := named - manifest.files.keys():
            message = f"{self.path} does not list {sorted(missing)}."
            raise BundleCorrupt(message, remedy="build the bundle again.")
        for node in manifest.nodes:
            if node.segment not in manifest.segments:
                message = f"node {node.name} of {self.path} names no segment {node.segment!r}."
                raise BundleCorrupt(message, remedy="build the bundle again.")

    def _check(self, name: str, entry: FileEntry) -> None:
        path = self.path / name
        if not _stays_inside(name) or not self._holds(path):
            message = f"{self.path} names the file {name!r}, which leads out of it."
            raise BundleCorrupt(message, remedy="do not use this bundle.")
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as exc:
            raise _unreadable(path) from exc
        if size != entry.size:
            message = f"{path} has {size} bytes."
            raise BundleCorrupt(
                message, expected=f"{entry.size}.", remedy="copy or build the bundle again."
            )
        if digest != entry.sha256:
            raise _altered(path)

    def _holds(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self.path.resolve())
        except (OSError, RuntimeError):  # no possible name, or links that lead in a circle
            return False


class _Forms(Mapping[str, bytes]):
    """Portable forms of a segment, each read and verified whenever it is asked for."""

    def __init__(self, bundle: Bundle, files: Mapping[str, str]) -> None:
        self._bundle, self._files = bundle, files

    def __getitem__(self, form: str) -> bytes:
        return self._bundle.read(self._files[form])

    def __contains__(self, form: object) -> bool:
        return form in self._files  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _unreadable(path: Path) -> BundleCorrupt:
    message = f"{path} is missing, or cannot be read."
    return BundleCorrupt(message, remedy="copy the bundle again, or build it again.")


def _altered(path: Path) -> BundleCorrupt:
    message = f"{path} was altered: its sha256 does not match."
    return BundleCorrupt(message, remedy="copy or build the bundle again.")


def pack(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """Write a bundle to ``path``: beside first, manifest last, renamed, read-only.

    Args:
        path: the folder to make; a bundle already there is replaced only when all is written.
        manifest: its ``files`` are filled in here.
        files: everything else, by relative path.

    Returns:
        The manifest as written.

    Raises:
        BundleError: something that is no bundle stands at ``path``, or a name leads out of it.
    """
    check_place(path)
    if wrong := sorted(name for name in files if name == MANIFEST or not _stays_inside(name)):
        message = f"files named {wrong}."
        raise BundleError(message, expected="relative paths inside the bundle, no manifest.json.")
    entries = {
        name: FileEntry(len(data), hashlib.sha256(data).hexdigest())
        for name, data in sorted(files.items())
    }
    complete = replace(manifest, files=entries)
    contents = {**files, MANIFEST: complete.to_json().encode()}
    try:
        with atomic.folder(path) as beside:
            for name, data in contents.items():
                target = beside / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(0o444)
    except OSError as exc:
        size = sum(map(len, contents.values())) / 1e6
        message = (
            f"{path} cannot be written: {exc.strerror or exc!r}. Nothing of it is left behind."
        )
        raise BundleError(
            message,
            expected=f"{size:.1f} MB of space that can be written to.",
            remedy="make room, or choose another place with --out.",
        ) from exc
    return complete


def _stays_inside(name: str) -> bool:
    pure = PurePosixPath(name)
    return "\0" not in name and not pure.is_absolute() and ".." not in pure.parts


def check_place(path: Path) -> None:
    """Refuse a path at which something else than a bundle stands.

    Raises:
        BundleError: a file, or a folder that is neither empty nor a bundle.
    """
    if not path.exists():
        return
    if path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir())):
        return
    message = f"{path} exists and is no bundle."
    raise BundleError(message, expected="a new name, or a bundle to replace.")


def pack_arrays(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """Arrays as safetensors bytes."""
    return save({key: np.asarray(value, order="C") for key, value in arrays.items()})
