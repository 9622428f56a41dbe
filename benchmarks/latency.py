"""How far three models of a tail's latency are off, by batch size and load.

    python benchmarks/latency.py --out docs/results/latency.md

Each group runs the pioneer and then a tail drawn at random. What a model says of the tail just
before it runs is compared with what it took. *single* scales the tail's profile by this group's
pioneer alone; *MACs* is OPA's own: the pioneer's latency times the ratio of MACs; *filtered* is the
runtime's: the profile scaled by a slowdown that blends this reading with recent groups, and by the
tail's own recent residuals.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import numpy as np
from alternating import VERDICTS, finish, options, table, use_threads, versions, with_folder
from bundles import digits_bundle, digits_stream
from measuring import describe

import opa_trt
from opa_trt import Session
from opa_trt.evaluate.background import applications
from opa_trt.store import EngineStore

BATCHES = (1, 16, 100)
LOADS = (0, 1, 2)
MODELS = ("single", "MACs", "filtered")
WARM = 20  # groups that are not counted
DRAWS = 1000


def main() -> None:
    """Measure every batch size and load, and print the errors."""
    chosen = _options()
    use_threads(chosen.threads)
    path = digits_bundle(chosen.folder, chosen.backend, chosen.threads)
    store = EngineStore(chosen.folder / "store")
    rows = []
    with opa_trt.load(path, backend=chosen.backend, threads=chosen.threads, store=store) as session:
        for load in chosen.loads:
            with applications(load, "cpu", seconds=600) if load else contextlib.nullcontext():
                rows += [one_row(session, load, batch, chosen.groups) for batch in BATCHES]
        ran = session.backend
    finish(summary(rows) | {"backend": ran}, page, chosen, versions(ran.split("+")))


def _options() -> argparse.Namespace:
    parser = with_folder(options(__doc__ or ""))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--groups", type=int, default=400, help="of each batch size and load")
    parser.add_argument("--loads", type=int, nargs="+", default=list(LOADS))
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.groups, chosen.loads = WARM + 10, chosen.loads[:2]
    return chosen


def one_row(session: Session, load: int, batch: int, groups: int) -> dict[str, Any]:
    """Errors of every model: of each group |predicted over measured − 1|."""
    tree, draw = session.tree, np.random.default_rng(batch)
    (entry,) = tree.entries_of("opa")
    profile = {name: session.profiles[name].at(batch) for name in tree.nodes}
    errors: dict[str, list[float]] = {name: [] for name in MODELS}
    own = session.fork()
    for place, group in enumerate(digits_stream(groups)):
        tail = str(draw.choice(entry.successors))
        own.use(f"static:{tail}")
        first, second = own.infer(group.pixels[:batch], np.inf).steps
        if place < WARM:
            continue
        said = {
            "single": profile[tail] * first.measured_ms / profile[entry.name],
            "MACs": first.measured_ms / entry.macs * tree[tail].macs,
            "filtered": second.predicted_ms,
        }
        for name, ms in said.items():
            errors[name].append(abs(ms / second.measured_ms - 1))
    own.close()
    return {
        "load": load,
        "batch": batch,
        "groups": len(errors["single"]),
        **{name: _figures(values) for name, values in errors.items()},
        "filtered_over_single": _ratio(errors["filtered"], errors["single"]),
    }


def _figures(errors: list[float]) -> dict[str, float]:
    return {
        "median": float(np.median(errors)),
        "mean": float(np.mean(errors)),
        "p90": float(np.quantile(errors, 0.9)),
    }


def _ratio(ours: list[float], theirs: list[float]) -> list[float]:
    """Ratio of mean errors, and its 95 % bootstrap interval over groups."""
    first, second = np.array(ours), np.array(theirs)
    rows = np.random.default_rng(0).integers(0, len(first), (DRAWS, len(first)))
    low, high = np.percentile(first[rows].mean(1) / second[rows].mean(1), [2.5, 97.5])
    return [float(first.mean() / second.mean()), float(low), float(high)]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows, and whether the runtime's model is nowhere the worse one."""
    highs = [row["filtered_over_single"][2] for row in rows]
    lows = [row["filtered_over_single"][1] for row in rows]
    verdict = True if max(highs) <= 1 else False if max(lows) > 1 else None
    return {
        "benchmark": "latency",
        "peer": "this group's reading alone, and OPA's MACs-proportional model",
        "rows": rows,
        "goal": "a mean error no larger than that of the single reading, everywhere",
        "met": verdict,
    }


PAGE = """# What three models say of a tail's latency

`python benchmarks/latency.py --out docs/results/latency.md`, on {machine}, {threads} threads,
{backend} on the CPU.

Digits; each group runs the pioneer and a tail drawn at random. The error of a group is how far what
a model said just before the tail ran is from what it took. *single*: the tail's profile times this
group's pioneer over its profile. *MACs*: OPA's own, the pioneer's latency times the ratio of MACs.
*filtered*: the runtime's, the profile times a slowdown that blends this reading with recent groups
and times the tail's own recent residuals. Median, mean and 90th percentile of the error; the ratio
of mean errors with its 95 % bootstrap interval.

{rows}

Goal: {goal}: **{verdict}**.
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = ("applications", "batch", "groups", *MODELS, "filtered over single")
    values = report | {
        "machine": describe(report["machine"]),
        "rows": table(head, [_cells(row) for row in report["rows"]]),
        "verdict": VERDICTS[report["met"]],
    }
    return PAGE.format(**values)


def _cells(row: dict[str, Any]) -> list[str]:
    def error(name: str) -> str:
        return " / ".join(f"{100 * value:.0f}" for value in row[name].values()) + " %"

    middle, low, high = row["filtered_over_single"]
    return [
        str(row["load"]),
        str(row["batch"]),
        str(row["groups"]),
        *map(error, MODELS),
        f"{middle:.2f} [{low:.2f}, {high:.2f}]",
    ]


if __name__ == "__main__":
    main()
