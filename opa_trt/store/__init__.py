"""Engines and latency profiles of this machine, kept in the user's cache by content key."""

from opa_trt.machine import fingerprint, processor
from opa_trt.store.entries import STATES, Entry, Judge, Mark, Standing
from opa_trt.store.eviction import Pruning, Removal
from opa_trt.store.latency import LatencyProfile, measure
from opa_trt.store.sizes import format_size, parse_size
from opa_trt.store.store import EngineStore, cache_folder, engine_key

__all__ = [
    "STATES",
    "EngineStore",
    "Entry",
    "Judge",
    "LatencyProfile",
    "Mark",
    "Pruning",
    "Removal",
    "Standing",
    "cache_folder",
    "engine_key",
    "fingerprint",
    "format_size",
    "measure",
    "parse_size",
    "processor",
]
