"""Trained networks made flexible: shallow alternatives for their phases (LeAF; offline only).

::

    network = augment(torchvision.models.resnet50(weights="IMAGENET1K_V1").eval(), "resnet50")
    network = augment(own.eval(), ("stages.0", "stages.1", "blocks[4:9]"))  # phases of one's own

A phase is a sub-module, or a range of the children of one: feature maps in, feature maps out.
Phases stand in the order in which they run, and each reads only what the one before gave, but for
layers between them that belong to none. ``training.leaf`` trains what is new, ``builder.leaf``
makes a tree of segments of it.
"""

from opa_trt.supernet.legacy.augmentation import augment
from opa_trt.supernet.legacy.augmented import Augmented
from opa_trt.supernet.legacy.configuration import Configuration
from opa_trt.supernet.legacy.cost import PhaseCosts
from opa_trt.supernet.legacy.cutting import PHASES
from opa_trt.supernet.legacy.torchvision_import import require_torchvision
from opa_trt.supernet.legacy.weights import load_shallow, save_shallow

__all__ = [
    "PHASES",
    "Augmented",
    "Configuration",
    "PhaseCosts",
    "augment",
    "load_shallow",
    "require_torchvision",
    "save_shallow",
]
