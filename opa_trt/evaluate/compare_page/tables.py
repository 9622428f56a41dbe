"""The page's tables of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opa_trt.evaluate.compare_page import reading, words
from opa_trt.evaluate.compare_page.markup import Markup, arm_cell, details, table
from opa_trt.evaluate.compare_page.reading import Report, Row
from opa_trt.evaluate.compare_page.verdicts import kind_of

MOST_NODES = 3  # named of those that answered


def results(report: Report) -> str:
    """Every load, deadline and arm."""
    columns = (
        ("", "left"),
        ("right and in time", "right"),
        ("right", "right"),
        ("deadlines met", "right"),
        ("p50 ms", "right"),
        ("p99 ms", "right"),
        ("answered by", "left"),
    )
    found = ""
    for row in report["loads"]:
        for deadline in row["deadlines"]:
            ms = deadline["deadline_ms"]
            rows = reading.where(report["results"], load=row["load"], deadline_ms=ms)
            judged = "judged" if deadline["judged"] else "not judged"
            caption = f"{words.applications(row['load'])}, deadline {words.ms(ms)} ms ({judged})"
            marks = [kind_of(report, each["arm"]) for each in rows]
            found += table(caption, columns, map(_result, rows), marks=marks)
    return details("All figures, by load and deadline", found)


def _result(row: Row) -> tuple[str | Markup, ...]:
    return (
        arm_cell(row["arm"]),
        words.percent_interval(row["in_time_accuracy"]),
        words.percent(row["accuracy"]["mean"]),
        words.percent(row["deadlines_met"]["mean"]),
        words.ms(row["p50_ms"]),
        words.ms(row["p99_ms"]),
        _answered(row["nodes"]),
    )


def _answered(nodes: dict[str, float]) -> str:
    """The nodes that answered most images."""
    ordered = sorted(nodes.items(), key=lambda pair: -pair[1])
    named = [f"{node} {100 * share:.0f} %" for node, share in ordered[:MOST_NODES]]
    rest = len(ordered) - MOST_NODES
    return ", ".join(named) + (f", {rest} more" if rest > 0 else "")


def gains(report: Report, ours: str) -> str:
    """On how many groups ours was ahead, and by how much, over the judged deadlines."""
    rows = [
        row for row in report["differences"] if row["ours"] == ours and row["deadline_ms"] is None
    ]
    columns = (
        ("against", "left"),
        ("load", "left"),
        ("mean, points", "right"),
        ("groups ahead", "right"),
        ("equal", "right"),
        ("behind", "right"),
        ("median", "right"),
        ("5 % to 95 %", "right"),
    )
    return table(
        f"In-time gain of {ours} on single groups, over the judged deadlines",
        columns,
        (
            (
                arm_cell(row["other"]),
                words.applications(row["load"]),
                words.points_interval(row["in_time_accuracy"]),
                words.percent(row["better"], 0),
                words.percent(row["equal"], 0),
                words.percent(row["worse"], 0),
                words.points(row["quantiles"]["0.5"]),
                f"{words.points(row['quantiles']['0.05'])} to "
                f"{words.points(row['quantiles']['0.95'])}",
            )
            for row in sorted(rows, key=_by_arm(report, "other"))
        ),
    )


def overhead(report: Report) -> str:
    """What deciding and switching take, by load and arm."""
    rows = sorted(report["overhead"], key=lambda row: row["load"])
    columns = (
        ("", "left"),
        ("load", "left"),
        ("decision ms, p50", "right"),
        ("p99", "right"),
        ("switch ms, p50", "right"),
        ("p99", "right"),
        ("engines ms, p50", "right"),
        ("p99", "right"),
        ("share of time", "right"),
        ("groups that switch", "right"),
    )
    return table(
        "Decision: the policy's own code. Switch: what is left of a group's time after decision "
        "and engines",
        columns,
        (
            (
                arm_cell(row["arm"]),
                words.applications(row["load"]),
                *(
                    words.ms(row[key][quantile])
                    for key in ("decision_ms", "switch_ms", "engines_ms")
                    for quantile in ("p50", "p99")
                ),
                words.percent(row["share"]),
                words.percent(row["switches"], 0),
            )
            for row in rows
        ),
        marks=[kind_of(report, row["arm"]) for row in rows],
    )


def sizes(report: Report) -> str:
    """Accuracy and overhead by the size of a group."""
    rows = sorted(report["group_sizes"], key=lambda row: row["size"])
    columns = (
        ("images in a group", "right"),
        ("", "left"),
        ("deadline ms", "right"),
        ("groups", "right"),
        ("right and in time", "right"),
        ("right", "right"),
        ("deadlines met", "right"),
        ("ms an image", "right"),
        ("overhead ms an image", "right"),
        ("share of time", "right"),
    )
    return table(
        "By the size of a group, at the least load; the deadline lies halfway in the judged range",
        columns,
        (
            (
                words.count(row["size"]),
                arm_cell(row["arm"]),
                words.ms(row["deadline_ms"]),
                words.count(row["groups"]),
                words.percent_interval(row["in_time_accuracy"]),
                words.percent(row["accuracy"]["mean"]),
                words.percent(row["deadlines_met"]["mean"]),
                words.ms(row["ms_an_image"]),
                words.ms(row["overhead_ms_an_image"]),
                words.percent(row["share"]),
            )
            for row in rows
        ),
        marks=[kind_of(report, row["arm"]) for row in rows],
    )


def content(report: Report) -> str:
    """In-time accuracy by kind of content: a column each, severities and loads together."""
    rows = report["content"]["by_family"]
    kinds = list(dict.fromkeys(row["family"] for row in rows))
    arms = reading.present(report, rows)
    found = ""
    for load in reading.loads(rows):
        at = reading.where(rows, load=load)
        found += table(
            f"Right and in time by content, all severities, {words.applications(load)}",
            (("", "left"), *((kind.replace("_", " "), "right") for kind in kinds)),
            (
                (arm_cell(arm), *(_over(reading.where(at, arm=arm, family=kind)) for kind in kinds))
                for arm in arms
            ),
            marks=[kind_of(report, arm) for arm in arms],
        )
    return found


def _over(rows: Sequence[Row]) -> str:
    """The mean over some rows, each as often as it has groups."""
    groups = sum(row["groups"] for row in rows)
    if not groups:
        return words.NONE
    right = sum(row["in_time_accuracy"]["mean"] * row["groups"] for row in rows)
    return words.percent(right / groups)


def violations(report: Report) -> str:
    """Deadlines that were missed: over the judged ones of a load, and each by itself."""
    rows = report["violations"]
    columns = (
        ("", "left"),
        ("load", "left"),
        ("groups", "right"),
        ("missed", "right"),
        ("share", "right"),
        ("longest run", "right"),
        ("worst, ms late", "right"),
        ("mean of those, ms late", "right"),
    )
    pairs = [
        (load, arm, reading.where(rows, load=load, arm=arm, judged=True))
        for load in reading.loads(rows)
        for arm in reading.present(report, rows)
    ]
    known = [pair for pair in pairs if pair[2]]
    summary = table(
        "Missed deadlines, over the judged ones",
        columns,
        ((arm_cell(arm), words.applications(load), *_missed(own)) for load, arm, own in known),
        marks=[kind_of(report, arm) for _, arm, _ in known],
    )
    late = [row for row in rows if row["missed"]]
    each = table(
        "Every load, deadline and policy that missed some",
        (*columns[:2], ("deadline ms", "right"), ("judged", "left"), *columns[2:]),
        (
            (
                arm_cell(row["arm"]),
                words.applications(row["load"]),
                words.ms(row["deadline_ms"]),
                "yes" if row["judged"] else "no",
                *_missed([row]),
            )
            for row in sorted(late, key=lambda row: (row["load"], row["deadline_ms"]))
        ),
    )
    return summary + details("By deadline, those that are not judged included", each)


def _missed(rows: Sequence[Row]) -> tuple[str, ...]:
    groups, missed = sum(row["groups"] for row in rows), sum(row["missed"] for row in rows)
    late = sum((row["mean_excess_ms"] or 0.0) * row["missed"] for row in rows)
    share = words.percent_interval(rows[0]["missed_share"])
    return (
        words.count(groups),
        words.count(missed),
        share if len(rows) == 1 else words.percent(missed / groups if groups else None),
        words.count(max(row["longest_run"] for row in rows)),
        words.ms(max(row["worst_ms"] for row in rows)) if missed else words.NONE,
        words.ms(late / missed) if missed else words.NONE,
    )


def _by_arm(report: Report, key: str) -> Callable[[Row], tuple[int, float]]:
    order = reading.arms(report)

    def place(row: Row) -> tuple[int, float]:
        load = row["load"]
        return order.index(row[key]), float("inf") if load is None else load

    return place
