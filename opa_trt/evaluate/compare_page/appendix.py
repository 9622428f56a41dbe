"""The bottom of the page: who was compared, deadlines, images, settings and versions."""

from __future__ import annotations

from opa_trt.evaluate.compare_page import words
from opa_trt.evaluate.compare_page.markup import (
    Markup,
    arm_cell,
    details,
    facts,
    lines,
    paragraph,
    table,
)
from opa_trt.evaluate.compare_page.palette import name
from opa_trt.evaluate.compare_page.reading import Report, Row
from opa_trt.evaluate.compare_page.verdicts import kind_of

SHOWN = 16  # digits of a digest


def arms(report: Report) -> str:
    """Who was compared, and who was not and why."""
    rows = [(arm_cell(row["name"]), row["kind"], row["note"]) for row in report["arms"]]
    columns = (("", "left"), ("what", "left"), ("how it decides", "left"))
    marks = [kind_of(report, row["name"]) for row in report["arms"]]
    left_out = (f"{name(arm)} is left out: {why}" for arm, why in report["left_out"].items())
    return table("Who was compared", columns, rows, marks=marks) + lines(left_out)


def loads(report: Report) -> str:
    """The deadlines of every load, and the static routes that were tried for them."""
    told = table(
        "Loads: the judged deadlines reach from 1.2 × the pioneer's p99 to 1.2 × the largest "
        "route's median",
        (
            ("", "left"),
            ("pioneer p99 ms", "right"),
            ("fastest route ms", "right"),
            ("largest route ms", "right"),
            ("slowdown", "right"),
            ("judged, ms", "right"),
            ("deadlines (best static route), ms", "left"),
        ),
        (
            (
                words.applications(row["load"]),
                words.ms(row["pioneer_p99_ms"]),
                words.ms(row["fastest_median_ms"]),
                words.ms(row["largest_median_ms"]),
                words.NONE if row["slowdown"] is None else f"{row['slowdown']:.2f} ×",
                f"{words.ms(row['low_ms'])} to {words.ms(row['high_ms'])}",
                _deadlines(row),
            )
            for row in report["loads"]
        ),
    )
    return told + "".join(_routes(row) for row in report["loads"])


def _deadlines(row: Row) -> str:
    return ", ".join(
        f"{words.ms(each['deadline_ms'])} ({each['static_best']})"
        + ("" if each["judged"] else " not judged")
        for each in row["deadlines"]
    )


def _routes(row: Row) -> str:
    where = words.applications(row["load"])
    body = table(
        f"Static routes on the fitting images, {where}",
        (("ends at", "left"), ("p50 ms", "right"), ("p99 ms", "right"), ("right", "right")),
        (
            (
                each["node"],
                words.ms(each["median_ms"]),
                words.ms(each["p99_ms"]),
                words.percent(each["fit_accuracy"]),
            )
            for each in row["routes"]
        ),
    )
    return details(f"Static routes, {where}", body)


def split(report: Report) -> str:
    """Which images did what."""
    found = report["split"]
    tested = found["tested"]
    pairs = [
        ("source", f"{found['source']}, {found['classes']} classes"),
        ("trained", _images(found["trained"])),
        ("chosen", _images(found["chosen"])),
        ("fitted", _images(found["fitted"])),
        ("tested", f"{_images(tested)}, {words.count(tested['rows'])} rows with degradations"),
        ("test images among the trained", words.count(found["overlap"]["trained"])),
        (
            "test images among the fitted or chosen",
            words.count(found["overlap"]["fitted_or_chosen"]),
        ),
    ]
    return lines(found["lines"]) + facts(pairs)


def _images(found: Row) -> str:
    digest = found.get("digest")
    images = f"{words.count(found['images'])} images"
    return f"{images}, sha256 {digest[:SHOWN]}…" if digest else images


def nodes(report: Report) -> str:
    """Where images could be answered."""
    body = table(
        f"Places to answer: the route that ends there, at batch {report['settings']['group_size']}",
        (
            ("", "left"),
            ("system", "left"),
            ("pixels", "right"),
            ("M MACs", "right"),
            ("p50 ms", "right"),
            ("right, fitting", "right"),
            ("right, the stream", "right"),
        ),
        (
            (
                row["name"],
                row["system"],
                str(row["resolution"]),
                f"{row['macs'] / 1e6:,.2f}",
                words.ms(row["ms"]),
                words.percent(row["fit_accuracy"]),
                words.percent(row["test_accuracy"]),
            )
            for row in report["bundle"]["nodes"]
        ),
    )
    return details(f"{len(report['bundle']['nodes'])} places to answer", body)


def versions(report: Report) -> str:
    """Machine, versions and settings: what it takes to run it again."""
    machine, bundle, settings = report["machine"], report["bundle"], report["settings"]
    backends = " ".join(f"{label} {version}" for label, version in machine["versions"].items())
    pairs = [
        ("processor", f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"),
        ("GPU", machine["gpu"] or "none"),
        ("versions", f"opa_trt {machine['opa_trt']}, Python {machine['python']}, "
                     f"torch {machine['torch']}, {backends}".removesuffix(", ")),
        ("bundle", f"{bundle['path']}, recipe sha256 {bundle['digest'][:SHOWN]}…"),
        ("run", f"{words.count(report['seconds'])} s, seed {report['seed']}"),
        ("intervals", f"{100 * settings['confidence']:g} %, {words.count(settings['draws'])} "
                      "bootstrap draws over groups"),
        ("before each deadline", f"{settings['warm_up']} groups that do not count"),
        ("deadlines", f"measured on {settings['trials']} groups a route"
                      if settings["deadlines"] is None else "given"),
        ("the stream's content", words.listed([kind.replace("_", " ")
                                               for kind in settings["families"]]) or "clean only"),
    ]  # fmt: skip
    return facts(pairs)


def files() -> Markup:
    """What lies beside the page."""
    names = ("compare.json", "groups.csv", "records.safetensors")
    links = ", ".join(f'<a href="{each}">{each}</a>' for each in names)
    return Markup(f"All figures: {links}; every plot is beside this page as a PNG.")


def closing() -> str:
    """The page's last line."""
    return f"<footer>{paragraph(files())}</footer>\n"
