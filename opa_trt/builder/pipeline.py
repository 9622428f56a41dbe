"""A recipe becomes a bundle: the stages in order, each resumable, then packed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from opa_trt import __version__
from opa_trt.builder.compiling import rivals_of
from opa_trt.builder.legacy_parts import LegacyParts
from opa_trt.builder.packing import pack_bundle
from opa_trt.builder.parts import Parts
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.sources import load_splits
from opa_trt.builder.stages import stages_of
from opa_trt.builder.supernet_parts import SupernetParts
from opa_trt.builder.work import Finding, Work
from opa_trt.bundle import Manifest, check_place
from opa_trt.clock import Clock, MonotonicClock
from opa_trt.progress import Progress
from opa_trt.store import EngineStore
from opa_trt.supernet.onnx_form import require_onnx


def build(
    recipe: Recipe,
    out: Path,
    *,
    data: Path | None = None,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
    store: EngineStore | None = None,
    clock: Clock | None = None,
) -> Manifest:
    """Turn a recipe into a bundle at ``out``.

    Each finished stage is kept in ``OUT.work`` beside it; a build that was stopped and is called
    again goes on after its last finished stage. The folder is deleted when the bundle is packed.

    Args:
        recipe: what to build; its checkpoint must exist.
        out: the bundle's folder; a bundle already there is replaced at the very end.
        data: the image folder, where the recipe reads one.
        skip_bad_images: leave out images that cannot be decoded.
        progress: hears of every stage.
        store: where this machine's engines and latencies are kept; the user's cache by default.
        clock: what tells the time while measuring.

    Returns:
        The bundle's manifest.

    Raises:
        OpaError: DataError, CheckpointError, RecipeError, BackendError …; nothing half-written
            is left behind.
    """
    check_place(out)
    parts = prepare(recipe, data, skip_bad_images, progress, store, clock)
    work = Work(out.with_name(f"{out.name}.work"), _key(parts))
    for stage, find in stages_of(recipe).items():
        _run(stage, find, parts, work)
    parts.progress.start("pack")
    manifest = pack_bundle(parts, out)
    size = sum(entry.size for entry in manifest.files.values())
    parts.progress.finish("pack", f"{out}, {size / 1e6:.1f} MB, {len(manifest.files) + 1} files")
    work.discard()
    return manifest


def prepare(
    recipe: Recipe,
    data: Path | None = None,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
    store: EngineStore | None = None,
    clock: Clock | None = None,
) -> Parts:
    """What the stages of a build begin with: images read, the recipe checked against them, torch
    set to the build's threads.

    Args and Raises are those of ``build``.
    """
    progress = progress or Progress()
    progress.start("data")
    kind: type[Parts] = LegacyParts if recipe.is_legacy else SupernetParts
    parts = kind(
        recipe=recipe,
        splits=load_splits(recipe, data, skip_bad_images=skip_bad_images, progress=progress),
        progress=progress,
        store=store or EngineStore(),
        clock=clock or MonotonicClock(),
        threads=recipe.compile.threads or os.cpu_count() or 1,
    )
    torch.set_num_threads(parts.threads)
    parts.check()
    rivals_of(recipe.compile, parts.threads)
    require_onnx()
    return parts


def _run(stage: str, find: Callable[[Any], Finding], parts: Parts, work: Work) -> None:
    """Take up what a stage found before, or run it and keep what it finds."""
    known = work.load(stage)
    parts.progress.start(stage)
    if known is None:
        known = find(parts)
        work.save(stage, known)
        line = known.line
    else:
        line = f"{known.line} (found before)"
    parts.found[stage] = known
    parts.progress.finish(stage, line)


def _key(parts: Parts) -> str:
    """Hash of all that a build depends on: recipe, images, weights, threads, versions."""
    weights = [path.read_bytes() if path.is_file() else b"" for path in parts.weight_files]
    splits = parts.splits
    facts = [
        parts.recipe.digest(),
        *(images.digest() for images in (splits.train, splits.fit, splits.test)),
        *(hashlib.sha256(data).hexdigest() for data in weights),
        str(parts.threads),
        __version__,
        torch.__version__,
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
