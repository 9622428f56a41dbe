"""Spaces, archs, super-networks and their checkpoints (offline only)."""

from opa_trt.supernet.arch import Arch
from opa_trt.supernet.checkpoint import load_supernet, read_notes, save_supernet
from opa_trt.supernet.space import Cost, Space, space_from_dict
from opa_trt.supernet.spaces import MobileNetV3Space
from opa_trt.supernet.supernet import Supernet

__all__ = [
    "Arch",
    "Cost",
    "MobileNetV3Space",
    "Space",
    "Supernet",
    "load_supernet",
    "read_notes",
    "save_supernet",
    "space_from_dict",
]
