"""What the configurations of an augmented network are worth: calibrated, measured, compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.legacy import Augmented, Configuration
from opa_trt.training.batches import Source
from opa_trt.training.data import Images
from opa_trt.training.evaluation import CALIBRATION_IMAGES, Batch, batches

ROWS = 512  # of all configurations together, that run at once


@dataclass(frozen=True)
class Measured:
    """A configuration's accuracy (0 to 1) and cost."""

    configuration: Configuration
    accuracy: float
    cost: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """Read what ``to_dict`` made."""
        found = Configuration.from_bits(values["shallow"])
        return cls(found, values["accuracy"], values["cost"])

    def to_dict(self, front: bool) -> dict[str, Any]:
        """Plain values for JSON, and whether it is on the Pareto front."""
        return {
            "shallow": self.configuration.bits,
            "accuracy": self.accuracy,
            "cost": self.cost,
            "front": front,
        }


def front(measured: Sequence[Measured]) -> list[Measured]:
    """Those that none is better than, by ascending cost; of equals the first only."""
    ordered = sorted(measured, key=lambda each: (each.cost, -each.accuracy))
    kept: list[Measured] = []
    for each in ordered:
        if not kept or each.accuracy > kept[-1].accuracy:
            kept.append(each)
    return kept


class _Shallow(nn.Module):
    """Runs every configuration, and has no layers but the shallow phases': calibration leaves the
    legacy network's statistics as they are."""

    def __init__(self, network: Augmented, configurations: Sequence[Configuration]) -> None:
        super().__init__()
        self.shallow = network.shallow
        self._run = network.forward_many  # bound, so not a sub-module of this
        self._configurations = configurations

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images, self._configurations)


def calibrate_shallow(
    network: Augmented, configurations: Sequence[Configuration], source: Source, images: Images
) -> None:
    """Measure the shallow phases' batch norms on what all configurations feed them together."""
    size = _batch(configurations)
    calibrate(
        _Shallow(network, configurations),
        source.inputs(images, CALIBRATION_IMAGES, size, source.size),
    )


def measure(
    network: Augmented, configurations: Sequence[Configuration], source: Source, images: Images
) -> list[float]:
    """Top-1 accuracy (0 to 1) of every configuration on ``images``."""
    return accuracies(network, configurations, batches(source, images, source.size))


@torch.no_grad()
def accuracies(
    network: Augmented, configurations: Sequence[Configuration], labelled: Iterable[Batch]
) -> list[float]:
    """The same on batches of inputs and labels."""
    right, total = torch.zeros(len(configurations), dtype=torch.int64), 0
    size = _batch(configurations)
    for inputs, labels in labelled:
        for some, wanted in zip(torch.split(inputs, size), torch.split(labels, size), strict=True):
            right += (network.forward_many(some, configurations).argmax(2) == wanted).sum(1)
        total += len(labels)
    return [int(count) / total for count in right]


def _batch(configurations: Sequence[Configuration]) -> int:
    return max(2, ROWS // len(configurations))
