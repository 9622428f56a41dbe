"""Where something was measured, as reports say it."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from opa_trt import __version__
from opa_trt.machine import gpu, processor


def machine_facts() -> dict[str, Any]:
    """This machine, and the versions of Python, torch and this package."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "gpu": gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opa_trt": __version__,
    }
