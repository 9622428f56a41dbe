"""``opa-trt compare``: every policy on the same engines, images and load."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.bundle import Bundle
    from opa_trt.evaluate.compare import Comparison, Settings
    from opa_trt.progress import Progress

NONE = "none"
LIVE = ("data", "skip_bad_images", "images", "kind", "backend", "threads")  # not of a replay


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them.

    Args:
        kind: ``int`` or ``float``.
    """

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The numbers; click.BadParameter where one is none."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(each) for each in str(value).split(","))
        except ValueError:
            what = "whole numbers" if self._kind is int else "numbers"
            self.fail(f"{value!r} is no list of {what}, as 1,2,50.", param, ctx)


@click.command()
@click.argument("bundle", type=options.PATH)
@options.data
@click.option(
    "--deadlines",
    type=Numbers(float),
    metavar="MS,…",
    help="For every load. By default chosen by what routes take under it.",
)
@click.option(
    "--load",
    "loads",
    type=Numbers(int),
    metavar="N,…",
    help="Background applications at once.  [default: 0,1,2]",
)
@click.option(
    "--group-sizes",
    type=Numbers(int),
    metavar="N,…",
    help="To compare, without load.  [default: 1,2,50,100,150,200,500]",
)
@click.option(
    "--group-size", type=click.IntRange(min=2), metavar="N", help="Of all else.  [default: 100]"
)
@click.option(
    "--groups",
    type=click.IntRange(min=2),
    metavar="N",
    help="Under each load and deadline.  [default: 200]",
)
@click.option(
    "--families",
    metavar="NAME,…",
    help="Degradations that the content drifts through, or none. By default the recipe's.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows that groups are drawn from, at most.  [default: 4000]",
)
@click.option(
    "--kind",
    type=click.Choice(("cpu", "cuda")),
    default="cpu",
    show_default=True,
    help="What applications load.",
)
@click.option("--backend", default="auto", show_default=True, help="One of `opa-trt doctor`.")
@options.threads
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="Of every draw.  [default: 0]"
)
@click.option(
    "--replay",
    "replayed",
    type=options.PATH,
    metavar="FOLDER",
    help="Compute it from the records of an earlier comparison; no engine runs.",
)
@click.option("--out", type=options.PATH, metavar="FOLDER", help="A new one; BUNDLE-compare.")
@options.as_json
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    data: Path | None,
    skip_bad_images: bool,
    deadlines: tuple[float, ...] | None,
    loads: tuple[int, ...] | None,
    group_sizes: tuple[int, ...] | None,
    group_size: int | None,
    groups: int | None,
    families: str | None,
    images: int | None,
    kind: str,
    backend: str,
    threads: int | None,
    seed: int | None,
    replayed: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare every policy on BUNDLE: accuracy in time, by deadline, load, content and group size.

    \b
    opa-trt compare digits.opa --load 0,2 --out comparison

    Policies, baselines, oracles and chance answer the same groups on the same engines, in turns.
    The folder gets compare.json, groups.csv, records.safetensors and a page, index.html. Stopped
    with Ctrl-C, it keeps what is finished and says that it is partial.
    """
    from opa_trt.bundle import Bundle
    from opa_trt.evaluate.compare import check_new, write
    from opa_trt_cli.console import StageLines

    if replayed is not None:
        _refuse_unused(context)
    place = out or Path(f"{bundle.stem or bundle.name}-compare")
    check_new(place)
    begun = time.perf_counter()
    wanted: dict[str, Any] = {
        "deadlines": deadlines,
        "loads": loads,
        "group_sizes": group_sizes,
        "group_size": group_size,
        "groups": groups,
        "families": _families(families),
        "images": images,
        "seed": seed,
    }
    given = {key: value for key, value in wanted.items() if value is not None}
    opened = Bundle(bundle)
    with StageLines(quiet=as_json) as lines:
        if replayed is not None:
            found = _replay(opened, replayed, given, lines)
        else:
            source = (data, skip_bad_images)
            found = _live(opened, source, given, (backend, threads, kind), lines)
    if found.report["partial"] and not found.report["results"]:
        raise KeyboardInterrupt
    found.report["seconds"] = round(time.perf_counter() - begun, 1)
    no_page = write(found, place)
    _tell(found.report, place, no_page, as_json)


def _refuse_unused(context: click.Context) -> None:
    """What says how engines run has no meaning where none does."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in LIVE
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if given:
        message = f"--replay runs no engines: {', '.join(given)} would say nothing."
        raise click.UsageError(message, context)


def _families(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return () if text == NONE else tuple(text.split(","))


def _replay(opened: Bundle, folder: Path, given: dict[str, Any], lines: Progress) -> Comparison:
    """With the recorded settings, but for those that are named."""
    from dataclasses import replace

    from opa_trt.evaluate.compare import read_records, replay

    records = read_records(folder)
    settings = replace(records.settings, **given)
    return replay(
        opened, records, settings, path=str(opened.path), origin=str(folder), progress=lines
    )


def _live(
    opened: Bundle,
    source: tuple[Path | None, bool],
    given: dict[str, Any],
    engines: tuple[str, int | None, str],
    lines: Progress,
) -> Comparison:
    import opa_trt
    from opa_trt.clock import MonotonicClock
    from opa_trt.evaluate.compare import compare, on_the_cpu, on_the_gpu, read_data
    from opa_trt.runtime.session import read_knowledge

    (folder, skip), (backend, threads, kind) = source, engines
    settings = _settings(opened, given)
    data = read_data(opened.manifest, folder, skip_bad_images=skip, progress=lines)
    clock = MonotonicClock()
    with opa_trt.load(opened.path, backend=backend, threads=threads, clock=clock) as session:
        return compare(
            session,
            read_knowledge(opened),
            data,
            settings,
            clock,
            path=str(opened.path),
            background=on_the_gpu if kind == "cuda" else on_the_cpu,
            progress=lines,
        )


def _settings(opened: Bundle, given: dict[str, Any]) -> Settings:
    from opa_trt.evaluate.compare import Settings

    recipe = opened.manifest.recipe.get("data", {})
    families = tuple(recipe.get("degradations", ()))
    return Settings(**{"families": families, **given})


def _tell(report: dict[str, Any], place: Path, no_page: str, as_json: bool) -> None:
    """What was found, and where it is; exit status 130 where it was interrupted."""
    from opa_trt_cli.compare_tables import say_report
    from opa_trt_cli.console import INTERRUPTED, say, say_json

    if as_json:
        say_json({"out": str(place), **report})
    else:
        say_report(report)
        say(f"\n{place}: compare.json, groups.csv, records.safetensors")
        say(f"no page: {no_page}" if no_page else f"page: {place / 'index.html'}")
    if report["partial"]:
        say(f"Interrupted. What was finished is in {place}, marked as partial.", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
