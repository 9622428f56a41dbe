"""Every policy on one recipe's bundle: its page, from the images to the tables and pictures.

    python benchmarks/comparison.py digits --out docs/results/digits.md
    python benchmarks/comparison.py cifar10 --data DIR --out docs/results/cifar10.md

Builds the bundle with all baselines in it (kept in --folder and taken up again), and compares as
``opa-trt compare`` does: same engines, images and load, in turns. Pictures are put into a folder
beside the page that is called as the page. What stands in its ``reading.md`` goes on top.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alternating import (
    all_met,
    finish,
    name_of,
    options,
    pictures_of,
    remarks,
    table,
    use_threads,
    versions,
    with_folder,
)
from bundles import Lines, chosen_bundle, chosen_recipe, data_option, with_recipe
from measuring import describe

import opa_trt
from opa_trt.bundle import Bundle
from opa_trt.clock import MonotonicClock
from opa_trt.evaluate.compare import Settings, compare, read_data, write
from opa_trt.evaluate.compare_page import reading, words
from opa_trt.runtime.session import read_knowledge
from opa_trt.store import EngineStore
from opa_trt.tree import BRANCHYNET, CASCADE, WHOLE

TRIAL: dict[str, Any] = {
    "groups": 4,
    "loads": (0,),
    "group_sizes": (2, 50),
    "images": 300,
    "trials": 20,
}
GROUPS = 200
IMAGES = 20_000  # rows that groups are drawn from: CIFAR-10's test images, and as many harder ones
INTERRUPTED = 130  # exit status, as of the command line
PICTURES = {
    "in-time-accuracy.png": "in-time accuracy by deadline and load",
    "accuracy-latency.png": "accuracy against latency",
    "largest-at-less-latency.png": "how much earlier the largest network's accuracy is reached",
    "gain-by-group.png": "gain over each baseline, group by group",
    "group-sizes.png": "accuracy and overhead by group size",
    "content.png": "accuracy by content",
}


def main() -> None:
    """Build, compare, write the page."""
    chosen = _options()
    use_threads(chosen.threads)
    recipe = chosen_recipe(chosen)
    lines, store = Lines(), EngineStore(chosen.folder / "store")
    path = chosen_bundle(recipe, chosen, store, lines)
    bundle = Bundle(path)
    wanted = {"groups": chosen.groups, "images": IMAGES, **(TRIAL if chosen.quick else {})}
    settings = Settings(families=recipe.data.degradations, **wanted)
    data = read_data(bundle.manifest, chosen.data, progress=lines)
    clock = MonotonicClock()
    with opa_trt.load(path, threads=chosen.threads, store=store, clock=clock) as session:
        found = compare(
            session, read_knowledge(bundle), data, settings, clock, path=path.name, progress=lines
        )
        ran = session.backend
    place = chosen.folder / f"{path.stem}-compared"
    shutil.rmtree(place, ignore_errors=True)
    if problem := write(found, place):
        raise SystemExit(problem)
    if found.report["partial"]:
        print(f"Interrupted. What was finished is in {place}; no page is written.", file=sys.stderr)
        raise SystemExit(INTERRUPTED)
    report: dict[str, Any] = {"benchmark": "comparison", "recipe": recipe.name}
    report["page"] = str(place / "index.html")
    report |= {key: found.report[key] for key in KEPT}
    report["met"] = all_met([goal["met"] for goal in found.report["goals"]])
    if chosen.out is not None:
        _pictures(place, chosen.out)
    report["reading"] = remarks(chosen.out)
    report["folder"] = name_of(chosen.out, recipe.name)
    finish(report, page, chosen, versions(ran.split("+")))


KEPT = (
    "split", "loads", "results", "means", "differences", "overhead", "group_sizes", "content",
    "violations", "goals", "arms", "left_out", "bundle", "settings",
)  # fmt: skip


def _options() -> argparse.Namespace:
    parser = with_recipe(with_folder(options(__doc__ or "")))
    parser.add_argument("--groups", type=int, default=GROUPS, help="at each deadline")
    return parser.parse_args()


def _pictures(place: Path, out: Path) -> None:
    """Those of the comparison, beside the page."""
    folder = pictures_of(out)
    for name in PICTURES:
        if (place / name).is_file():
            shutil.copyfile(place / name, folder / name)


PAGE = """# Policies compared on {recipe}

