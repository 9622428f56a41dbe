"""The stages of a build, in order: each a function from what is known to what it found."""

from __future__ import annotations

from collections.abc import Callable

from opa_trt.builder.parts import Parts
from opa_trt.builder.stages import engines, network
from opa_trt.builder.work import Finding

STAGES: dict[str, Callable[[Parts], Finding]] = {
    "data": network.data,
    "supernet": network.supernet,
    "pioneer": network.pioneer,
    "tails": network.tails,
    "calibrate": network.calibrate_tails,
    "fold": network.fold_all,
    "trace": engines.trace_all,
    "compile": engines.compile_engines,
    "measure": engines.measure_all,
    "fit": engines.fit,
}
