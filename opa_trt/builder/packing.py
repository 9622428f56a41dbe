"""The last steps before a bundle is written: canary outputs and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from opa_trt.builder.recipe import Recipe
from opa_trt.bundle import EngineEntry, ImageSpec, Manifest, SegmentEntry
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Segment, Target, TensorSpec


@torch.no_grad()
def canary_arrays(
    modules: Mapping[str, nn.Module],
    entry: str,
    images: TensorSpec,
    batches: tuple[int, ...],
    seed: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded noise and every node's reference outputs, at each batch size.

    Keys are ``images/BATCH`` and ``NODE/BATCH/OUTPUT``; successors read the entry's features.
    """
    draw = np.random.default_rng([seed, 51])
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for batch in dict.fromkeys(batches):
        noise = draw.integers(0, 256, (batch, *images.shape), dtype=np.uint8)
        pixels = noise if images.dtype == "uint8" else (noise / 255).astype(np.float32)
        features, logits = modules[entry](torch.from_numpy(pixels))
        arrays[f"{IMAGES}/{batch}"] = pixels
        arrays[f"{entry}/{batch}/{FEATURES}"] = features.numpy()
        arrays[f"{entry}/{batch}/{LOGITS}"] = logits.numpy()
        for name, module in modules.items():
            if name != entry:
                arrays[f"{name}/{batch}/{LOGITS}"] = module(features).numpy()
    return arrays


def make_manifest(
    recipe: Recipe,
    classes: tuple[str, ...],
    nodes: tuple[Node, ...],
    segments: Mapping[str, Segment],
    compiled: Mapping[str, Any],
    threads: int,
    report: Mapping[str, Any],
) -> Manifest:
    """The manifest, its list of files still empty."""
    data = recipe.data
    return Manifest(
        name=recipe.name,
        version="",
        recipe=recipe.to_dict(),
        recipe_sha256=recipe.digest(),
        classes=classes,
        images=ImageSpec(
            data.size, "float32" if data.float_images else "uint8", data.mean, data.std
        ),
        nodes=nodes,
        segments={
            name: SegmentEntry(
                segment.inputs,
                segment.outputs,
                segment.content,
                {"torchscript": f"segments/{name}.pt"},
            )
            for name, segment in segments.items()
        },
        engines=tuple(
            EngineEntry(
                entry["segment"],
                Target(**entry["target"]),
                entry["key"],
                entry["file"],
            )
            for entry in compiled["engines"]
        ),
        backend=compiled["backend"],
        max_batch=recipe.compile.max_batch,
        threads=threads,
        buckets=tuple(
            sorted({min(bucket, recipe.compile.max_batch) for bucket in recipe.measure.buckets})
        ),
        files={},
        report=report,
    )
