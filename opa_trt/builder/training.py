"""A recipe's network, trained and written with all that says how."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from opa_trt.training.leaf import LeafState, train_leaf
from opa_trt.training.plain import PlainState, train_plain
from opa_trt.training.shrinking import train
from opa_trt.training.state import TrainingState


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
    start = None
    if start_from is not None:
        start = load(start_from, expected=recipe.make_space())

    def write(state: TrainingState, notes: dict[str, Any]) -> None:
        if start_from is not None:
            notes["start"] = read_notes(start_from)
        save(state.supernet, out, half=True, notes=notes)

    job = _Job(recipe, out, data, skip_bad_images, device, progress or Progress())
    return job.run(recipe.make_space, partial(train, start=start), recipe.training, write)


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

    def write(state: PlainState, notes: dict[str, Any]) -> None:
        save_weights(state.network, out, notes=notes)

    job = _Job(recipe, out, data, skip_bad_images, device, progress or Progress())
    return job.run(partial(untrained, recipe), train_plain, recipe.training, write)


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

    def write(state: LeafState, notes: dict[str, Any]) -> None:
        save_shallow(state.network, out, notes=notes)

    job = _Job(recipe, out, data, skip_bad_images, device, progress or Progress())
    return job.run(partial(augmented, recipe), train_leaf, recipe.leaf, write)


@dataclass(frozen=True)
class _Job:
    """What all trainings of a recipe share: their images, their state's folder, their notes."""

    recipe: Recipe
    out: Path
    data: Path | None
    skip_bad_images: bool
    device: str
    progress: Progress

    def run(
        self,
        subject: Callable[[int], Any],
        trainer: Callable[..., Any],
        plan: Any,
        write: Callable[[Any, dict[str, Any]], None],
    ) -> list[dict[str, Any]]:
        """Train, write, and delete the state; the log.

        Args:
            subject: what is trained, of the number of classes.
            trainer: one of ``training``'s.
            plan: what it takes.
            write: puts the final state and notes where they belong.
        """
        splits = self._splits()
        folder = self.out.with_name(f"{self.out.name}.training")
        state = trainer(
            subject(len(splits.train.classes)),
            source_of(self.recipe),
            splits.train,
            splits.fit,
            plan,
            folder,
            seed=self.recipe.seed,
            device=self.device,
            progress=self.progress,
        )
        write(state, _notes(self.recipe, splits.train, state.log, self.device))
        shutil.rmtree(folder, ignore_errors=True)
        log: list[dict[str, Any]] = state.log
        return log

    def _splits(self) -> Splits:
        told = self.progress
        told.start("data")
        splits = load_splits(
            self.recipe, self.data, skip_bad_images=self.skip_bad_images, progress=told
        )
        counts = f"{len(splits.train):,} to train on, {len(splits.fit):,} to check on"
        told.finish("data", f"{counts}, {len(splits.train.classes)} classes")
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
