"""Which machine this is, as far as engines and latencies depend on it."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
from pathlib import Path

import torch

DRIVER = Path("/proc/driver/nvidia/version")


@functools.cache
def fingerprint() -> str:
    """A short hash of processor and GPU model, instruction set, cores, system and torch's build."""
    facts = [
        platform.machine(),
        platform.system(),
        processor(),
        instruction_set(),
        str(os.cpu_count()),
        torch.__version__,
    ]
    if has_gpu():
        facts.append(gpu())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


@functools.cache
def processor() -> str:
    """The processor's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


@functools.cache
def instruction_set() -> str:
    """The instruction-set flags, sorted (empty where the system does not tell)."""
    return " ".join(sorted(_cpuinfo("flags").split()))


@functools.cache
def has_gpu() -> bool:
    """Whether torch can use an NVIDIA GPU here."""
    return bool(torch.cuda.is_available())


@functools.cache
def gpu() -> str:
    """Model, compute capability and driver of the GPU that torch uses; empty without one."""
    if not has_gpu():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, {major}.{minor}, driver {_driver()}"


def capability(device: str) -> str:
    """What engines for ``device`` (``cpu`` or ``cuda``) depend on: instruction set, or GPU."""
    return instruction_set() if device == "cpu" else gpu()


def _driver() -> str:
    try:
        found = re.search(r"\s(\d+\.\d[\d.]*)\s", DRIVER.read_text(errors="replace"))
    except OSError:
        return "unknown"
    return found.group(1) if found else "unknown"


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
