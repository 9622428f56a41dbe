"""Compiled graphs: one file a vendor behind one protocol, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.errors import UnknownNameError

__all__ = ["Availability", "Backend", "Engine", "backend", "backend_names"]

ENTRY_POINTS = "opa_trt.backends"
_OWN = {
    "openvino": "opa_trt.backends.openvino:OpenVinoBackend",
    "torchscript": "opa_trt.backends.torchscript:TorchScriptBackend",
    "null": "opa_trt.backends.null:NullBackend",
}


def backend_names() -> list[str]:
    """Every backend's name, ours first (fastest first), then those that entry points add."""
    others = sorted(point.name for point in entry_points(group=ENTRY_POINTS))
    return [*_OWN, *(name for name in others if name not in _OWN)]


def backend(name: str) -> Backend:
    """The backend called ``name``; whether it works here is its ``availability``.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name in _OWN:
        module, _, attribute = _OWN[name].partition(":")
        made = getattr(import_module(module), attribute)()
    else:
        points = entry_points(group=ENTRY_POINTS, name=name)
        if not points:
            msg = "backend"
            raise UnknownNameError(msg, name, backend_names())
        made = next(iter(points)).load()()
    assert isinstance(made, Backend)
    return made
