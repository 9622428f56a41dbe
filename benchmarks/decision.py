"""A decision for 100 images, 1,000 classes and 32 tails, on one core.

python benchmarks/decision.py --out docs/results/decision.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from alternating import VERDICTS, all_met, at_most, finish, options, table, use_threads
from measuring import describe
from ofa_network import random_knowledge
from threadpoolctl import threadpool_limits

from opa_trt.policies import Budget, Knowledge, Rightness, View, make_policy
from opa_trt.policies.evidence import ascending_powers, evidence, width
from opa_trt.policies.opa_split import plan
from opa_trt.supernet import published_space
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Tree

IMAGES_IN, CLASSES, TAILS = 100, 1000, 32
LOGITS_IN, EVIDENCE_IN = "raw logits", "evidence"
GOALS = {  # median ms
    ("opa", LOGITS_IN): 0.8,
    ("opa", EVIDENCE_IN): 0.2,
    ("opa_split", LOGITS_IN): 0.4,
    ("opa_split", EVIDENCE_IN): 0.2,
}
READERS = {"opa": ascending_powers, "opa_split": evidence}  # logits to what is evidence
PAPER_MS = 18.0
BLOCKS = 40  # medians that the interval is drawn from


def main() -> None:
    """Time every policy's step and its parts, and print what they took."""
    chosen = _options()
    use_threads(chosen.threads)
    with threadpool_limits(chosen.threads):
        rows = [measure(name, source, chosen.runs) for name, source in GOALS]
        parts = split(chosen.runs)
    finish(summary(rows, parts), page, chosen, ())


def _options() -> argparse.Namespace:
    parser = options(__doc__ or "", threads=1)
    parser.add_argument("--runs", type=int, default=8000, help="for each policy and part")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.runs = 2 * BLOCKS
    return chosen


def tree() -> Tree:
    """A pioneer and 32 tails, with the codes of archs of the published space."""
    space, draw = published_space("mobilenet_v3", width=1.0), np.random.default_rng(0)
    names = [f"tail{place + 1}" for place in range(TAILS)]
    codes = [tuple(map(float, space.encode(space.sample(draw)))) for _ in range(TAILS + 1)]
    pioneer = Node("pioneer", "pioneer", IMAGES, (FEATURES, LOGITS), tuple(names), 224, codes[0])
    tails = [
        Node(name, name, FEATURES, (LOGITS,), (), 224, code, macs=place)
        for place, (name, code) in enumerate(zip(names, codes[1:], strict=True))
    ]
    return Tree((pioneer, *tails))


def views(count: int) -> list[View]:
    """Different groups, so that none is in the processor's caches already."""
    draw = np.random.default_rng(1)
    latency = np.sort(draw.uniform(2, 40, (TAILS, 4)), axis=1)
    return [
        View(
            "pioneer",
            (3 * draw.standard_normal((IMAGES_IN, CLASSES))).astype(np.float32),
            tuple(f"tail{place + 1}" for place in range(TAILS)),
            (1, 16, 64, IMAGES_IN),
            latency,
            split_ms=0.5,
        )
        for _ in range(count)
    ]


def learned(nodes: Tree) -> Knowledge:
    """Models of the usual sizes that have learned nothing."""
    draw, names = np.random.default_rng(2), tuple(nodes.nodes)
    weight = 0.3 * draw.standard_normal((width(CLASSES), len(names)))
    model = Rightness(names, weight.astype(np.float32), np.zeros(len(names), np.float32))
    knowledge = random_knowledge(tuple(nodes.nodes.values()), CLASSES)
    return replace(knowledge, rightness={"pioneer": model})


def measure(name: str, source: str, runs: int) -> dict[str, Any]:
    """Median, p99 and the interval of the median of a policy's decision, in ms."""
    nodes = tree()
    policy: Any = make_policy(name, nodes, learned(nodes))
    budget, state, given = Budget(25.0), policy.start(), views(16)
    read = [READERS[name](view.logits) for view in given if view.logits is not None]
    ways: dict[str, Callable[[int], Any]] = {
        LOGITS_IN: lambda place: policy.step(given[place % 16], budget, state),
        EVIDENCE_IN: lambda place: policy.decide(given[place % 16], budget, read[place % 16]),
    }
    times = _times(ways[source], runs)
    low, high = _interval(times)
    goal = GOALS[name, source]
    return {
        "policy": name,
        "from": source,
        "runs": runs,
        "median_ms": float(np.median(times)),
        "interval": [low, high],
        "p99_ms": float(np.quantile(times, 0.99)),
        "goal": goal,
        "met": at_most(low, high, goal),
    }


