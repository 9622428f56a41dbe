"""Which pioneer to build, where the recipe leaves it to the build."""

from __future__ import annotations

from opa_trt.builder.study import QUICK, study_pioneers
from opa_trt.builder.supernet_parts import SupernetParts
from opa_trt.builder.work import Finding


def study(parts: SupernetParts) -> Finding:
    """A small study at the largest resolution; its choice is every entry's shape."""
    found = study_pioneers(parts.supernet, parts.pools, QUICK, parts.clock, parts.progress)
    return Finding(found.line(), found.to_dict())
