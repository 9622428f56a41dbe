"""``opa-trt recipes``: what is shipped."""

from __future__ import annotations

from typing import Any

import click

from opa_trt_cli import options


@click.command()
@options.as_json
def command(as_json: bool) -> None:
    """List the recipes that come with the package.

    \b
    opa-trt recipes
    """
    from opa_trt.builder import read_recipe, shipped_recipes
    from opa_trt_cli.console import say, say_json, say_table

    found: list[dict[str, Any]] = []
    for name in shipped_recipes():
        recipe = read_recipe(name)
        checkpoint = recipe.checkpoint_path()
        shipped = checkpoint is not None and checkpoint.is_file()
        classes, macs = _size(recipe)
        found.append(
            {
                "name": name,
                "path": str(recipe.folder / f"{name}.toml"),
                "images": recipe.data.source,
                "classes": classes,
                "largest_macs": macs,
                "checkpoint": str(checkpoint) if shipped else None,
            }
        )
    if as_json:
        say_json({"recipes": found})
        return
    say_table(
        (
            ("recipe", "left"),
            ("images", "left"),
            ("classes", "right"),
            ("largest, M MACs", "right"),
            ("weights", "left"),
        ),
        (
            (
                str(item["name"]),
                str(item["images"]),
                str(item["classes"]),
                f"{item['largest_macs'] / 1e6:.1f}",
                "shipped" if item["checkpoint"] else f"opa-trt train {item['name']}",
            )
            for item in found
        ),
    )
    say(f"\nThey lie in {read_recipe(shipped_recipes()[0]).folder}; copy one to write your own.")


def _size(recipe: Any) -> tuple[int, int]:
    """Classes, and MACs of the largest network."""
    if not recipe.is_legacy:
        space = recipe.make_space()
        return space.classes, space.macs(space.largest())
    from opa_trt.builder.legacy_network import legacy_macs

    return recipe.legacy.classes, legacy_macs(recipe)
