"""Archs in JSON files, in every form that they are handed around in.

- what ``Arch.to_dict`` writes (``{"resolution": …, "depths": …}``);
- OFA's dictionary of ``ks``, ``e``, ``d``, ``w`` and ``r`` (``ofa_archs``);
- OFA's published ``net.config`` (``net_configs``), which tells its space;
- an object that holds one of these as ``arch``, and perhaps its ``space`` (``Space.to_dict``), as
  ``opa-trt arch --json`` and every element of what a search found do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from opa_trt.errors import ArchError, ConfigError
from opa_trt.supernet import net_configs, ofa_archs
from opa_trt.supernet.arch import Arch
from opa_trt.supernet.registry import space_from_dict
from opa_trt.supernet.space import Space

OFA_KEYS = frozenset({"ks", "e", "d", "w", "wid", *ofa_archs.RESOLUTION_KEYS})
FREE = ("classes", "resolutions", "dropout")  # of a space: no arch depends on them
SHOWN = 6  # keys that a message names
FORMS = (
    'an OFA dictionary ({"ks": …, "e": …, "d": …, "r": …}), a net.config ({"name": …, "blocks": '
    '…}), {"resolution": …, "depths": …}, or an object that holds one of these as "arch".'
)


@dataclass(frozen=True)
class ArchFile:
    """What a file says: an arch in one of the forms, and perhaps the space that it is of."""

    path: Path
    values: Mapping[str, Any]
    space_values: Mapping[str, Any] | None = None

    @cached_property
    def space(self) -> Space | None:
        """The space that the file says, or None.

        Raises:
            ArchError: it says one that does not exist.
        """
        with _named(self.path):
            if self.space_values is not None:
                return space_from_dict(self.space_values)
            if net_configs.is_net_config(self.values):
                return net_configs.space_of(self.values)
        return None

    @property
    def says_resolution(self) -> bool:
        """Whether the file names a resolution; otherwise its arch has the space's largest."""
        if "depths" in self.values:
            return True
        return ofa_archs.says_resolution(self.values)

    def arch(self, space: Space, resolution: int | None = None) -> Arch:
        """The arch, of ``space``, at its own resolution or at ``resolution``.

        Raises:
            ArchError: it does not lie in ``space``, or the file says another one.
        """
        with _named(self.path):
            if self.space_values is not None:
                _check_same(space_from_dict(self.space_values), space)
            arch = _arch(self.values, space)
            return arch if resolution is None else space.at(arch, resolution)


def open_arch(path: Path | str) -> ArchFile:
    """Read ``path`` as far as that needs no space.

    Raises:
        ArchError: no such file, not JSON, or none of the forms.
    """
    path = Path(path)
    values = _object(path, _json(path))
    if "arch" not in values:
        return ArchFile(path, _known(path, values))
    space = values.get("space")
    if space is not None and not isinstance(space, Mapping):
        message = f"{path}: space is {space!r}."
        raise ArchError(message, expected="an object, as Space.to_dict writes it.")
    return ArchFile(path, _known(path, _object(path, values["arch"])), space)


def read_arch(
    path: Path | str, space: Space | None = None, *, resolution: int | None = None
) -> tuple[Space, Arch]:
    """The arch in ``path``, and the space that it is of.

    Args:
        path: a JSON file in one of the forms.
        space: the space, where the file says none; where it says one, the two must agree.
        resolution: in place of the file's; the space's largest where neither says one.

    Raises:
        ArchError: a file that cannot be read, whose arch lies outside the space, or that says no
            space where none is given.
    """
    found = open_arch(path)
    own = space or found.space
    if own is None:
        message = f"{found.path} does not say of which space its arch is."
        raise ArchError(message, expected="a space.", remedy="name it, with --space NAME.")
    return own, found.arch(own, resolution)


def _json(path: Path) -> Any:
    if not path.is_file():
        message = f"{path} {'is no file' if path.exists() else 'does not exist'}."
        raise ArchError(message, expected="a JSON file that holds an arch.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as exc:
        message = f"{path} is not JSON: {exc}."
        raise ArchError(message, expected=FORMS) from exc


def _object(path: Path, value: Any) -> Mapping[str, Any]:
    """``value``, or the only element of the list that it is."""
    if isinstance(value, list) and len(value) != 1:
        message = f"{path} holds a list of {len(value)}."
        raise ArchError(message, expected="one arch.", remedy="put one element in a file.")
    found = value[0] if isinstance(value, list) else value
    if not isinstance(found, Mapping):
        message = f"{path} holds {json.dumps(found)[:40]}."
        raise ArchError(message, expected=FORMS)
    return found


def _known(path: Path, values: Mapping[str, Any]) -> Mapping[str, Any]:
    if net_configs.is_net_config(values) or "depths" in values or OFA_KEYS & set(values):
        return values
    listing = f"{sorted(values)[:SHOWN]}{' …' if len(values) > SHOWN else ''}"
    message = f"{path} holds an object with the keys {listing}."
    raise ArchError(message, expected=FORMS)


def _arch(values: Mapping[str, Any], space: Space) -> Arch:
    if net_configs.is_net_config(values):
        return net_configs.arch_of(values, space)
    if "depths" not in values:
        return ofa_archs.arch_from_ofa(values, space)
    arch = Arch.from_dict(values)
    space.validate(arch)
    return arch


def _check_same(found: Space, wanted: Space) -> None:
    """Whether an arch of ``found`` means the same in ``wanted``, which may sample other sides."""
    ours, theirs = wanted.to_dict(), found.to_dict()
    for key in dict.fromkeys([*ours, *theirs]):
        if key not in FREE and ours.get(key) != theirs.get(key):
            message = f"its space has {key} = {theirs.get(key)}."
            raise ArchError(message, expected=f"{key} = {ours.get(key)}.")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong within is said of ``path``."""
    try:
        yield
    except ConfigError as exc:
        message = f"{path}: {exc.received}"
        raise ArchError(message, expected=exc.expected, remedy=exc.remedy) from exc
