"""What shallow phases bring to a legacy network (LeAF): accuracy, MACs, latency, Pareto sets.

    python benchmarks/leaf.py cifar10_leaf --data DIR --out docs/results/leaf.md

The accuracy of configurations before and after fine-tuning is that of the training's own log. Each
backend compiles every alternative of every phase by itself; a configuration's latency there is the
sum of its engines'. Pareto sets are compared by what one costs where another is the right one. The
peer of the segment-wise engines is the same configuration as one engine, timed in turns with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from alternating import (
    finish,
    name_of,
    options,
    pictures_of,
    remarks,
    table,
    use_threads,
    versions,
    with_backends,
    with_folder,
)
from bundles import Lines, chosen_bundle, chosen_recipe, with_recipe
from leaf_picture import draw
from measuring import describe

from opa_trt.builder.legacy_parts import LegacyParts
from opa_trt.builder.pipeline import prepare
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.stages import stages_of
from opa_trt.bundle import Bundle
from opa_trt.clock import MonotonicClock
from opa_trt.evaluate.bench import bench
from opa_trt.evaluate.engine_set import open_settings
from opa_trt.progress import Progress
from opa_trt.store import EngineStore
from opa_trt.supernet.checkpoint import read_notes
from opa_trt.supernet.legacy import Configuration
from opa_trt.supernet.legacy.weights import SHALLOW
from opa_trt.training.leaf import CHECK_IMAGES
from opa_trt.training.leaf_measure import Measured, front, measure

BATCHES = (1, 8, 64)
BACKENDS = ("onnxruntime", "openvino", "torchscript")
MACS = "MACs"
LAST = "routes"  # the stage that measures every configuration
SECONDS, QUICK_SECONDS = 0.3, 0.02
PICTURE = "leaf.png"
AGAIN = "itself, measured again"

Latencies = dict[str, dict[str, float]]  # ms by batch size and configuration
Sets = dict[str, list[Configuration]]


def main() -> None:
    """Measure, draw, write the page."""
    parser = with_backends(with_recipe(with_folder(options(__doc__ or ""))), BACKENDS)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    chosen = parser.parse_args()
    use_threads(chosen.threads)
    recipe = chosen_recipe(chosen)
    if not recipe.is_legacy:
        raise SystemExit(f"recipe {recipe.name} has a super-network; expected one with [legacy].")
    report = measured(recipe, chosen)
    if chosen.out is not None:
        draw(pictures_of(chosen.out) / PICTURE, report)
    report["reading"] = remarks(chosen.out)
    finish(report, page, chosen, versions(chosen.backends))


def measured(recipe: Recipe, chosen: argparse.Namespace) -> dict[str, Any]:
    """All that the page tells."""
    seconds = QUICK_SECONDS if chosen.quick else SECONDS
    buckets = tuple(sorted(set(chosen.batches)))
    lines, store = Lines(), EngineStore(chosen.folder / "store")
    wanted = replace(
        recipe,
        measure=replace(recipe.measure, buckets=buckets, seconds=seconds),
        compile=replace(recipe.compile, backends=tuple(chosen.backends)),
    )
    parts = _parts(prepare(wanted, chosen.data, progress=lines, store=store))
    twice = {name: _on_backend(parts, name) for name in chosen.backends}
    found = {name: first for name, (first, _) in twice.items()}
    again = {name: second for name, (_, second) in twice.items()}
    network, side = parts.network, recipe.data.size
    tried = [Measured.from_dict(row) for row in parts.found["configurations"].facts["tried"]]
    tested = measure(
        network, [each.configuration for each in tried], parts.pools.source, parts.splits.test
    )
    sets = {MACS: [each.configuration for each in front(tried)], **_sets(tried, found)}
    log = read_notes(recipe.named_checkpoint(), SHALLOW)["log"]
    bundle = Bundle(chosen_bundle(wanted, chosen, store, lines))
    return {
        "benchmark": "leaf",
        "recipe": recipe.name,
        "network": parts.found["network"].line,
        "folder": name_of(chosen.out, "leaf"),
        "images": {
            "checking": min(CHECK_IMAGES, len(parts.splits.fit)),
            "choosing": len(parts.pools.choosing_inputs(side)[1]),
            "test": len(parts.splits.test),
        },
        "training": log,
        "configurations": [
            {
                "name": str(each.configuration),
                "shallow": each.configuration.bits,
                "macs": each.cost,
                "accuracy": each.accuracy,
                "test_accuracy": share,
                "ms": {
                    name: {batch: row[str(each.configuration)] for batch, row in ms.items()}
                    for name, ms in found.items()
                },
            }
            for each, share in zip(tried, tested, strict=True)
        ],
        "fronts": {name: [*map(str, own)] for name, own in sets.items()},
        "strangers": _strangers(tried, found, sets, _sets(tried, again)),
        "chains": _chains(bundle, buckets, store, seconds, lines),
        "met": None,
    }


def _parts(parts: Any) -> LegacyParts:
    """With what the stages find that no backend has a part in."""
    if not isinstance(parts, LegacyParts):
        raise TypeError(f"parts of {type(parts).__name__}")
    for stage in ("data", "network", "configurations", "pioneer", "fold", "trace"):
        _find(parts, stage)
    return parts


def _find(parts: LegacyParts, stage: str) -> None:
    parts.found[stage] = stages_of(parts.recipe)[stage](parts)
    parts.progress.finish(stage, parts.found[stage].line)


def _on_backend(parts: LegacyParts, name: str) -> tuple[Latencies, Latencies]:
    """ms of every configuration by batch size, all of it on one backend; measured twice."""
    compiled = replace(parts.recipe.compile, backends=(name,))
    recipe = replace(parts.recipe, compile=compiled)
    own = replace(parts, recipe=recipe, found=dict(parts.found))
    _find(own, "compile")
    _find(own, LAST)
    first: Latencies = own.found[LAST].facts["ms"]
    _find(own, LAST)
    return first, own.found[LAST].facts["ms"]


def _sets(tried: Sequence[Measured], found: Mapping[str, Latencies]) -> Sets:
    """The Pareto set of every backend at every batch size."""
    sets: Sets = {}
    for name, ms in found.items():
        for batch, row in ms.items():
            own = front(_at(tried, row))
            sets[f"{name}, batch {batch}"] = [each.configuration for each in own]
    return sets


def _at(tried: Sequence[Measured], ms: Mapping[str, float]) -> list[Measured]:
    return [Measured(m.configuration, m.accuracy, ms[str(m.configuration)]) for m in tried]


def _strangers(
    tried: Sequence[Measured], found: Mapping[str, Latencies], sets: Sets, again: Sets
) -> list[dict[str, Any]]:
    """What every Pareto set costs at every place: how much longer the fastest of it takes that is
    at least as accurate as a configuration on the front there."""
    rows = []
    for name, ms in found.items():
        for batch, row in ms.items():
            there = {each.configuration: each for each in _at(tried, row)}
            place = f"{name}, batch {batch}"
            for other, known in {**sets, AGAIN: again[place]}.items():
                costs = [
                    min(there[each].cost for each in known if there[each].accuracy >= goal.accuracy)
                    / goal.cost
                    for goal in (there[each] for each in sets[place])
                ]
                extra = np.subtract(costs, 1)
                found_there = {"mean": float(extra.mean()), "most": float(extra.max())}
                rows.append({"at": place, "set": other, **found_there})
    return rows


def _chains(
    bundle: Bundle, batches: Sequence[int], store: EngineStore, seconds: float, progress: Progress
) -> list[dict[str, Any]]:
    """Every route of a bundle on its plan, segment by segment and as one engine."""
    settings = open_settings(bundle, ("auto",), (None,), store=store, clock=MonotonicClock())
    timed = bench(settings, batches, monoliths=True, seconds=seconds, progress=progress)
    return [
        {
            "route": each.route.nodes[-1],
            "engines": len(each.route.nodes),
            "batch": each.route.batch,
            "backend": each.route.backend,
            "ms": each.route.at(0.5),
            "ratio": each.ratio,
            "low": each.low,
            "high": each.high,
        }
        for each in timed.ratios()
    ]


PAGE = """# A legacy network made flexible (LeAF)

