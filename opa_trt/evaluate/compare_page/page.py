"""The whole page, and its plots as files."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from opa_trt import atomic
from opa_trt.evaluate.compare_page import (
    appendix,
    content_plots,
    group_plots,
    latency_plots,
    reading,
    tables,
    verdicts,
)
from opa_trt.evaluate.compare_page.drawing import Picture
from opa_trt.evaluate.compare_page.markup import Section, details, figure, section
from opa_trt.evaluate.compare_page.reading import Report
from opa_trt.evaluate.compare_page.stylesheet import stylesheet
from opa_trt.evaluate.picture import require_matplotlib

PAGE = "index.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_page(report: Report, out: Path) -> None:
    """Write ``index.html`` and its plots as PNG files into the folder ``out``.

    The page needs nothing but itself: no network, no scripts; its plots stand in it as SVG.

    Args:
        report: what ``opa-trt compare`` writes as compare.json, schema 1.
        out: made where it is missing; files of these names are replaced.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    require_matplotlib()
    drawn = {picture.stem: picture for picture in pictures(report)}
    for stem, picture in drawn.items():
        atomic.write_bytes(out / f"{stem}.png", picture.png)
    atomic.write_text(out / PAGE, markup(report, drawn))


def pictures(report: Report) -> Iterator[Picture]:
    """Every plot that the report has figures for."""
    single = (
        latency_plots.accuracy_latency(report),
        latency_plots.in_time(report),
        latency_plots.frontier(report),
        group_plots.gain(report),
        group_plots.sizes(report),
        content_plots.families(report),
    )
    yield from (picture for picture in single if picture is not None)
    yield from content_plots.timelines(report)


def markup(report: Report, drawn: dict[str, Picture]) -> str:
    """The page's text."""
    parts = [part for part in _sections(report, drawn) if part.body]
    links = "".join(f'<li><a href="#{p.anchor}">{escape(p.title)}</a></li>' for p in parts)
    title = f"{report['bundle']['name']}: policies compared"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{stylesheet()}</style></head>\n<body>\n"
        + verdicts.opening(report)
        + f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n'
        + "".join(map(section, parts))
        + "</main>\n"
        + appendix.closing()
        + "</body></html>\n"
    )


def _sections(report: Report, drawn: dict[str, Picture]) -> Iterator[Section]:
    def plot(stem: str) -> str:
        return figure(drawn.get(stem))

    yield Section("goals", "Goals", verdicts.goals(report))
    yield Section("losses", "Where we win and lose", verdicts.head_to_head(report))
    yield Section("means", "Over all judged deadlines", verdicts.means(report))
    yield Section("latency", "Accuracy against latency", plot("accuracy-latency"))
    yield Section(
        "in-time",
        "In-time accuracy by load and deadline",
        plot("in-time-accuracy") + tables.results(report),
    )
    yield Section("largest", "The largest network's accuracy", plot("largest-at-less-latency"))
    yield Section("gain", "Gain by group", plot("gain-by-group") + _gains(report))
    yield Section("overhead", "Overhead", tables.overhead(report))
    yield Section("sizes", "Group size", plot("group-sizes") + tables.sizes(report))
    over_time = "".join(figure(p) for stem, p in drawn.items() if stem.startswith("timeline-"))
    yield Section("content", "Content", plot("content") + tables.content(report))
    yield Section("time", "Content over time", over_time)
    yield Section("violations", "Missed deadlines", tables.violations(report))
    yield Section("arms", "Who was compared", appendix.arms(report) + appendix.nodes(report))
    yield Section("loads", "Loads and deadlines", appendix.loads(report))
    yield Section("split", "Images", appendix.split(report))
    yield Section("versions", "Machine, versions and settings", appendix.versions(report))


def _gains(report: Report) -> str:
    first, *others = (tables.gains(report, ours) for ours in reading.OURS)
    return first + details("The same for opa", "".join(others))