def split(runs: int) -> dict[str, dict[str, float]]:
    """Median ms of what each policy does, one after the other."""
    nodes = tree()
    knowledge, given = learned(nodes), views(16)
    logits = [view.logits for view in given if view.logits is not None]
    powers, read = [*map(ascending_powers, logits)], [*map(evidence, logits)]
    estimator, model = knowledge.estimators["pioneer"], knowledge.rightness["pioneer"]
    codes = np.stack([knowledge.codes[name] for name in given[0].successors])
    right, table, sizes = [*map(model.probabilities, read)], given[0].latency_ms, given[0].batches
    parts: dict[str, dict[str, Callable[[int], Any]]] = {
        "opa": {
            "evidence (sorted)": lambda place: ascending_powers(logits[place % 16]),
            "judgement": lambda place: estimator.judged(powers[place % 16]),
            "a prediction not yet known": lambda _: knowledge.predictor.accuracies(0.5, codes),
        },
        "opa_split": {
            "evidence": lambda place: evidence(logits[place % 16]),
            "probabilities": lambda place: model.probabilities(read[place % 16]),
            "plan": lambda place: plan(right[place % 16], table, sizes, 0.5, 25.0),
        },
    }
    return {
        policy: {name: float(np.median(_times(run, runs))) for name, run in steps.items()}
        for policy, steps in parts.items()
    }


def _times(run: Callable[[int], Any], runs: int) -> np.ndarray[Any, Any]:
    """ms of every run, after a tenth as many that are not counted."""
    for place in range(runs // 10 + 1):
        run(place)
    times = np.empty(runs)
    for place in range(runs):
        begun = time.perf_counter()
        run(place)
        times[place] = 1e3 * (time.perf_counter() - begun)
    return times


def _interval(times: np.ndarray[Any, Any]) -> tuple[float, float]:
    """95 % bootstrap interval of the median, drawn from blocks, as neighbours are alike."""
    blocks = np.array_split(times, BLOCKS)
    draw = np.random.default_rng(0)
    medians = [
        np.median(np.concatenate([blocks[i] for i in draw.integers(0, BLOCKS, BLOCKS)]))
        for _ in range(500)
    ]
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def summary(rows: list[dict[str, Any]], parts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """All figures, and whether every policy reaches its goals."""
    goals = ", ".join(f"{ms:g} ms for {name} from {source}" for (name, source), ms in GOALS.items())
    return {
        "benchmark": "decision",
        "peer": "the OPA paper's decision",
        "quoted_ms": PAPER_MS,
        "rows": rows,
        "parts_ms": parts,
        "goal": f"a median of at most {goals}",
        "met": all_met([row["met"] for row in rows]),
    }


PAGE = """# How long a decision takes

`python benchmarks/decision.py --out docs/results/decision.md`, on {machine}, {threads} thread.

A decision for 100 images, 1,000 classes and 32 tails: `step` of the policy from the pioneer's raw
logits, and `decide` from the evidence that was read from them (`opa`: each image's confidences in
order; `opa_split`: a few numbers an image), 16 groups of random logits in turn. Brackets hold the
95 % bootstrap interval of the median.

{rows}

Goal: {goal}: **{verdict}**. For comparison, quoted and on another machine: the paper's decision
takes 18 ms.

{parts} A group's estimate takes few values, so `opa` remembers what the predictor said of them.
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    parts = {
        policy: ", ".join(f"{name} {ms:.3f} ms" for name, ms in steps.items())
        for policy, steps in report["parts_ms"].items()
    }
    values = report | {
        "machine": describe(report["machine"]),
        "rows": table(
            ("policy", "from", "runs", "median ms", "p99 ms", "goal", "the paper, times as long"),
            [_cells(row) for row in report["rows"]],
        ),
        "verdict": VERDICTS[report["met"]],
        "parts": " ".join(f"Of `{policy}`'s time: {steps}." for policy, steps in parts.items()),
    }
    return PAGE.format(**values)


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["interval"]
    return [
        row["policy"],
        row["from"],
        str(row["runs"]),
        f"{row['median_ms']:.3f} [{low:.3f}, {high:.3f}]",
        f"{row['p99_ms']:.3f}",
        f"≤ {row['goal']:g}: {VERDICTS[row['met']]}",
        f"{PAPER_MS / row['median_ms']:.0f}",
    ]


if __name__ == "__main__":
    main()
