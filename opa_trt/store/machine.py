"""Which machine this is, as far as engines and latencies depend on it."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

import torch


@functools.cache
def fingerprint() -> str:
    """A short hash of processor model, instruction set, cores, system and torch's build."""
    facts = [
        platform.machine(),
        platform.system(),
        processor(),
        instruction_set(),
        str(os.cpu_count()),
        torch.__version__,
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


@functools.cache
def processor() -> str:
    """The processor's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


@functools.cache
def instruction_set() -> str:
    """The instruction-set flags, sorted (empty where the system does not tell)."""
    return " ".join(sorted(_cpuinfo("flags").split()))


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
