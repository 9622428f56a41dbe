"""Compiled graphs: one file a vendor behind one protocol, imported when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.errors import BackendUnavailable, OpaError, UnknownNameError

__all__ = ["Availability", "Backend", "Engine", "backend", "backend_names", "every_backend"]

log = logging.getLogger(__name__)

ENTRY_POINTS = "opa_trt.backends"
_OWN = {
    "tensorrt": "opa_trt.backends.tensorrt:TensorRTBackend",
    "tensorrt_rtx": "opa_trt.backends.tensorrt:TensorRTRTXBackend",
    "torch_tensorrt": "opa_trt.backends.torch_tensorrt:TorchTensorRTBackend",
    "openvino": "opa_trt.backends.openvino:OpenVinoBackend",
    "onnxruntime": "opa_trt.backends.onnxruntime:OnnxRuntimeBackend",
    "inductor": "opa_trt.backends.inductor:InductorBackend",
    "torchscript": "opa_trt.backends.torchscript:TorchScriptBackend",
    "null": "opa_trt.backends.null:NullBackend",
}


def backend_names() -> list[str]:
    """Every backend's name, ours first (fastest first), then those that entry points add."""
    others = sorted(point.name for point in entry_points(group=ENTRY_POINTS))
    return [*_OWN, *(name for name in others if name not in _OWN)]


def backend(name: str) -> Backend:
    """The backend called ``name`` or ``name:device``; ``availability`` says whether it works here.

    Raises:
        UnknownNameError: there is none of that name, or it has no such device.
        BackendUnavailable: an entry point gives something that cannot be used as a backend.
    """
    bare, _, device = name.partition(":")
    options = {"device": device} if device else {}
    if bare in _OWN:
        module, _, attribute = _OWN[bare].partition(":")
        made = getattr(import_module(module), attribute)(**options)
    else:
        points = entry_points(group=ENTRY_POINTS, name=bare)
        if not points:
            kind = "backend"
            raise UnknownNameError(kind, bare, backend_names())
        made = _foreign(next(iter(points)), options)
    if not isinstance(made, Backend):
        msg = f"the entry point of backend {bare} gives a {type(made).__name__}."
        raise BackendUnavailable(msg, expected="a subclass of opa_trt.backends.Backend.")
    return made


def every_backend() -> list[Backend]:
    """Every backend on every device that it has, but for ``null``; foreign ones that fail are left
    out with a warning."""
    found = []
    for name in backend_names():
        if name == "null":
            continue
        try:
            first = backend(name)
            others = [backend(f"{name}:{device}") for device in first.devices[1:]]
        except (BackendUnavailable, UnknownNameError) as exc:
            log.warning("%s", exc)
            continue
        found += [first, *others]
    return found


def _foreign(point: EntryPoint, options: Mapping[str, str]) -> object:
    try:
        return point.load()(**options)
    except OpaError:
        raise
    except Exception as exc:
        msg = f"the entry point of backend {point.name} fails: {exc}"
        raise BackendUnavailable(msg, remedy=f"repair or remove {point.value}.") from exc
