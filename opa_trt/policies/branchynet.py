"""BranchyNet: an image leaves at the exit whose softmax has little entropy."""

from __future__ import annotations

from opa_trt.policies.chain import ChainPolicy
from opa_trt.tree import BRANCHYNET


class BranchyNetPolicy(ChainPolicy):
    """Exits along one network; an image leaves where its entropy is below the exit's threshold."""

    name = "branchynet"
    system = BRANCHYNET
