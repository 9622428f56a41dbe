"""Sessions: engines, buffers, beliefs about latency, and the policy that decides."""

from opa_trt.runtime.engines import EngineLoader, open_loader
from opa_trt.runtime.metrics import Metrics
from opa_trt.runtime.result import Result, Step
from opa_trt.runtime.session import Session, load

__all__ = ["EngineLoader", "Metrics", "Result", "Session", "Step", "load", "open_loader"]