`python benchmarks/comparison.py {recipe}{options} --out docs/results/{folder}.md`, on {machine},
{threads} threads, {backend}. `opa-trt compare` shows the same as a page of its own, for whatever a
bundle holds; this one has every baseline: {baselines}.

{reading}{split}

{arms}

## Goals

{goals}

## In the mean over judged deadlines

Deadlines are judged from 1.2 times the pioneer's p99 under that load to 1.2 times the largest
route's median. *Right in time* counts an answer after its deadline as wrong. Brackets hold 95 %
bootstrap intervals over groups.

{means}

{pictures}

## By deadline

In-time accuracy, then the share of deadlines met; those in parentheses are reported, not judged.

{deadlines}

## Where opa_split loses

{losses}

## What deciding costs

{overhead}

## By group size

{sizes}

## By content

In-time accuracy without load{over}.

{content}
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    return PAGE.format(
        recipe=report["recipe"],
        options=_options_of(report),
        folder=report["folder"],
        machine=describe(report["machine"]),
        threads=report["threads"],
        backend=report["bundle"]["backend"],
        baselines=_baselines(report),
        reading=report["reading"],
        split=". ".join(line.capitalize() for line in report["split"]["lines"]) + ".",
        arms=_arms(report),
        goals="\n\n".join(_goals(report)),
        means=_means(report),
        pictures="\n\n".join(
            f"![{told}]({report['folder']}/{name})" for name, told in PICTURES.items()
        ),
        deadlines="\n\n".join(_deadlines(report)),
        losses="\n\n".join(_losses(report)),
        overhead=_overhead(report),
        sizes=_sizes(report),
        over=_over(report),
        content=_content(report),
    )


def _baselines(report: dict[str, Any]) -> str:
    """How many complete sub-networks, and exits of each chain."""
    systems = [node["system"] for node in report["bundle"]["nodes"]]
    told = ((WHOLE, "complete sub-networks"), (CASCADE, "of them in a cascade"),
            (BRANCHYNET, "exits along one network"))  # fmt: skip
    counted = ((systems.count(system), what) for system, what in told)
    return words.listed([f"{count} {what}" for count, what in counted if count])


def _arms(report: dict[str, Any]) -> str:
    """What each policy does."""
    return table(("policy", "what it does"), [(arm["name"], arm["note"]) for arm in report["arms"]])


def _options_of(report: dict[str, Any]) -> str:
    """As they were given on the command line."""
    groups = report["settings"]["groups"]
    told = data_option(report["recipe"])
    return told if groups == GROUPS else f"{told} --groups {groups}"


def _goals(report: dict[str, Any]) -> Iterator[str]:
    for goal in report["goals"]:
        figure = words.figure(goal["value"], goal["unit"])
        low, high = goal["interval"] or (None, None)
        ends = words.ends(low, high) if goal["unit"] == "points" else ""
        yield f"- **{words.verdict(goal['met'])}**: {goal['text']}: {figure}{ends}. {goal['note']}"


def _means(report: dict[str, Any]) -> str:
    head = ("applications", "policy", "right in time", "right", "deadlines met", "mean ms")
    rows = [
        (
            "all" if row["load"] is None else str(row["load"]),
            row["arm"],
            words.percent_interval(row["in_time_accuracy"]),
            words.percent(row["accuracy"]["mean"]),
            words.percent_interval(row["deadlines_met"]),
            words.ms(row["mean_ms"]),
        )
        for row in report["means"]
    ]
    return table(head, rows)


