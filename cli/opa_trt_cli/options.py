"""Options that several commands share, and the types that they are read as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def as_json(command: Command) -> Command:
    """``--json``: one object on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(
        command
    )


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


def threads(command: Command) -> Command:
    """``--threads``."""
    return click.option(
        "--threads", type=click.IntRange(min=1), help="Threads for torch and the backend."
    )(command)
