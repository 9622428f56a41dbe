"""The shipped digits as a bundle and as a stream, for benchmarks of whole groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from opa_trt import __version__
from opa_trt.builder import Recipe, build, read_recipe
from opa_trt.builder.sources import load_splits
from opa_trt.evaluate.stream import StreamGroup, make_stream
from opa_trt.progress import Progress
from opa_trt.store import EngineStore

GROUP_SIZE = 100


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