def _deadlines(report: dict[str, Any]) -> Iterator[str]:
    """A table a load."""
    for load in report["loads"]:
        deadlines = load["deadlines"]
        head = [f"{load['load']} applications", *map(_deadline, deadlines)]
        rows = []
        for arm in reading.present(report, reading.where(report["results"], load=load["load"])):
            cells = [arm]
            for each in deadlines:
                found = reading.where(
                    report["results"],
                    load=load["load"],
                    deadline_ms=each["deadline_ms"],
                    arm=arm,
                )
                cells += [_cell(row) for row in found] or [words.NONE]
            rows.append(cells)
        yield table(head, rows)


def _deadline(row: dict[str, Any]) -> str:
    shown = f"{words.ms(row['deadline_ms'])} ms"
    return shown if row["judged"] else f"({shown})"


def _cell(row: dict[str, Any]) -> str:
    right, met = row["in_time_accuracy"]["mean"], row["deadlines_met"]["mean"]
    return f"{words.percent(right)}, {words.percent(met)}"


def _losses(report: dict[str, Any]) -> Iterator[str]:
    """Against each baseline: at how many judged deadlines it is surely ahead or behind."""
    rows = reading.head_to_head(report)
    for other in reading.present(report, rows, "other"):
        own = reading.where(rows, other=other)
        signs = [reading.surely(row["in_time_accuracy"]) for row in own]
        behind = [row for row, sign in zip(own, signs, strict=True) if sign < 0]
        told = "; ".join(
            f"{row['load']} applications, {words.ms(row['deadline_ms'])} ms: "
            f"{words.points_interval(row['in_time_accuracy'])}"
            for row in behind
        )
        yield (
            f"- {other}: of {len(own)} judged deadlines surely ahead at {signs.count(1)}, surely "
            f"behind at {len(behind)}{f' ({told})' if told else ''}."
        )


def _overhead(report: dict[str, Any]) -> str:
    head = ("applications", "policy", "decision ms, p50", "p99", "switch ms, p50", "p99",
            "engines ms, p50", "share of time", "groups that switch")  # fmt: skip
    rows = [
        (
            str(row["load"]),
            row["arm"],
            words.ms(row["decision_ms"]["p50"]),
            words.ms(row["decision_ms"]["p99"]),
            words.ms(row["switch_ms"]["p50"]),
            words.ms(row["switch_ms"]["p99"]),
            words.ms(row["engines_ms"]["p50"]),
            words.percent(row["share"]),
            words.percent(row["switches"], 0),
        )
        for row in sorted(report["overhead"], key=lambda row: row["load"])
    ]
    return table(head, rows)


def _sizes(report: dict[str, Any]) -> str:
    head = ("images in a group", "policy", "deadline ms", "right in time", "right",
            "deadlines met", "ms an image", "overhead ms an image")  # fmt: skip
    rows = [
        (
            words.count(row["size"]),
            row["arm"],
            words.ms(row["deadline_ms"]),
            words.percent_interval(row["in_time_accuracy"]),
            words.percent(row["accuracy"]["mean"]),
            words.percent(row["deadlines_met"]["mean"]),
            words.ms(row["ms_an_image"]),
            words.ms(row["overhead_ms_an_image"]),
        )
        for row in sorted(report["group_sizes"], key=lambda row: row["size"])
    ]
    return table(head, rows)


def _over(report: dict[str, Any]) -> str:
    """What the contents were compared on."""
    if report["settings"]["families"]:
        return ", over all judged deadlines"
    return ", at the middle deadline, on contents that the network was not trained for"


def _content(report: dict[str, Any]) -> str:
    rows = reading.where(report["content"]["by_family"], load=0)
    kinds = [*dict.fromkeys((row["family"], row["severity"]) for row in rows)]
    head = ["policy", *(family if not level else f"{family} {level}" for family, level in kinds)]
    body: list[Sequence[str]] = []
    for arm in reading.present(report, rows):
        cells = [
            words.percent(row["in_time_accuracy"]["mean"])
            for family, level in kinds
            for row in reading.where(rows, arm=arm, family=family, severity=level)
        ]
        body.append([arm, *cells])
    return table(head, body)


if __name__ == "__main__":
    main()
