"""Deploy once-for-all super-networks adaptively: a pioneer runs, a decision follows, a tail ends.

>>> with opa_trt.load("demo.opa") as session:
...     result = session.infer(frames, deadline_ms=20)

Importing this loads the runtime only; building lives in ``opa_trt.builder``.
"""

import logging

from opa_trt import errors
from opa_trt.errors import OpaError
from opa_trt.runtime import Result, Session, Step, load

__all__ = ["OpaError", "Result", "Session", "Step", "__version__", "errors", "load"]

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
