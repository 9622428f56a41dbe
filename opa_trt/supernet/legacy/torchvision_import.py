"""The package ``torchvision``, also beside a torch that it was not compiled for."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch

from opa_trt.errors import BackendUnavailable

INSTALL = "pip install 'opa-trt[legacy]'"
NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def require_torchvision() -> Any:
    """The package ``torchvision``: its models, transforms and data sets.

    The wheels of the package index are linked against CUDA. Beside a CPU build of torch their
    operators do not load, and the import fails for want of two schemas, which are defined here
    where that happens; models need neither operator.

    Raises:
        BackendUnavailable: it is not installed, or does not work here; says what installs it.
    """
    try:
        return import_module("torchvision")
    except ImportError as exc:
        message = "torchvision is not installed."
        raise BackendUnavailable(message, remedy=INSTALL) from exc
    except RuntimeError as exc:
        if "torchvision::nms" not in str(exc):
            raise _broken(exc) from exc
    _schemas()
    try:
        return import_module("torchvision")
    except (ImportError, RuntimeError) as exc:
        raise _broken(exc) from exc


def _broken(exc: Exception) -> BackendUnavailable:
    message = f"torchvision does not work with torch {torch.__version__}: {exc}"
    return BackendUnavailable(
        message, expected="the torchvision of this torch's release.", remedy=INSTALL
    )


@cache
def _schemas() -> torch.library.Library:
    """The operators that importing torchvision asks for; they last as long as what is returned."""
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(name + NMS)  # type: ignore[no-untyped-call]
    return library
