"""Sessions: engines, buffers, beliefs about latency, and the policy that decides."""

from opa_trt.runtime.result import Result, Step
from opa_trt.runtime.session import Session, load

__all__ = ["Result", "Session", "Step", "load"]
