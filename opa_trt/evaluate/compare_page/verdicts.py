"""The top of the page: what was compared where, every goal, and where we lose."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from opa_trt.evaluate.compare_page import reading, words
from opa_trt.evaluate.compare_page.markup import (
    Markup,
    arm_cell,
    details,
    lines,
    paragraph,
    table,
)
from opa_trt.evaluate.compare_page.palette import name
from opa_trt.evaluate.compare_page.reading import Report, Row

KINDS = {True: "met", False: "missed", None: "open"}


def opening(report: Report) -> str:
    """What was compared, on which machine; and what to know before reading on."""
    bundle, machine, settings = report["bundle"], report["machine"], report["settings"]
    where = f"{machine['cores']} cores of {machine['processor']}"
    if machine["gpu"]:
        where += f" and {machine['gpu']}"
    loads = [words.applications(load) for load in settings["loads"]]
    lead = (
        f"{len(report['arms'])} ways to decide answered the same groups of "
        f"{settings['group_size']} images on the same engines ({bundle['backend']}, "
        f"{bundle['threads']} thread{'' if bundle['threads'] == 1 else 's'}) of {where}, "
        f"in turns: {settings['groups']} groups under each deadline and load "
        f"({words.listed(loads)})."
    )
    kind = f"{bundle['name']}: {bundle['classes']} classes, {len(bundle['nodes'])} places to answer"
    return (
        f"<header><h1>{escape(bundle['name'])}: policies compared</h1>\n"
        + paragraph(lead, kind="lead")
        + paragraph(f"{bundle['path']} — {kind}.", kind="quiet")
        + "".join(paragraph(notice, kind="notice") for notice in _notices(report))
        + "</header>\n"
    )


def _notices(report: Report) -> list[str]:
    found = []
    if report["partial"]:
        found.append("Partial: the run was interrupted, and only what was finished is here.")
    if report["replay"] is not None:
        found.append(
            f"Replayed from {report['replay']}: no engine ran, latencies are drawn from those "
            "that were recorded there."
        )
    overlap = report["split"]["overlap"]
    if any(overlap.values()):
        found.append(
            f"Of the test images {overlap['trained']} are among those that trained the networks, "
            f"and {overlap['fitted_or_chosen']} among those that fitted or chose."
        )
    if report["split"]["same_data"] is False:
        found.append("The training images are not those that the bundle was built with.")
    return found


def goals(report: Report) -> str:
    """Every goal with its verdict, its figure and what it is made of."""
    items = "".join(_goal(goal) for goal in report["goals"])
    if not items:
        return ""
    legend = (
        "Met or not met: the whole 95 % interval says so. Not resolved: it does not tell, or not "
        "all that the goal asks for was run."
    )
    return paragraph(legend, kind="quiet") + f'<ul class="goals">{items}</ul>\n'


def _goal(goal: Row) -> str:
    shown = words.figure(goal["value"], goal["unit"])
    if goal["interval"]:
        shown += _ends(goal["interval"], goal["unit"])
    threshold = words.figure(goal["threshold"], goal["unit"])
    note = f" ({goal['note']})" if goal["note"] else ""
    parts = table(
        "Its parts",
        (("", "left"), ("verdict", "left"), ("value", "right"), ("95 % interval", "right")),
        (_part(part, goal["unit"]) for part in goal["parts"]),
    )
    return (
        f'<li><span class="verdict {KINDS[goal["met"]]}">{words.verdict(goal["met"])}</span><div>'
        + paragraph(goal["text"])
        + f'<p><span class="figure">{shown}</span> <span class="quiet">against {threshold}'
        f"{escape(note)}</span></p>"
        + details(f"{len(goal['parts'])} parts", parts)
        + "</div></li>\n"
    )


def _part(part: Row, unit: str) -> tuple[str | Markup, ...]:
    met = Markup(f'<span class="{KINDS[part["met"]]}">{words.verdict(part["met"])}</span>')
    unit = "points" if unit == "ratio" else unit  # those of a ratio are differences of accuracy
    ends = _ends(part["interval"], unit).strip() if part["interval"] else words.NONE
    return part["label"], met, words.figure(part["value"], unit), ends


def _ends(interval: Sequence[float], unit: str) -> str:
    low, high = interval
    if unit == "points":
        return words.ends(low, high)
    return f" [{100 * low:.1f}, {100 * high:.1f}]"


def head_to_head(report: Report) -> str:
    """At how many judged deadlines ours is surely ahead, and surely behind; and where."""
    rows = reading.head_to_head(report)
    if not rows:
        return ""
    others = reading.present(report, rows, "other")
    counted = table(
        "opa_split against each baseline at single judged deadlines, by in-time accuracy",
        (
            ("", "left"),
            ("deadlines", "right"),
            ("surely ahead", "right"),
            ("not told apart", "right"),
            ("surely behind", "right"),
        ),
        ((arm_cell(other), *_counts(reading.where(rows, other=other))) for other in others),
    )
    lost = [row for row in rows if reading.surely(row["in_time_accuracy"]) < 0]
    if lost:
        told = paragraph("Where we lose, surely:") + lines(_lost(row) for row in lost)
    else:
        told = paragraph("At no judged deadline is a baseline surely ahead of opa_split.")
    return told + counted


def _counts(rows: Sequence[Row]) -> tuple[str, ...]:
    signs = [reading.surely(row["in_time_accuracy"]) for row in rows]
    return tuple(str(n) for n in (len(signs), signs.count(1), signs.count(0), signs.count(-1)))


def _lost(row: Row) -> str:
    found = words.points_interval(row["in_time_accuracy"])
    where = f"{words.applications(row['load'])}, {words.ms(row['deadline_ms'])} ms"
    return f"{where}: {found} points against {name(row['other'])}"


def means(report: Report) -> str:
    """Every arm over the judged deadlines, by load and over all."""
    found = []
    for load in [None, *reading.loads(report["means"])]:
        rows = reading.where(report["means"], load=load)
        found.append(
            table(
                f"Mean over the judged deadlines, {words.applications(load)}",
                (
                    ("", "left"),
                    ("right and in time", "right"),
                    ("right", "right"),
                    ("deadlines met", "right"),
                    ("mean ms", "right"),
                ),
                (
                    (
                        arm_cell(row["arm"]),
                        words.percent_interval(row["in_time_accuracy"]),
                        words.percent_interval(row["accuracy"]),
                        words.percent(row["deadlines_met"]["mean"]),
                        words.ms(row["mean_ms"]),
                    )
                    for row in rows
                ),
                marks=[kind_of(report, row["arm"]) for row in rows],
            )
        )
    return "".join(found)


def kind_of(report: Report, arm: str) -> str:
    """``ours``, ``baseline`` or ``reference``."""
    return next((str(row["kind"]) for row in report["arms"] if row["name"] == arm), "")
