"""``opa-trt search run``: the best archs for many targets."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.search.answers import Answer
    from opa_trt.search.latency_table import LatencyTable
    from opa_trt.search.problem import Problem

NAMES = ("cold", "cold-equal", "top-down", "bottom-up", "joint", "dynamic-ofa")
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def _targets(ctx: click.Context, parameter: click.Parameter, text: str) -> list[float]:
    """``15,20,25`` or ``200M,0.3G``."""
    try:
        return [_number_of(part) for part in text.split(",")]
    except ValueError as exc:
        message = f"{text!r} is not a list of numbers such as 15,20,25 or 200M,300M."
        raise click.BadParameter(message) from exc


def _number_of(text: str) -> float:
    unit = text[-1:]
    return float(text[:-1]) * UNITS[unit] if unit in UNITS else float(text)


@click.command()
@options.space
@click.option("--accuracy", required=True, type=options.PATH, metavar="FILE", help="Predictor.")
@click.option(
    "--latency",
    required=True,
    metavar="FILE|DIR|macs",
    help="Latency table, a folder of published ones, or the word macs.",
)
@click.option(
    "--targets",
    required=True,
    callback=_targets,
    metavar="15,20,…",
    help="The most that each arch may cost: ms, or MACs (k, M, G).",
)
@click.option(
    "--strategy",
    type=click.Choice(NAMES),
    default="joint",
    show_default=True,
    help="How to search; see above.",
)
@click.option(
    "--generations",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="For the first target, or for each with cold.",
)
@click.option(
    "--further",
    type=click.IntRange(min=1),
    help="For each further target where a search begins warm; a fifth of --generations.",
)
@click.option(
    "--population",
    type=click.IntRange(min=4),
    default=100,
    show_default=True,
    help="Children a generation.",
)
@options.seed
@click.option(
    "--out",
    type=options.PATH,
    metavar="FOLDER",
    help="Write each arch there, as TARGET.json, for `opa-trt export --arch`.",
)
@options.as_json
def command(
    space: str | None,
    width: float | None,
    accuracy: Path,
    latency: str,
    targets: list[float],
    strategy: str,
    generations: int,
    further: int | None,
    population: int,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Find for every target the arch of highest predicted accuracy.

    \b
    opa-trt search run --accuracy acc.safetensors --latency latency.json --targets 15,20,30

    Predictors of ours know their space; with published ones name it:
    --space mobilenet_v3 --width 1.2.

    cold searches every target alone; cold-equal does so with the generations that the others have;
    top-down and bottom-up begin each search with the answer before; joint serves all targets with
    one population; dynamic-ofa finds the levels of Dynamic-OFA's look-up table.
    """
    import numpy as np

    from opa_trt.search.accuracy_predictor import read_accuracy
    from opa_trt.search.answers import Budget
    from opa_trt.search.breeder import Settings
    from opa_trt.search.problem import pose
    from opa_trt.search.strategies import STRATEGIES
    from opa_trt_cli.console import say_json

    predictor = read_accuracy(accuracy)
    table = _table(latency)
    chosen = options.chosen_space(
        space, width, predictor.space, None if table is None else table.space
    )
    problem = pose(chosen, predictor, table)
    problem.check(targets)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    # The products are small: more threads gain little, and lose much on a busy machine.
    with _one_thread():
        answers = STRATEGIES[strategy](
            problem,
            targets,
            Budget(generations, further or max(1, generations // 5)),
            Settings(population=population),
            np.random.default_rng(seed),
        )
    found = [_plain(answer, problem) for answer in answers]
    if out is not None:
        _write(out, found)
    if as_json:
        say_json(found)
    else:
        _show(answers, problem.unit)


def _table(latency: str) -> LatencyTable | None:
    """The latency table, or None for the word ``macs``."""
    from opa_trt.search.latency_table import read_latency

    return None if latency == "macs" else read_latency(Path(latency))


def _one_thread() -> AbstractContextManager[object]:
    """Limits BLAS to one thread; nothing where threadpoolctl (an extra) is not installed."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def _plain(answer: Answer, problem: Problem) -> dict[str, Any]:
    values = asdict(answer) | {"unit": problem.unit, "arch": answer.arch.to_dict()}
    values["space"] = problem.genome.space.to_dict()
    if problem.unit == "MACs":
        values |= {"target": int(answer.target), "latency": int(answer.latency)}
    return values


def _write(folder: Path, found: list[dict[str, Any]]) -> None:
    import json

    from opa_trt import atomic

    for answer in found:
        name = f"{answer['target']:.10g}" if answer["unit"] == "ms" else str(answer["target"])
        atomic.write_text(folder / f"{name}{answer['unit']}.json", json.dumps(answer, indent=2))


def _number(value: float, unit: str) -> str:
    return f"{value:,.0f}" if unit == "MACs" else f"{value:.4g}"


def _show(answers: list[Answer], unit: str) -> None:
    from opa_trt_cli.console import say, say_table

    columns = [(f"target {unit}", "right"), (unit, "right"), ("accuracy", "right")]
    columns += [("seconds", "right"), ("arch", "left")]
    rows = [
        (
            _number(answer.target, unit),
            _number(answer.latency, unit),
            f"{100 * answer.accuracy:.2f}%",
            f"{answer.seconds:.2f}",
            str(answer.arch),
        )
        for answer in answers
    ]
    say_table(columns, rows)
    say()
    say("accuracy is predicted: measure what you deploy (opa-trt build, opa-trt export)")
