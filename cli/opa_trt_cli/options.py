"""Options that several commands share, and the types that they are read as."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from opa_trt.supernet import Space

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class Seconds(click.FloatRange):
    """A time above 0, at most an hour. (Ranges let nan through.)"""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=3600)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """``value`` in seconds; click.BadParameter otherwise."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail("nan is not a number of seconds.", param, ctx)
        return seconds


def as_json(command: Command) -> Command:
    """``--json``: one object on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(
        command
    )


def untrusted(command: Command) -> Command:
    """``--untrusted``."""
    text = "Read only what cannot execute code: for a stranger's BUNDLE."
    return click.option("--untrusted", is_flag=True, help=text)(command)


def data(command: Command) -> Command:
    """``--data`` and ``--skip-bad-images``."""
    command = click.option(
        "--skip-bad-images", is_flag=True, help="Leave out images that cannot be decoded."
    )(command)
    return click.option(
        "--data",
        type=PATH,
        metavar="FOLDER",
        help="Images: train/<class>/* and test/<class>/* (or val/).",
    )(command)


def checkpoint(command: Command) -> Command:
    """``--checkpoint``."""
    return click.option(
        "--checkpoint", type=PATH, metavar="FILE", help="Weights of another place."
    )(command)


def legacy_weights(command: Command) -> Command:
    """``--legacy-weights``."""
    return click.option(
        "--legacy-weights",
        type=PATH,
        metavar="FILE",
        help="Weights of the legacy network, of another place.",
    )(command)


def space(command: Command) -> Command:
    """``--space`` and ``--width``; ``read_space`` makes a space of them."""
    command = click.option(
        "--width", type=float, help="Channel multiplier of a published space: 1.0 or 1.2, 1.3."
    )(command)
    return click.option(
        "--space",
        metavar="NAME",
        help="mobilenet_v3, proxyless, resnet50d, or the recipe of another space.",
    )(command)


def read_space(name: str, width: float | None, *, classes: int = 1000) -> Space:
    """The published space ``name`` at ``width``, or the space of the recipe of that name.

    Raises:
        ConfigError: a width that means nothing for it, or no such space or recipe.
    """
    from opa_trt.builder import read_recipe
    from opa_trt.errors import ConfigError, OpaError, UnknownNameError
    from opa_trt.supernet import published_space, space_names

    if name in space_names():
        return published_space(name, width=width, classes=classes)
    try:
        recipe = read_recipe(name)
    except OpaError as exc:
        kind = "space"
        raise UnknownNameError(kind, name, space_names()) from exc
    if width not in (None, 1):
        message = f"width {width:g} for the space of recipe {name}."
        raise ConfigError(message, expected="none: the recipe says its width.")
    return recipe.make_space()


def chosen_space(name: str | None, width: float | None, *known: Space | None) -> Space:
    """The space of ``--space``, or else the first of ``known``: those predictors were made for.

    Raises:
        ConfigError: neither names one.
    """
    from opa_trt.errors import ConfigError

    if name is not None:
        return read_space(name, width)
    remedy = "add --space NAME (and --width W)."
    if width is not None:
        message = f"--width {width:g} without a space."
        raise ConfigError(message, remedy=remedy)
    for space in known:
        if space is not None:
            return space
    unsaid = ", and the predictors do not say theirs" if known else ""
    message = f"no space is named{unsaid}."
    raise ConfigError(message, remedy=remedy)


def threads(command: Command) -> Command:
    """``--threads``."""
    return click.option(
        "--threads", type=click.IntRange(min=1), help="Threads for torch and the backend."
    )(command)


def seed(command: Command) -> Command:
    """``--seed``."""
    return click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seeds every random draw.",
    )(command)
