"""Pieces of the page: text is escaped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from opa_trt.evaluate.compare_page.drawing import Picture
from opa_trt.evaluate.compare_page.palette import name, variable


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Args:
        anchor: its place in links.
        title: its heading.
        body: markup; a section without any is left out.
    """

    anchor: str
    title: str
    body: str


@dataclass(frozen=True)
class Markup:
    """Text that is markup already, so that it is not escaped again."""

    text: str

    def __str__(self) -> str:
        return self.text


def text(value: str | Markup) -> str:
    """``value`` as it may stand in the page."""
    return value.text if isinstance(value, Markup) else escape(value)


def paragraph(value: str | Markup, *, kind: str = "") -> str:
    """A paragraph, of a class where one is given."""
    return f"<p{_kind(kind)}>{text(value)}</p>\n"


def arm_cell(arm: str) -> Markup:
    """An arm's name behind a dot of its hue."""
    dot = f'<span class="dot" style="background:var({variable(arm)})"></span>'
    return Markup(f"{dot}{escape(name(arm))}")


def table(
    caption: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[str | Markup]],
    *,
    marks: Sequence[str] = (),
) -> str:
    """A table that scrolls by itself where it is too wide; "" without rows.

    Args:
        caption: what it shows.
        columns: (heading, ``left`` or ``right``) each; the first holds the row's own heading.
        rows: cells.
        marks: a class for each row; as many as there are rows, or none.
    """
    body = [[*row] for row in rows]
    if not body:
        return ""
    head = "".join(
        f'<th scope="col"{_kind(side)}>{escape(heading)}</th>' for heading, side in columns
    )
    lines = [
        f"<tr{_kind(mark)}>{_row(row, [side for _, side in columns])}</tr>"
        for row, mark in zip(body, marks or [""] * len(body), strict=True)
    ]
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n"
        "<tbody>" + "\n".join(lines) + "</tbody></table></div>\n"
    )


def _row(cells: Sequence[str | Markup], sides: Sequence[str]) -> str:
    first = f'<th scope="row"{_kind(sides[0])}>{text(cells[0])}</th>'
    pairs = zip(cells[1:], sides[1:], strict=True)
    return first + "".join(f"<td{_kind(side)}>{text(cell)}</td>" for cell, side in pairs)


def figure(drawn: Picture | None) -> str:
    """A plot with its caption; "" where there is none."""
    if drawn is None:
        return ""
    link = f'<a href="{drawn.stem}.png">PNG</a>'
    return (
        f'<figure><div class="scroll">{drawn.svg}</div>'
        f"<figcaption>{escape(drawn.caption)} {link}</figcaption></figure>\n"
    )


def details(summary: str, body: str) -> str:
    """What opens when it is asked for; "" without a body."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}</details>\n" if body else ""


def lines(values: Iterable[str | Markup]) -> str:
    """A list; "" without items."""
    items = "".join(f"<li>{text(value)}</li>" for value in values)
    return f"<ul>{items}</ul>\n" if items else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names with values."""
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs)
    return f"<dl>{items}</dl>\n"


def section(part: Section) -> str:
    """A part with its heading."""
    return (
        f'<section id="{part.anchor}"><h2>{escape(part.title)}</h2>\n{part.body}</section>\n'
        if part.body
        else ""
    )


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind and kind != "left" else ""
