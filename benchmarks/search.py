"""Evolutionary search against once-for-all's own finder, on the published Note10 tables.

Both search MobileNetV3 (width 1.2) with the published accuracy predictor for 100 generations of a
population of 100, in the order A B B A with a seed of its own for every pair.

    python benchmarks/search.py --ofa FOLDER --out docs/results/search.md
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import describe, in_pairs, interval, machine, met, publish, timed, wrapped
from published_finder import PublishedFinder
from threadpoolctl import threadpool_limits

from opa_trt.search.accuracy_predictor import read_accuracy
from opa_trt.search.breeder import Breeder, Settings
from opa_trt.search.evolution import evolve
from opa_trt.search.latency_table import read_latency
from opa_trt.search.problem import Problem, pose
from opa_trt.supernet import published_space

GENERATIONS = 100
GOAL = 30.0
Run = tuple[float, float]  # seconds and accuracy


def main() -> None:
    """Run the pairs and print what they gave."""
    options = _options()
    predictor, tables = options.ofa / "mbv3_accuracy_predictor.npz", options.ofa / "note10"
    problem = pose(
        published_space("mobilenet_v3", width=1.2), read_accuracy(predictor), read_latency(tables)
    )
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads), _silence():
        finder = PublishedFinder(predictor, tables)
        check_agreement(problem, finder)
        found = {t: compare(problem, finder, t, options.pairs) for t in options.targets}
    report = summary(found) | {"threads": options.threads}
    report["machine"] = machine("numpy", "torch", "opa-trt")
    publish(report, page(report), out=options.out, as_json=options.json)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The published finder prints as it goes."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ofa", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--targets", type=float, nargs="+", default=[20, 30], help="ms")
    parser.add_argument("--pairs", type=int, default=12, help="for each target")
    parser.add_argument("--threads", type=int, default=1, help="for either side")
    parser.add_argument("--out", type=Path, help="write the page here, too")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    return parser.parse_args()


def compare(problem: Problem, finder: PublishedFinder, target: float, pairs: int) -> list[Any]:
    """Pairs of (ours, theirs), each as (seconds, accuracy)."""

    def ours(seed: int) -> Run:
        def search() -> float:
            breeder = Breeder(problem, Settings(), np.random.default_rng(seed))
            return float(evolve(breeder, target, GENERATIONS).accuracy[0])

        return timed(search)

    def theirs(seed: int) -> Run:
        seconds, (accuracy, _) = timed(lambda: finder.search(target, GENERATIONS, seed))
        return seconds, accuracy

    ours(0)  # the first run of a process warms caches up; it is not counted
    return in_pairs(ours, theirs, pairs)


def check_agreement(problem: Problem, finder: PublishedFinder) -> None:
    """Both must predict the same accuracy and latency for the same archs."""
    for row in problem.genome.sample(20, np.random.default_rng(0)):
        arch = problem.genome.arch(row).to_ofa(problem.genome.space)
        accuracy = float(finder.accuracy.predict_accuracy([arch])[0])
        latency = finder.latency.predict_efficiency(arch)
        np.testing.assert_allclose(problem.accuracy(row[None])[0], accuracy, atol=1e-5)
        np.testing.assert_allclose(problem.cost(row[None])[0], latency, rtol=1e-9)


def summary(found: dict[float, list[Any]]) -> dict[str, Any]:
    """Seconds, ratio and accuracy of every target, and whether the goal is met at all of them."""
    targets = {str(target): _one_target(pairs) for target, pairs in found.items()}
    faster = [met(*t["ratio_interval"], GOAL) for t in targets.values()]
    as_good = [t["accuracy_gain_interval"][1] >= 0 for t in targets.values()]
    verdict = None if None in faster else all(faster)
    return {
        "benchmark": "search",
        "peer": "ofa.tutorial.EvolutionFinder 0.1.0.post202307202001",
        "generations": GENERATIONS,
        "targets": targets,
        "goal": f"{GOAL:g} times as fast at no lower predicted accuracy",
        "met": verdict and all(as_good),
    }


def _one_target(pairs: list[tuple[Run, Run]]) -> dict[str, Any]:
    ratio, *ratio_interval = interval([b[0] / a[0] for a, b in pairs])
    gain, *gain_interval = interval([a[1] - b[1] for a, b in pairs])
    return {
        "pairs": len(pairs),
        "our_seconds": float(np.median([a[0] for a, _ in pairs])),
        "their_seconds": float(np.median([b[0] for _, b in pairs])),
        "ratio": ratio,
        "ratio_interval": ratio_interval,
        "our_accuracy": float(np.mean([a[1] for a, _ in pairs])),
        "their_accuracy": float(np.mean([b[1] for _, b in pairs])),
        "accuracy_gain": gain,
        "accuracy_gain_interval": gain_interval,
    }


PAGE = """# Evolutionary search against the published finder

`python benchmarks/search.py --ofa FOLDER --out docs/results/search.md`, on {machine}.

{generations} generations of a population of 100 in the MobileNetV3 space of width 1.2, with the
published accuracy predictor and the published Samsung Note10 tables, {threads} thread on
either side. The peer is `{peer}` itself, run beside ours in the order A B B A; both predict the
same accuracy and latency for the same archs (checked before the run). Brackets hold 95 %
bootstrap intervals over the pairs.

| target | pairs | ours | published | times as fast | our accuracy | published | gain |
|---|---|---|---|---|---|---|---|
{rows}

Goal: {goal}: **{verdict}**. Accuracy is the predictor's, which runs 2 to 4 points above what is
measured.

Where the time goes: ours handles a generation as arrays (variation, latency, feasibility, codes),
never judges an arch twice, and leaves out children that a linear model of the archs judged lately
holds for hopeless. What remains is mostly the predictor's matrix products. The published finder
spends its time in Python, arch by arch.
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = "\n".join(_row(target, t) for target, t in report["targets"].items())
    verdict = {True: "met", False: "not met", None: "not resolved"}[report["met"]]
    values = report | {"machine": describe(report["machine"]), "rows": rows, "verdict": verdict}
    return wrapped(PAGE.format(**values))


def _row(target: str, t: dict[str, Any]) -> str:
    low, high = t["ratio_interval"]
    worse, better = t["accuracy_gain_interval"]
    cells = (
        f"{float(target):g} ms",
        str(t["pairs"]),
        f"{1e3 * t['our_seconds']:.0f} ms",
        f"{1e3 * t['their_seconds']:.0f} ms",
        f"{t['ratio']:.1f} [{low:.1f}, {high:.1f}]",
        f"{t['our_accuracy']:.4f}",
        f"{t['their_accuracy']:.4f}",
        f"{t['accuracy_gain']:+.4f} [{worse:+.4f}, {better:+.4f}]",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
