"""``opa-trt build``: a recipe becomes a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from opa_trt_cli import options


@click.command()
@click.argument("recipe")
@options.data
@click.option("--out", type=options.PATH, metavar="FOLDER", help="The bundle; RECIPE.opa.")
@options.checkpoint
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="Instead of the recipe's; repeat."
)
@options.legacy_weights
@options.threads
@options.as_json
def command(
    recipe: str,
    data: Path | None,
    skip_bad_images: bool,
    out: Path | None,
    checkpoint: Path | None,
    backends: tuple[str, ...],
    legacy_weights: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Build the bundle of RECIPE (a TOML file, or the name of a shipped one).

    \b
    opa-trt build digits --out digits.opa

    Finished stages are kept in FOLDER.work: stopped, the same command goes on.
    """
    from opa_trt.builder import build, read_recipe
    from opa_trt_cli.console import StageLines, resumable, say, say_json

    found = read_recipe(recipe)
    if checkpoint is not None:
        found = found.with_checkpoint(checkpoint)
    if legacy_weights is not None:
        found = found.with_legacy_weights(legacy_weights)
    if backends:
        found = replace(found, compile=replace(found.compile, backends=backends))
    if threads is not None:
        found = replace(found, compile=replace(found.compile, threads=threads))
    place = out or Path(f"{found.name}.opa")
    with (
        resumable("The same command goes on after the last finished stage."),
        StageLines(quiet=as_json) as lines,
    ):
        manifest = build(found, place, data=data, skip_bad_images=skip_bad_images, progress=lines)
    if as_json:
        say_json(
            {
                "bundle": str(place),
                "backend": manifest.backend,
                "nodes": len(manifest.nodes),
                "bytes": sum(entry.size for entry in manifest.files.values()),
                "report": manifest.report,
            }
        )
    else:
        say(f"next: opa-trt show {place} · opa-trt run {place} IMAGES --deadline-ms 20")
