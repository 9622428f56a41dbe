"""What is on disk: the manifest's schema, and the folder that it describes."""

from opa_trt.bundle.bundle import CANARY, PROFILE, Bundle, check_place, pack, pack_arrays
from opa_trt.bundle.manifest import EngineEntry, ImageSpec, Manifest, SegmentEntry

__all__ = [
    "CANARY",
    "PROFILE",
    "Bundle",
    "EngineEntry",
    "ImageSpec",
    "Manifest",
    "SegmentEntry",
    "check_place",
    "pack",
    "pack_arrays",
]
