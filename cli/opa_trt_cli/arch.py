"""``opa-trt arch``: what an arch is, what it costs, and the same arch in other forms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.supernet import Arch, Space
    from opa_trt.supernet.arch_files import ArchFile


@click.command()
@click.argument("file", type=options.PATH)
@options.space
@click.option("--resolution", type=int, metavar="R", help="Side of the input in pixels.")
@options.as_json
def command(
    file: Path, space: str | None, width: float | None, resolution: int | None, as_json: bool
) -> None:
    """Show the arch in FILE (JSON): its stages, its MACs and its parameters.

    \b
    opa-trt arch arch.json --space mobilenet_v3 --width 1.2

    FILE is one of OFA's published net.config files, a dictionary of ks, e, d and r as its code
    has them, or an arch as this command and `opa-trt search` print them. --space and --width are
    needed where FILE does not say them.
    """
    from opa_trt.supernet.arch_files import open_arch
    from opa_trt_cli.console import say_json

    found = open_arch(file)
    own = _space(found, space, width)
    arch = found.arch(own, resolution)
    if as_json:
        say_json(_facts(own, arch))
    else:
        _print(own, arch, said=resolution is not None or found.says_resolution)


def _space(found: ArchFile, name: str | None, width: float | None) -> Space:
    """The space that the file says, or else the options.

    Raises:
        ArchError: the options contradict the file, or neither says a space.
    """
    from opa_trt.errors import ArchError

    if found.space is None:
        if name is None:
            message = f"{found.path} does not say of which space its arch is."
            remedy = "name it, with --space NAME (and --width W)."
            raise ArchError(message, expected="a space.", remedy=remedy)
        return options.read_space(name, width)
    if name is not None and not _is_of(found.space, name):
        message = f"--space {name} contradicts {found.path}."
        raise ArchError(message, expected=f"{found.space.name}, or no --space.")
    own = found.space.to_dict().get("width", 1.0)
    if width is not None and width != own:
        message = f"--width {width:g} contradicts {found.path}."
        raise ArchError(message, expected=f"{own:g}, or no --width.")
    return found.space


def _is_of(space: Space, name: str) -> bool:
    """Whether ``space`` is of the published family ``name``, or of the recipe of that name."""
    claimed = options.read_space(name, None)
    return claimed == space or name == space.name


def _facts(space: Space, arch: Arch) -> dict[str, Any]:
    return {
        "macs": space.macs(arch),
        "params": space.params(arch),
        "arch": arch.to_dict(),
        "ofa": arch.to_ofa(space),
        "space": space.to_dict(),
    }


def _print(space: Space, arch: Arch, *, said: bool) -> None:
    from opa_trt_cli.console import say, say_table

    width = f" width {space.to_dict()['width']:g}," if "width" in space.to_dict() else ""
    source = "" if said else " (not said by the file: the space's largest)"
    say(f"{space.name},{width} {space.classes} classes, resolution {arch.resolution}{source}")
    columns = ("part", "depth", "kernels", "ratios", "channels", "MACs", "parameters")
    sides = ("left", "right", "left", "left", "right", "right", "right")
    say_table(tuple(zip(columns, sides, strict=True)), _rows(space, arch))


def _rows(space: Space, arch: Arch) -> list[tuple[str, ...]]:
    """A line a part, and one of totals."""
    costs = space.costs(arch)
    rows = [
        (part, *_choices(space, arch, index), _channels(space, arch, part))
        for index, part in enumerate(costs, -1)
    ]
    lines = [
        (*row, f"{cost.macs:,}", f"{cost.params:,}")
        for row, cost in zip(rows, costs.values(), strict=True)
    ]
    return [*lines, ("total", "", "", "", "", f"{space.macs(arch):,}", f"{space.params(arch):,}")]


def _choices(space: Space, arch: Arch, stage: int) -> tuple[str, str, str]:
    """Depth, kernels and ratios of a stage, counted from 0; the stem is before, the head after."""
    if stage == len(space.slots):
        return "", "", ""
    if stage < 0:
        return "-".join(map(str, arch.depths[: space.stem_depths])), "", ""
    kernels = arch.kernel_sizes[stage] if arch.kernel_sizes else ()
    return (
        str(arch.depths[space.stem_depths + stage]),
        " ".join(map(str, kernels)),
        " ".join(f"{ratio:g}" for ratio in arch.expand_ratios[stage]),
    )


def _channels(space: Space, arch: Arch, part: str) -> str:
    """What the part hands on; the head's are the classes."""
    layers = [operator.net_layer for operator in space.operators(arch)[part]]
    last = next(layer for layer in reversed(layers) if layer)
    return str(last.get("out_channels", last.get("out_features")))
