"""The strategies that ``opa-trt search run`` knows, by name."""

from __future__ import annotations

from opa_trt.search.answers import Strategy
from opa_trt.search.dynamic_ofa import dynamic_ofa
from opa_trt.search.joint import joint
from opa_trt.search.multi_target import bottom_up, cold, cold_equal_budget, top_down

STRATEGIES: dict[str, Strategy] = {
    "cold": cold,
    "cold-equal": cold_equal_budget,
    "top-down": top_down,
    "bottom-up": bottom_up,
    "joint": joint,
    "dynamic-ofa": dynamic_ofa,
}
