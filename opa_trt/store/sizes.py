"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import os
import re

from opa_trt.errors import ConfigError

LIMIT_VARIABLE = "OPA_TRT_CACHE_LIMIT"
DEFAULT_LIMIT = 8 * 2**30
_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_size(text: str, what: str = "a size") -> int:
    """Bytes that ``text`` means: a number, alone or with kB, MB, GB, TB, KiB, MiB, GiB or TiB.

    Raises:
        ConfigError: it is no such thing; says of ``what``.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].lower() not in _UNITS:
        message = f"{text!r} for {what}."
        raise ConfigError(
            message,
            expected="bytes, as in 500 MB, 2 GiB or 0 (MB is 10^6 bytes, MiB 2^20).",
        )
    return int(float(found[1]) * _UNITS[found[2].lower()])


def format_size(count: int) -> str:
    """Three digits or so and a unit: ``31.4 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def cache_limit() -> int:
    """``$OPA_TRT_CACHE_LIMIT`` in bytes, or 8 GiB.

    Raises:
        ConfigError: the variable is no size.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    return parse_size(given, LIMIT_VARIABLE) if given else DEFAULT_LIMIT
