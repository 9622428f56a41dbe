"""Spaces, archs, super-networks and their checkpoints (offline only)."""

from opa_trt.supernet.arch import Arch
from opa_trt.supernet.arch_files import read_arch
from opa_trt.supernet.checkpoint import load, read_notes, save
from opa_trt.supernet.cost import Cost
from opa_trt.supernet.genome import Genome, Population
from opa_trt.supernet.ofa_checkpoint import ofa_classes
from opa_trt.supernet.ofa_weights import (
    OfaImport,
    from_ofa_state_dict,
    read_ofa_state_dict,
    to_ofa_state_dict,
)
from opa_trt.supernet.registry import published_space, space_from_dict, space_names
from opa_trt.supernet.space import Space
from opa_trt.supernet.spaces import MobileNetV3Space, ProxylessSpace, ResNet50DSpace
from opa_trt.supernet.subnet import load_subnet
from opa_trt.supernet.supernet import Supernet

__all__ = [
    "Arch",
    "Cost",
    "Genome",
    "MobileNetV3Space",
    "OfaImport",
    "Population",
    "ProxylessSpace",
    "ResNet50DSpace",
    "Space",
    "Supernet",
    "from_ofa_state_dict",
    "load",
    "load_subnet",
    "ofa_classes",
    "published_space",
    "read_arch",
    "read_notes",
    "read_ofa_state_dict",
    "save",
    "space_from_dict",
    "space_names",
    "to_ofa_state_dict",
]