`python benchmarks/leaf.py {recipe} --data DIR --out docs/results/{folder}.md`, on {machine},
{threads} threads. {network}. A configuration is named by its shallow phases: {{}} is the legacy
network.

{reading}## Training

`opa-trt train {recipe} --data DIR` with all configurations ({base:,} steps), then with those on
the front of MACs ({fine:,} more). Accuracy of {checking:,} held-out images that were not trained
on.

{training}

## Accuracy, MACs, latency

MACs of one image, accuracy of {test:,} test images, and ms of a batch as the sum of its engines,
each backend by itself. Bold: on the Pareto front of accuracy ({choosing:,} held-out images, on
which fronts are chosen) and that latency, or of MACs.

{configurations}

![accuracy against MACs, and against latency by backend and batch size]({folder}/{picture})

## Does the Pareto set depend on batch size and backend?

{sets}

What it costs to use the set of another place: how much longer than on the place's own front an
answer of at least the same accuracy takes, in the mean over that front, and at most. Two
measurements of one place do not agree to the last percent either: the last column says what that
alone makes.

{strangers}

## Segment by segment, or one engine

The deployed routes on the plan that the build chose ({plan}), each as its engines one after the
other (the exit head of the first among them) and as one engine of the same configuration, in
turns; medians and 95 % bootstrap intervals of their ratio.

