"""Recipes as bundles, built once, and the shipped digits as a stream."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from opa_trt import __version__
from opa_trt.builder import Recipe, build, read_recipe
from opa_trt.builder.recipe_tables import BaselinesRecipe
from opa_trt.builder.sources import load_splits
from opa_trt.evaluate.stream import StreamGroup, make_stream
from opa_trt.progress import Progress
from opa_trt.store import EngineStore

ROOT = Path(__file__).parent.parent
BASELINES = BaselinesRecipe(whole=6, cascade=3, branchynet=3)
GROUP_SIZE = 100


class Lines(Progress):
    """Every finished stage on stderr, as it ends."""

    def finish(self, stage: str, found: str) -> None:
        print(f" {stage:<14} {found}", file=sys.stderr, flush=True)


def with_recipe(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the recipe, its images and its weights."""
    parser.add_argument("recipe", help="shipped, or a file")
    parser.add_argument("--data", type=Path, help="image folder, where the recipe reads one")
    parser.add_argument("--checkpoint", type=Path, help="by default engines/weights/RECIPE")
    return parser


def data_option(recipe: str) -> str:
    """As a page tells it of the command line: the shipped digits need no folder."""
    return "" if recipe == "digits" else " --data DIR"


def chosen_recipe(chosen: argparse.Namespace) -> Recipe:
    """The recipe of these options, with weights and every baseline that its network can have."""
    recipe = read_recipe(chosen.recipe)
    kept = ROOT / "engines" / "weights" / f"{recipe.name}.safetensors"
    if chosen.checkpoint is not None or (not recipe.checkpoint and kept.is_file()):
        recipe = recipe.with_checkpoint(chosen.checkpoint or kept)
    compiled = replace(recipe.compile, threads=chosen.threads)
    wanted = replace(BASELINES, branchynet=0) if recipe.is_legacy else BASELINES
    return replace(recipe, compile=compiled, baselines=wanted)


def chosen_bundle(
    recipe: Recipe, chosen: argparse.Namespace, store: EngineStore, progress: Progress
) -> Path:
    """The bundle of ``chosen_recipe``, built once for its weights and kept in the folder."""
    weights = recipe.checkpoint_path()
    stamp = int(weights.stat().st_mtime) if weights is not None and weights.is_file() else 0
    return built_once(recipe, chosen.folder, str(stamp), store, data=chosen.data, progress=progress)


def digits_bundle(folder: Path, backend: str, threads: int) -> Path:
    """The bundle of the recipe ``digits``, built once for a backend and kept in ``folder``."""
    recipe = read_recipe("digits")
    chosen = replace(recipe.compile, backends=(backend,), threads=threads)
    recipe = replace(recipe, compile=chosen)
    return built_once(recipe, folder, f"{backend}-{threads}", EngineStore(folder / "store"))


def built_once(
    recipe: Recipe,
    folder: Path,
    mark: str,
    store: EngineStore,
    *,
    data: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """A recipe's bundle in ``folder``, built where it is not there yet.

    Args:
        recipe: what to build.
        folder: where bundles are kept.
        mark: part of the bundle's name, for what the recipe does not say.
        store: of engines and latencies.
        data: the image folder, where the recipe reads one.
        progress: hears of the build.
    """
    path = folder / f"{recipe.name}-{mark}-{recipe.digest()[:8]}-{__version__}.opa"
    if not (path / "manifest.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        build(recipe, path, data=data, store=store, progress=progress)
    return path


def digits_stream(groups: int) -> list[StreamGroup]:
    """Groups of test images whose content drifts from clean to hard and back, four times."""
    recipe = read_recipe("digits")
    images = load_splits(recipe, None).test
    length = max(1, groups // 4)
    stream: list[StreamGroup] = []
    while len(stream) < groups:
        seed = recipe.seed + len(stream)
        stream += make_stream(images, recipe.data.degradations, length, GROUP_SIZE, seed)
    return stream[:groups]
