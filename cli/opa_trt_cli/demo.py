"""``opa-trt demo``: build from the shipped digits, and watch a stream of hard and easy images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from opa_trt_cli import options

ARMS = (("static:smallest", "static-small"), ("static:largest", "static-large"), ("opa", "opa"))
FRACTIONS = (0.0, 0.45, 1.0)
GROUP_SIZE = 100


@click.command()
@click.option(
    "--out",
    type=options.PATH,
    default=Path("demo.opa"),
    show_default=True,
    metavar="FOLDER",
    help="The bundle.",
)
@click.option("--picture", type=options.PATH, metavar="FILE", help="A PNG; FOLDER's name.png.")
@click.option(
    "--groups", type=click.IntRange(min=5), default=100, show_default=True, help="A deadline."
)
@click.option("--backend", default="auto", show_default=True, help="One of `opa-trt doctor`.")
@options.threads
@options.as_json
def command(
    out: Path,
    picture: Path | None,
    groups: int,
    backend: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Build a bundle from the shipped digits and stream images of changing difficulty through it.

    \b
    opa-trt demo

    Each group of 100 images is answered by `opa` and by two static sub-networks, under three
    deadlines. Prints a table and saves a picture. Nothing is downloaded.
    """
    from dataclasses import replace

    import opa_trt
    from opa_trt.builder import build, read_recipe
    from opa_trt.builder.sources import load_splits
    from opa_trt.evaluate.picture import require_matplotlib
    from opa_trt.evaluate.stream import choose_deadlines, make_stream, run_arms
    from opa_trt_cli.console import StageLines, resumable

    require_matplotlib()
    begun = time.perf_counter()
    recipe = read_recipe("digits")
    chosen = replace(recipe.compile, backends=(backend,), threads=threads or 0)
    recipe = replace(recipe, compile=chosen)
    place = picture or out.with_suffix(".png")
    with (
        resumable("The same command goes on after the last finished stage."),
        StageLines(quiet=as_json) as lines,
    ):
        build(recipe, out, progress=lines)
        images = load_splits(recipe, None).test
        stream = make_stream(images, recipe.data.degradations, groups, GROUP_SIZE, recipe.seed)
        with opa_trt.load(out) as session:
            deadlines = choose_deadlines(session, GROUP_SIZE, FRACTIONS)
            lines.start("stream", len(deadlines) * groups)
            arms = run_arms(session, stream, ARMS, deadlines, lines)
            line = f"{groups} groups of {GROUP_SIZE} images × 3 deadlines × 3 policies"
            lines.finish("stream", line)
            _draw(place, stream, arms, session)
            nodes, name = list(session.tree.nodes), session.backend
    _tell(
        {
            "bundle": str(out),
            "backend": name,
            "groups": groups,
            "group_size": GROUP_SIZE,
            "nodes": nodes,
            "results": [arm.summary() for arm in arms],
            "routes": _routes(arms),
            "picture": str(place),
            "seconds": round(time.perf_counter() - begun, 1),
        },
        as_json,
    )


def _draw(place: Path, stream: Any, arms: Any, session: Any) -> None:
    from opa_trt.evaluate.picture import draw_stream

    title = f"digits on {session.backend}: content drifts, the deadline stays"
    draw_stream(place, stream, arms, list(session.tree.nodes), title)


def _routes(arms: Any) -> dict[str, float]:
    """Accuracy of the smallest and the largest route on the stream, whatever they took."""
    found = {}
    for label in ("static-small", "static-large"):
        arm = next(arm for arm in arms if arm.label == label)
        found[label] = sum(answer.accuracy for answer in arm.answers) / len(arm.answers)
    return found


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    from opa_trt_cli.console import say, say_json, say_table

    if as_json:
        say_json(facts)
        return
    say(
        f"\n{facts['groups']} groups of {facts['group_size']} images on {facts['backend']}, "
        "content drifting from clean to hard and back"
    )
    columns = [("deadline", "right"), ("policy", "left"), ("accuracy", "right")]
    columns += [("in time", "right"), ("right in time", "right")]
    columns += [("p50 ms", "right"), ("p99 ms", "right"), ("answered by", "left")]
    say_table(columns, (_row(result) for result in facts["results"]))
    spread = 100 * (facts["routes"]["static-large"] - facts["routes"]["static-small"])
    say(f"\nsmallest to largest route: {spread:.1f} points of accuracy on this stream")
    say(
        f"picture: {facts['picture']}      {facts['seconds']:.0f} s      "
        f'next: opa-trt show {facts["bundle"]} · README, "Your own network"'
    )


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    common = sorted(result["nodes"].items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count}" for name, count in common[:3])
    more = ", …" if len(common) > 3 else ""
    return (
        f"{result['deadline_ms']:g} ms",
        result["policy"],
        f"{result['accuracy']:.1%}",
        f"{result['deadlines_met']:.1%}",
        f"{result['in_time_accuracy']:.1%}",
        f"{result['p50_ms']:.2f}",
        f"{result['p99_ms']:.2f}",
        shown + more,
    )