{chains}
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    base, fine = report["training"]
    return PAGE.format(
        recipe=report["recipe"],
        folder=report["folder"],
        machine=describe(report["machine"]),
        threads=report["threads"],
        network=report["network"],
        reading=report["reading"],
        base=base["steps"],
        fine=fine["steps"],
        training=_training(base, fine),
        **report["images"],
        configurations=_configurations(report),
        picture=PICTURE,
        sets="\n\n".join(
            f"- {name}: {len(own)} of {len(report['configurations'])}: {', '.join(own)}"
            for name, own in report["fronts"].items()
        ),
        strangers=_foreign(report),
        plan=", ".join(dict.fromkeys(row["backend"] for row in report["chains"])),
        chains=_chain_table(report["chains"]),
    )


def _training(base: Mapping[str, Any], fine: Mapping[str, Any]) -> str:
    after = {tuple(row["shallow"]): row["accuracy"] for row in fine["configurations"]}
    rows = []
    for row in sorted(base["configurations"], key=lambda row: row["cost"]):
        told = str(Configuration.from_bits(row["shallow"]))
        tuned = after.get(tuple(row["shallow"]))
        rows.append(
            (
                told,
                f"{row['cost'] / 1e6:.1f}",
                f"{row['accuracy']:.1%}",
                "not on the front" if tuned is None else f"{tuned:.1%}",
            )
        )
    return table(("configuration", "M MACs", "before fine-tuning", "after"), rows)


def _configurations(report: dict[str, Any]) -> str:
    """One row a configuration, by MACs."""
    fronts = {name: set(own) for name, own in report["fronts"].items()}
    places = [name for name in fronts if name != MACS]
    rows = []
    for each in sorted(report["configurations"], key=lambda row: row["macs"]):

        def told(place: str, text: str, name: str = each["name"]) -> str:
            return f"**{text}**" if name in fronts[place] else text

        cells = [
            each["name"],
            told(MACS, f"{each['macs'] / 1e6:.1f}"),
            f"{each['test_accuracy']:.1%}",
        ]
        for place in places:
            backend, batch = place.split(", batch ")
            cells.append(told(place, f"{each['ms'][backend][batch]:.2f}"))
        rows.append(cells)
    return table(("configuration", "M MACs", "test accuracy", *places), rows)


def _foreign(report: dict[str, Any]) -> str:
    sets = [*report["fronts"], AGAIN]
    places = [name for name in report["fronts"] if name != MACS]
    cells = {(row["at"], row["set"]): row for row in report["strangers"]}
    rows = [
        (
            place,
            *(
                f"{cells[place, other]['mean']:.1%}, {cells[place, other]['most']:.1%}"
                for other in sets
            ),
        )
        for place in places
    ]
    return table(("used at \\ set of", *sets), rows)


def _chain_table(rows: Sequence[Mapping[str, Any]]) -> str:
    batches = [*dict.fromkeys(row["batch"] for row in rows)]
    routes = [*dict.fromkeys(row["route"] for row in rows)]
    cells = {(row["route"], row["batch"]): row for row in rows}
    body = [
        (
            route,
            *(
                f"{row['ms']:.2f} ms, {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
                for row in (cells[route, batch] for batch in batches)
            ),
        )
        for route in routes
    ]
    return table(("route", *(f"batch {batch}" for batch in batches)), body)


if __name__ == "__main__":
    main()
