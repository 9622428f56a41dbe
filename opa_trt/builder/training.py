"""A recipe's super-network, trained and written with all that says how."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from opa_trt import __version__
from opa_trt.builder.outputs import check_output
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.sources import load_splits, source_of
from opa_trt.device import CPU
from opa_trt.progress import Progress
from opa_trt.supernet import load, read_notes, save
from opa_trt.training.data import Images
from opa_trt.training.shrinking import train


def train_recipe(
    recipe: Recipe,
    out: Path,
    data: Path | None = None,
    *,
    skip_bad_images: bool = False,
    start_from: Path | None = None,
    device: str = CPU,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train what ``recipe`` describes and write its weights to ``out`` in half precision.

    The state of the run is kept in ``OUT.training`` and deleted when ``out`` is written.

    Args:
        recipe: space, images, phases, seed.
        out: a ``.safetensors`` file; one already there is replaced at the very end.
        data: the image folder, where the recipe reads one.
        skip_bad_images: leave out images that cannot be decoded.
        start_from: weights of the full network, as this function writes them: the full phase is
            left out. They are read again when a stopped run goes on.
        device: ``cpu`` or ``cuda``, where the steps are computed.
        progress: hears of phases and steps.

    Returns:
        The log: for each phase the accuracies of smallest, largest and two random sub-networks.

    Raises:
        OpaError: ConfigError (a place that cannot be written), DataError, RecipeError,
            CheckpointError (a state of another run, or weights to start from that are of another
            space) …
    """
    check_output(out)
    progress = progress or Progress()
    start = None
    if start_from is not None:
        start = load(start_from, expected=recipe.make_space())
    progress.start("data")
    splits = load_splits(recipe, data, skip_bad_images=skip_bad_images, progress=progress)
    space = recipe.make_space(len(splits.train.classes))
    counts = f"{len(splits.train):,} to train on, {len(splits.fit):,} to check on"
    progress.finish("data", f"{counts}, {space.classes} classes")
    folder = out.with_name(f"{out.name}.training")
    state = train(
        space,
        source_of(recipe),
        splits.train,
        splits.fit,
        recipe.training,
        folder,
        seed=recipe.seed,
        start=start,
        device=device,
        progress=progress,
    )
    notes = _notes(recipe, splits.train, state.log, start_from, device)
    save(state.supernet, out, half=True, notes=notes)
    shutil.rmtree(folder, ignore_errors=True)
    return state.log


def _notes(
    recipe: Recipe,
    images: Images,
    log: list[dict[str, Any]],
    start_from: Path | None,
    device: str,
) -> dict[str, Any]:
    """What is kept beside the weights: all that they depend on, and what the training heard."""
    notes = {
        "recipe": recipe.to_dict(),
        "images": images.digest(),
        "classes": list(images.classes),
        "log": log,
        "opa_trt": __version__,
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
    }
    return notes if start_from is None else notes | {"start": read_notes(start_from)}
