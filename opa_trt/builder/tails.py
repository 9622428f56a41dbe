"""Which tails are worth compiling: candidates measured over the frozen pioneer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opa_trt.builder.network import Cut
from opa_trt.progress import Progress
from opa_trt.supernet import Arch


def candidates(cut: Cut, pioneer: Arch, count: int, seed: int) -> list[Arch]:
    """``count`` different archs that share the pioneer: smallest, largest, and evenly by MACs.

    Of ten times as many random ones, those nearest to evenly spaced log MACs are kept.
    """
    space = cut.supernet.space
    side, stages = pioneer.resolution, cut.stages
    ends = [space.smallest(side), space.largest(side)]
    draw = np.random.default_rng([seed, 21])
    pool = ends + [space.sample(draw, resolution=side) for _ in range(10 * count)]
    pool += [space.sample_even(draw, side) for _ in range(10 * count)]
    unique = dict.fromkeys(space.graft(pioneer, arch, stages) for arch in pool)
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


@torch.no_grad()
def tail_accuracies(
    cut: Cut,
    archs: Sequence[Arch],
    calibration: list[Tensor],
    features: list[Tensor],
    labels: Tensor,
    progress: Progress,
) -> list[float]:
    """Accuracy (0 to 1) of each candidate, calibrated, on the pioneer's ``features``."""
    found = []
    for done, arch in enumerate(archs, 1):
        tail = cut.calibrated_tail(arch, calibration)
        logits = torch.cat([tail(batch) for batch in features])
        found.append(float((logits.argmax(1) == labels).float().mean()))
        progress.advance(done)
    return found


def pareto_layers(macs: Sequence[int], accuracy: Sequence[float]) -> list[int]:
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


def choose(macs: Sequence[int], accuracy: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` candidates: the front (thinned evenly by accuracy), then next fronts.

    The front's two ends are always kept.
    """
    layers = pareto_layers(macs, accuracy)
    chosen: list[int] = []
    for layer in range(max(layers) + 1):
        front = sorted(
            (i for i, found in enumerate(layers) if found == layer), key=macs.__getitem__
        )
        room = count - len(chosen)
        if room <= 0:
            break
        chosen += front if len(front) <= room else _thin(front, accuracy, room)
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
