"""A recipe's network, trained and written with all that says how."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from opa_trt import __version__
from opa_trt.builder.legacy_network import augmented, untrained
from opa_trt.builder.outputs import check_output
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.sources import load_splits, source_of
from opa_trt.device import CPU
from opa_trt.progress import Progress
from opa_trt.supernet import load, read_notes, save
from opa_trt.supernet.legacy import save_shallow
from opa_trt.supernet.legacy.networks import save_weights
from opa_trt.training.data import Images, Splits
from opa_trt.training.leaf import train_leaf
from opa_trt.training.plain import train_plain
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
    splits = _splits(recipe, data, skip_bad_images, progress)
    space = recipe.make_space(len(splits.train.classes))
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
    notes = _notes(recipe, splits.train, state.log, device)
    if start_from is not None:
        notes["start"] = read_notes(start_from)
    save(state.supernet, out, half=True, notes=notes)
    shutil.rmtree(folder, ignore_errors=True)
    return state.log


def train_legacy(
    recipe: Recipe,
    out: Path,
    data: Path | None = None,
    *,
    skip_bad_images: bool = False,
    device: str = CPU,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train the legacy network of ``recipe`` itself, as ``[training]`` says for the full phase,
    and write its weights to ``out`` in half precision.

    Args, Returns and Raises are those of ``train_recipe``; one's own network begins with the
    weights that its function gives.
    """
    check_output(out)
    progress = progress or Progress()
    splits = _splits(recipe, data, skip_bad_images, progress)
    folder = out.with_name(f"{out.name}.training")
    state = train_plain(
        untrained(recipe, len(splits.train.classes)),
        source_of(recipe),
        splits.train,
        splits.fit,
        recipe.training,
        folder,
        seed=recipe.seed,
        device=device,
        progress=progress,
    )
    save_weights(state.network, out, notes=_notes(recipe, splits.train, state.log, device))
    shutil.rmtree(folder, ignore_errors=True)
    return state.log


def train_shallow(
    recipe: Recipe,
    out: Path,
    data: Path | None = None,
    *,
    skip_bad_images: bool = False,
    device: str = CPU,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train the shallow phases of a recipe's legacy network, as ``[leaf]`` says, and write them to
    ``out``; the legacy network is not in the file.

    Args and Raises are those of ``train_recipe``, and what ``legacy_network.augmented`` raises.

    Returns:
        The log: for each phase every configuration's accuracy and MACs.
    """
    check_output(out)
    progress = progress or Progress()
    splits = _splits(recipe, data, skip_bad_images, progress)
    folder = out.with_name(f"{out.name}.training")
    state = train_leaf(
        augmented(recipe, len(splits.train.classes)),
        source_of(recipe),
        splits.train,
        splits.fit,
        recipe.leaf,
        folder,
        seed=recipe.seed,
        device=device,
        progress=progress,
    )
    save_shallow(state.network, out, notes=_notes(recipe, splits.train, state.log, device))
    shutil.rmtree(folder, ignore_errors=True)
    return state.log


def _splits(recipe: Recipe, data: Path | None, skip_bad_images: bool, progress: Progress) -> Splits:
    progress.start("data")
    splits = load_splits(recipe, data, skip_bad_images=skip_bad_images, progress=progress)
    counts = f"{len(splits.train):,} to train on, {len(splits.fit):,} to check on"
    progress.finish("data", f"{counts}, {len(splits.train.classes)} classes")
    return splits


def _notes(
    recipe: Recipe, images: Images, log: list[dict[str, Any]], device: str
) -> dict[str, Any]:
    """What is kept beside the weights: all that they depend on, and what the training heard."""
    return {
        "recipe": recipe.to_dict(),
        "images": images.digest(),
        "classes": list(images.classes),
        "log": log,
        "opa_trt": __version__,
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
    }
