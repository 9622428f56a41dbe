"""Whether a file can be written, asked before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

from opa_trt.errors import ConfigError


def check_output(path: Path) -> None:
    """Refuse a place that no file can be put in (written beside it, then renamed).

    Raises:
        ConfigError: a folder, below a file, or in a folder that is not writable.
    """
    if problem := _problem(path):
        raise ConfigError(problem, expected="a file to write to.", remedy="name another place.")


def _problem(path: Path) -> str:
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        return f"{path} is a folder."
    if not above.is_dir():
        return f"{path} lies below a file, {above}."
    if not os.access(above, os.W_OK):
        return f"{path} cannot be written."
    return ""
