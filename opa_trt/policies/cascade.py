"""A cascade: complete sub-networks one after the other, until one is confident."""

from __future__ import annotations

from opa_trt.policies.chain import ChainPolicy
from opa_trt.tree import CASCADE


class CascadePolicy(ChainPolicy):
    """Complete sub-networks; an image leaves where its largest confidence is above 1 less the
    threshold of the one that ran."""

    name = "cascade"
    system = CASCADE
