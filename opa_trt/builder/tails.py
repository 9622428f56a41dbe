"""Which tails are worth compiling: candidates measured over the frozen pioneer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.builder.network import Cut
from opa_trt.progress import Progress
from opa_trt.supernet import Arch


def candidates(cut: Cut, pioneer: Arch, count: int, seed: int) -> list[Arch]:
    """``count`` different archs that share the pioneer: smallest, largest, and evenly by MACs.

    Of ten times as many random ones, those nearest to evenly spaced log MACs are kept.
    """
    space, side = cut.supernet.space, pioneer.resolution
    ends = [space.smallest(side), space.largest(side)]
    draw = np.random.default_rng([seed, 21])
    pool = ends + [space.sample(draw, resolution=side) for _ in range(10 * count)]
    pool += [space.sample_even(draw, side) for _ in range(10 * count)]
    unique = dict.fromkeys(cut.grafted(pioneer, arch) for arch in pool)
    ordered = sorted(unique, key=lambda arch: (cut.tail_macs(arch), str(arch)))
    sizes = np.log([cut.tail_macs(arch) for arch in ordered])
    if count == 1:
        return [ordered[-1]]
    chosen: dict[Arch, None] = dict.fromkeys((ordered[0], ordered[-1]))
    for aim in np.linspace(sizes[0], sizes[-1], count)[1:-1]:
        for index in np.argsort(np.abs(sizes - aim), kind="stable"):
            if ordered[index] not in chosen:
                chosen[ordered[index]] = None
                break
    return sorted(chosen, key=lambda arch: (cut.tail_macs(arch), str(arch)))


class Trials:
    """Tails that were measured over the frozen pioneer, in the order of their measuring.

    Args:
        cut: where pioneer and tails meet.
        calibration: the pioneer's features that batch norm is measured on, in batches.
        features: those that accuracy is measured on, in batches.
        labels: of the latter, ``[N]``.
        progress: hears how many have been measured.

    Attributes:
        archs: from images to logits.
        right: of each, on which images it is right, ``[N] bool``.
    """

    def __init__(
        self,
        cut: Cut,
        calibration: list[Tensor],
        features: list[Tensor],
        labels: Tensor,
        progress: Progress,
    ) -> None:
        self.cut, self._labels, self._progress = cut, labels, progress
        self._calibration, self._features = calibration, features
        self.archs: list[Arch] = []
        self.right: list[npt.NDArray[np.bool_]] = []

    @torch.no_grad()
    def measure(self, archs: Iterable[Arch]) -> None:
        """Calibrate the tail of each arch and measure it."""
        for arch in archs:
            tail = self.cut.calibrated_tail(arch, self._calibration)
            logits = torch.cat([tail(batch) for batch in self._features])
            self.archs.append(arch)
            self.right.append((logits.argmax(1) == self._labels).numpy())
            self._progress.advance(len(self.archs))

    @property
    def accuracy(self) -> list[float]:
        """Of each, 0 to 1."""
        return [float(right.mean()) for right in self.right]

    @property
    def macs(self) -> list[int]:
        """Of each tail alone."""
        return [self.cut.tail_macs(arch) for arch in self.archs]


def pareto_layers(macs: Sequence[float], accuracy: Sequence[float]) -> list[int]:
    """For each candidate the layer of its Pareto front: 0 is dominated by none.

    One dominates another if it has no more MACs and no less accuracy, and is better in one.
    """
    layers = [-1] * len(macs)
    layer = 0
    while -1 in layers:
        left = [i for i, found in enumerate(layers) if found == -1]
        front: list[int] = []
        for i in sorted(left, key=lambda i: (macs[i], -accuracy[i])):
            last = front[-1] if front else None
            equal = last is not None and (macs[i], accuracy[i]) == (macs[last], accuracy[last])
            if last is None or equal or accuracy[i] > accuracy[last]:
                front.append(i)
        for i in front:
            layers[i] = layer
        layer += 1
    return layers


def choose(
    macs: Sequence[float],
    accuracy: Sequence[float],
    count: int,
    picks: Sequence[int] | None = None,
) -> list[int]:
    """Indices of ``count`` candidates, by ascending MACs.

    The two ends of the Pareto front are always among them, then those most often picked, then the
    rest of the front (thinned evenly by accuracy), then the next fronts.

    Args:
        macs: of each candidate.
        accuracy: of each.
        count: how many; all where there are fewer.
        picks: how often each was picked, where something picks.
    """
    layers = pareto_layers(macs, accuracy)
    ranked: list[int] = []
    for layer in range(max(layers) + 1):
        front = sorted(
            (i for i, found in enumerate(layers) if found == layer), key=macs.__getitem__
        )
        if layer == 0:
            ends = (front[-1], front[0])
        room = count - len(ranked)
        if room <= 0:
            break
        ranked += front if len(front) <= room else _thin(front, accuracy, room)
    often = picks or [0] * len(macs)
    picked = sorted((i for i, n in enumerate(often) if n), key=lambda i: (-often[i], macs[i]))
    chosen = list(dict.fromkeys((*ends, *picked, *ranked)))[:count]
    return sorted(chosen, key=lambda i: (macs[i], i))


def _thin(front: list[int], accuracy: Sequence[float], room: int) -> list[int]:
    """``room`` members of a front, spread evenly over accuracy, ends first."""
    if room == 1:
        return [front[-1]]
    kept = dict.fromkeys((front[0], front[-1]))
    for aim in np.linspace(accuracy[front[0]], accuracy[front[-1]], room)[1:-1]:
        for i in sorted(front, key=lambda i: abs(accuracy[i] - aim)):
            if i not in kept:
                kept[i] = None
                break
    return list(kept)
