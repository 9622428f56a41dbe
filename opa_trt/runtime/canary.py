"""Inputs and reference outputs by which an engine is known to be the right one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.device import Device, Host
from opa_trt.errors import BundleCorrupt, ParityError
from opa_trt.tree import IMAGES, Node, Tree

Arrays = Mapping[str, npt.NDArray[np.generic]]


def canary_inputs(tree: Tree, node: Node, canary: Arrays, batch: int) -> dict[str, Tensor]:
    """What the canary feeds ``node`` at a batch size: images, or its parent's features."""
    if node.source == IMAGES:
        return {IMAGES: canary_rows(canary, IMAGES, batch)}
    return {node.source: canary_rows(canary, tree.parents[node.name], batch, node.source)}


def canary_batches(canary: Arrays) -> list[int]:
    """The batch sizes that a canary holds, ascending.

    Raises:
        BundleCorrupt: it holds none, so that it could verify nothing.
    """
    found = {int(key.split("/")[-1]) for key in canary if key.startswith(f"{IMAGES}/")}
    if not found:
        message = "the canary holds no images."
        raise BundleCorrupt(message, remedy="build the bundle again.")
    return sorted(found)


def canary_rows(canary: Arrays, name: str, batch: int, output: str = "") -> Tensor:
    """``batch`` rows of the images, or of a node's output: those kept for that batch size, or the
    first of the largest (rows do not depend on each other)."""

    def key(size: int) -> str:
        return f"{name}/{size}/{output}" if output else f"{name}/{size}"

    known = canary_batches(canary)
    place = key(batch if batch in known else known[-1])
    if place not in canary:
        message = f"the canary lacks {place}."
        raise BundleCorrupt(message, remedy="build the bundle again.")
    return torch.from_numpy(np.ascontiguousarray(canary[place][:batch]))


def verify(
    engine: Engine,
    tree: Tree,
    node: Node,
    canary: Arrays,
    tolerance: float | None,
    device: Device | None = None,
) -> float:
    """Run the canary through ``engine``; the largest difference over the largest value (or 1).

    Raises:
        ParityError: beyond ``tolerance`` (None: outputs mean nothing and are not compared).
    """
    return check(engine, node.name, canary, tolerance,
                 lambda batch: canary_inputs(tree, node, canary, batch), device)  # fmt: skip


def check(
    engine: Engine,
    name: str,
    canary: Arrays,
    tolerance: float | None,
    inputs: Callable[[int], Mapping[str, Tensor]],
    device: Device | None = None,
) -> float:
    """Compare ``engine`` with the canary's outputs of node ``name``; the largest difference.

    It runs at the smallest and at the largest batch size of its range that the canary has rows
    for.

    Args:
        engine: what is compared.
        name: of the node whose outputs the canary holds.
        canary: inputs and reference outputs.
        tolerance: the largest difference over the largest value (or 1); None compares nothing.
        inputs: what the canary feeds the engine at a batch size.
        device: where the engine runs; the host by default.

    Raises:
        ParityError: a difference beyond the tolerance, or one that is not a number.
        BundleCorrupt: the canary lacks what is needed.
    """
    errors = [
        _difference(engine, name, canary, batch, inputs(batch), device or Host())
        for batch in _batches(engine, canary)
    ]
    worst = float(np.max(errors))
    worst = worst if np.isfinite(worst) else np.inf
    if tolerance is not None and worst > tolerance:
        message = f"{name} on {engine.target.backend} differs by {worst:.1e} from its canary."
        raise ParityError(message, expected=f"at most {tolerance:.0e}.")
    return worst


def _batches(engine: Engine, canary: Arrays) -> list[int]:
    """Of the canary's own batch sizes those in the engine's range, and the ends of the range."""
    known = canary_batches(canary)
    low, high = engine.target.min_batch, engine.target.max_batch
    inside = {batch for batch in known if low <= batch <= high}
    return sorted(inside | {min(low, known[-1]), min(high, known[-1])})


def _difference(
    engine: Engine,
    name: str,
    canary: Arrays,
    batch: int,
    inputs: Mapping[str, Tensor],
    device: Device,
) -> float:
    with device.scope():
        outputs = engine.run({key: device.upload(tensor) for key, tensor in inputs.items()})
        found = {key: torch.from_numpy(device.download(t).copy()) for key, t in outputs.items()}
    errors = []
    for output, values in found.items():
        wanted = canary_rows(canary, name, batch, output)
        scale = max(1.0, float(wanted.abs().max()))
        errors.append(float((values - wanted).abs().max()) / scale)
    return float(np.max(errors))  # nan stays nan
