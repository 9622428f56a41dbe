"""Engines and latency profiles of this machine, kept in the user's cache by content key."""

from opa_trt.machine import fingerprint, processor
from opa_trt.store.latency import LatencyProfile, measure
from opa_trt.store.store import EngineStore, cache_folder, engine_key

__all__ = [
    "EngineStore",
    "LatencyProfile",
    "cache_folder",
    "engine_key",
    "fingerprint",
    "measure",
    "processor",
]
