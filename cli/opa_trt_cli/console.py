"""What the command line shows: tables, stage lines, bars on a terminal, JSON for machines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from opa_trt.progress import Progress

INTERRUPTED = 130  # what shells use for Ctrl-C
PIPED_WIDTH = 10_000  # columns: nothing is cut off where a program reads


def say(text: str = "", *, err: bool = False) -> None:
    """One line of plain text, never wrapped."""
    Console(stderr=err, highlight=False, soft_wrap=True, emoji=False).print(text, markup=False)


def say_json(value: Any) -> None:
    """One JSON object on stdout; nan becomes null."""
    click.echo(json.dumps(_plain(value), indent=2))


def say_table(
    columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], *, title: str = ""
) -> None:
    """A table; each column is (heading, ``left`` or ``right``). Piped, it is as wide as needed."""
    table = Table(box=None, pad_edge=False, title=title or None, title_justify="left")
    for heading, justify in columns:
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))  # a file may be called "[final].png": no markup
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_WIDTH)
    console.print(table)


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """Ctrl-C within ends the command with status 130 and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"Interrupted. {how}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class StageLines(Progress):
    """A line a finished stage on stderr; a bar while it runs, on a terminal only.

    Args:
        quiet: no lines, as ``--json`` wants; bars stay where stderr is a terminal.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._bars = Bars(
            TextColumn(" {task.description:<10}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task: TaskID | None = None
        self._total: int | None = None
        self._stage, self._begun = "", 0.0

    def __enter__(self) -> StageLines:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def start(self, stage: str, total: int | None = None) -> None:
        if stage != self._stage:
            self._stage, self._begun = stage, time.perf_counter()
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._total = total
        self._task = self._bars.add_task(stage, total=total, count="", note="")

    def advance(self, done: int, note: str = "") -> None:
        if self._task is not None:
            count = f"{done}/{self._total}" if self._total else ""
            self._bars.update(self._task, completed=done, count=count, note=note)

    def finish(self, stage: str, found: str) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        if not self._quiet:
            seconds = time.perf_counter() - self._begun
            self._console.print(f" {stage:<10} {found:<95} {seconds:6.1f} s", markup=False)
        self._stage = ""
