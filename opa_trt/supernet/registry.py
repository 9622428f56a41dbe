"""Spaces by name: from plain values, and as OFA published them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from opa_trt.errors import ConfigError, UnknownNameError
from opa_trt.supernet.space import REGISTERED, Space


def space_from_dict(values: Mapping[str, Any]) -> Space:
    """The space that ``values`` describes; what is left out has the published value.

    Raises:
        UnknownNameError: the space, or one of its parameters, does not exist.
        ConfigError: a parameter has an impossible value.
    """
    given = dict(values)
    name = given.pop("name", None)
    space = _space_named(name)
    known = [field.name for field in fields(space)]
    for key in given:
        if key not in known:
            kind = f"parameter of space {name}"
            raise UnknownNameError(kind, key, known)
    return _made(space, **given)


def published_space(name: str, *, width: float | None = None, classes: int = 1000) -> Space:
    """OFA's space ``name`` (``mobilenet_v3``, ``proxyless``, ``resnet50d``) for 224 px images.

    Args:
        name: which one.
        width: the multiplier of its channels; its published one by default.
        classes: of the classifier.

    Raises:
        UnknownNameError: there is no space of that name.
        ConfigError: an impossible width or number of classes, or a width other than 1 for a
            space whose width is a choice of the arch.
    """
    space = _space_named(name)
    if "width" in {field.name for field in fields(space)}:
        wide = {} if width is None else {"width": float(width)}
        return _made(space, classes=classes, **wide)
    if width not in (None, 1):
        msg = f"width {width:g} for space {name}."
        raise ConfigError(msg, expected="none: every arch chooses its own widths.")
    return _made(space, classes=classes)


def published_spaces(classes: int) -> list[Space]:
    """Every space that OFA published weights for, at each of its widths."""
    return [
        published_space(name, width=width, classes=classes)
        for name in space_names()
        for width in REGISTERED[name].published_widths or (None,)
    ]


def space_names() -> list[str]:
    """The names that ``published_space`` knows."""
    import opa_trt.supernet.spaces  # noqa: F401 - registers the spaces

    return list(REGISTERED)


def _space_named(name: object) -> type[Space]:
    if name not in space_names():
        kind = "space"
        raise UnknownNameError(kind, str(name), REGISTERED)
    return REGISTERED[str(name)]


def _made(space: Callable[..., Space], **parameters: Any) -> Space:
    """A space from parameters that its fields were checked to know."""
    return space(**parameters)
