"""``opa-trt run``: a bundle answers a folder of images under a deadline."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from opa_trt_cli import options


@click.command()
@click.argument("bundle", type=options.PATH)
@click.argument("images", type=options.PATH)
@click.option("--deadline-ms", type=float, required=True, help="For each group, in ms.")
@click.option(
    "--policy",
    default="opa",
    show_default=True,
    help="opa, opa_split, static:NODE (or smallest, largest), dynamic_ofa, …",
)
@click.option("--backend", default="auto", show_default=True, help="One of `opa-trt doctor`.")
@click.option(
    "--group", type=click.IntRange(min=1), default=100, show_default=True, help="Images a group."
)
@click.option(
    "--promise",
    type=float,
    default=0.99,
    show_default=True,
    help="Share of deadlines to be met, 0.5 to 0.995: a lower one dares more.",
)
@click.option("--skip-bad-images", is_flag=True, help="Leave out images that cannot be decoded.")
@click.option("--csv", "as_csv", is_flag=True, help="Predictions as CSV on stdout.")
@click.option("--explain", is_flag=True, help="Say of each group what was seen and why.")
@options.untrusted
@options.threads
@options.as_json
def command(
    bundle: Path,
    images: Path,
    deadline_ms: float,
    policy: str,
    backend: str,
    group: int,
    promise: float,
    skip_bad_images: bool,
    as_csv: bool,
    explain: bool,
    untrusted: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Answer every picture below the folder IMAGES (or one picture) with BUNDLE.

    \b
    opa-trt run digits.opa photos/ --deadline-ms 20 --csv > answers.csv

    Where folders are named after classes, accuracy is told as well.
    """
    import opa_trt
    from opa_trt_cli.console import say_json

    if as_csv and as_json:
        message = "--csv and --json exclude each other."
        raise click.UsageError(message)
    with opa_trt.load(
        bundle,
        policy=policy,
        backend=backend,
        threads=threads,
        trusted=not untrusted,
        promise=promise,
    ) as session:
        paths, pixels = _read(images, session, skip_bad_images)
        results = []
        for result in session.stream(pixels, group, deadline_ms):
            results.append(result)
            if explain and not as_json:
                _explain(len(results), sum(len(one.labels) for one in results), result)
        rows = _rows(paths, results, session.manifest.classes)
    summary = _summary(results, rows, deadline_ms, policy)
    if as_json:
        told = {"groups": [result.facts() for result in results]} if explain else {}
        say_json({"summary": summary, **told, "predictions": rows})
    else:
        _write(rows, summary, as_csv)


def _explain(number: int, images: int, result: Any) -> None:
    """On stderr, so that predictions can be piped."""
    from opa_trt_cli.console import say

    first = images - len(result.labels) + 1
    which = f"images {first} to {images}" if first < images else f"image {images}"
    say(f"Group {number}, {which}: {result.explain()}", err=True)
    say(err=True)


def _read(images: Path, session: Any, skip: bool) -> tuple[list[Path], Any]:
    from opa_trt.errors import DataError
    from opa_trt.training.data import read_images
    from opa_trt.training.folder import image_files
    from opa_trt_cli.console import say

    found = [images] if images.is_file() else image_files(images)
    if not found:
        message = f"{images} has no pictures."
        raise DataError(message, expected="files named *.jpg, *.png, *.bmp or *.webp.")
    spec = session.manifest.images
    pixels, kept, bad = read_images(found, spec.size, skip_bad_images=skip)
    for path in bad:
        say(f"left out: {path} cannot be decoded", err=True)
    if not kept:
        message = f"{images} has no picture that can be decoded."
        raise DataError(message, expected="at least one.")
    scaled = pixels if spec.dtype == "uint8" else (pixels / 255).astype(np.float32)
    return list(kept), scaled


def _rows(paths: list[Path], results: list[Any], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    from opa_trt.policies.evidence import confidences

    rows: list[dict[str, Any]] = []
    for index, result in enumerate(results):
        sure = confidences(result.logits).max(axis=1)
        for i, label in enumerate(result.labels):
            path = paths[len(rows)]
            truth = path.parent.name if path.parent.name in classes else None
            rows.append(
                {
                    "file": str(path),
                    "answer": classes[label],
                    "confidence": round(float(sure[i]), 4),
                    "node": str(result.nodes[i]),
                    "group": index,
                    "truth": truth,
                }
            )
    return rows


def _summary(
    results: list[Any], rows: list[dict[str, Any]], deadline_ms: float, policy: str
) -> dict[str, Any]:
    ms = [result.measured_ms for result in results]
    known = [row for row in rows if row["truth"] is not None]
    nodes, counts = np.unique([row["node"] for row in rows], return_counts=True)
    return {
        "images": len(rows),
        "groups": len(results),
        "policy": policy,
        "deadline_ms": deadline_ms,
        "deadlines_met": float(np.mean([result.deadline_met for result in results])),
        "p50_ms": float(np.quantile(ms, 0.5)),
        "p99_ms": float(np.quantile(ms, 0.99)),
        "nodes": dict(zip(nodes.tolist(), counts.tolist(), strict=True)),
        "accuracy": float(np.mean([r["answer"] == r["truth"] for r in known])) if known else None,
    }


def _write(rows: list[dict[str, Any]], summary: dict[str, Any], as_csv: bool) -> None:
    from opa_trt_cli.console import say, say_table

    if as_csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        say_table(
            (("file", "left"), ("answer", "left"), ("confidence", "right"), ("node", "left")),
            ((r["file"], r["answer"], f"{r['confidence']:.1%}", r["node"]) for r in rows),
        )
        say()
    accuracy = "" if summary["accuracy"] is None else f", {summary['accuracy']:.1%} right"
    groups = f"{summary['groups']} group{'s' if summary['groups'] > 1 else ''}"
    answered = ", ".join(f"{count} by {name}" for name, count in summary["nodes"].items())
    say(
        f"{summary['images']} images in {groups} ({answered}){accuracy}; "
        f"{summary['deadlines_met']:.1%} of deadlines of {summary['deadline_ms']:g} ms met, "
        f"p50 {summary['p50_ms']:.2f} ms, p99 {summary['p99_ms']:.2f} ms",
        err=as_csv,
    )
