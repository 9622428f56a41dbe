"""Compiled graphs: one file a vendor behind one protocol, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.errors import BackendUnavailable, UnknownNameError

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
        BackendUnavailable: an entry point gives something that cannot be used as a backend.
    """
    if name in _OWN:
        module, _, attribute = _OWN[name].partition(":")
        made = getattr(import_module(module), attribute)()
    else:
        points = entry_points(group=ENTRY_POINTS, name=name)
        if not points:
            msg = "backend"
            raise UnknownNameError(msg, name, backend_names())
        made = _foreign(next(iter(points)))
    if not isinstance(made, Backend):
        msg = f"the entry point of backend {name} gives a {type(made).__name__}."
        raise BackendUnavailable(msg, expected="a subclass of opa_trt.backends.Backend.")
    return made


def _foreign(point: EntryPoint) -> object:
    try:
        return point.load()()
    except Exception as exc:
        msg = f"the entry point of backend {point.name} fails: {exc}"
        raise BackendUnavailable(msg, remedy=f"repair or remove {point.value}.") from exc
