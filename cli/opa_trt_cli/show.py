"""``opa-trt show``: what is in a bundle."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from opa_trt_cli import options


@click.command()
@click.argument("bundle", type=options.PATH)
@click.option("--verify", is_flag=True, help="Run every engine against its canary as well.")
@options.untrusted
@options.as_json
def command(bundle: Path, verify: bool, untrusted: bool, as_json: bool) -> None:
    """Show what is in BUNDLE. Every file's size and sha256 are checked in any case.

    Without --verify nothing of it is run.

    \b
    opa-trt show digits.opa --verify
    """
    from opa_trt.bundle import Bundle
    from opa_trt_cli.console import say_json

    opened = Bundle(bundle)
    verified = _verify(opened, not untrusted) if verify else None
    if as_json:
        say_json(_facts(opened, verified))
    else:
        _print(opened, verified)


def _verify(opened: Any, trusted: bool) -> list[dict[str, Any]]:
    """Every node on every backend that the bundle has engines for, and on the portable form's own;
    on all that run no code of it, where it is not trusted.

    Raises:
        ParityError: an engine that the bundle brought along, or compiled here, is wrong.
        UntrustedForm: nothing here runs it without its code, and it is not trusted.
    """
    from opa_trt.backends import backend, backend_names
    from opa_trt.errors import UntrustedForm

    brought = {engine.target.backend for engine in opened.manifest.engines} | {"torchscript"}
    wanted = [name for name in backend_names() if name in brought or not trusted]
    vendors = [
        vendor
        for vendor in map(backend, wanted)
        if vendor.availability() and vendor.tolerance is not None
        if trusted or not vendor.executes_code
    ]
    if not vendors:
        message = "no backend here runs a bundle without its code."
        raise UntrustedForm(message, remedy="install openvino or onnxruntime (`opa-trt doctor`).")
    return [_verify_on(opened, vendor, trusted) for vendor in vendors]


def _verify_on(opened: Any, vendor: Any, trusted: bool) -> dict[str, Any]:
    from opa_trt.runtime import open_loader

    loader = open_loader(opened, backend=vendor, trusted=trusted, strict=True)
    engines = loader.engines()
    for engine in engines.values():
        engine.close()
    return {
        "backend": vendor.label,
        "largest_difference": max(loader.differences.values()),
        "tolerance": vendor.tolerance,
        "nodes": loader.differences,
    }


def _facts(opened: Any, verified: list[dict[str, Any]] | None) -> dict[str, Any]:
    manifest = opened.manifest
    return {
        "bundle": str(opened.path),
        "name": manifest.name,
        "version": manifest.version,
        "classes": list(manifest.classes),
        "images": {"size": manifest.images.size, "dtype": manifest.images.dtype},
        "backend": manifest.backend,
        "plan": {name: [asdict(e) for e in rows] for name, rows in manifest.plan.items()},
        "contest_ms": manifest.report.get("compile", {}).get("ms", {}),
        "engines": [
            {"segment": e.segment, "backend": e.target.backend, "version": e.target.version}
            for e in manifest.engines
        ],
        "nodes": [
            {
                "name": n.name,
                "system": n.system,
                "resolution": n.resolution,
                "macs": n.macs,
                "accuracy": n.accuracy,
                "successors": n.successors,
            }
            for n in manifest.nodes
        ],
        "systems": _systems(opened.tree),
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "report": manifest.report,
        "verified": verified,
    }


def _systems(tree: Any) -> dict[str, int]:
    """How many ways to logits every deployed system has."""
    return dict(Counter(tree[route.entry].system for route in tree.routes()))


def _print(opened: Any, verified: list[dict[str, Any]] | None) -> None:
    from opa_trt_cli.console import say, say_table

    manifest = opened.manifest
    size = sum(entry.size for entry in manifest.files.values())
    engines = sorted({f"{e.target.backend} {e.target.version}" for e in manifest.engines})
    say(f"{opened.path}: {manifest.name}, built by opa-trt {manifest.version}")
    say(f"{len(manifest.files) + 1} files, {size / 1e6:.1f} MB, all with the right sha256")
    images = manifest.images
    say(f"images {images.size}×{images.size} {images.dtype}, {len(manifest.classes)} classes")
    sides = sorted({node.resolution for node in manifest.nodes if node.resolution})
    if len(sides) > 1:
        say(f"networks at {', '.join(map(str, sides[:-1]))} and {sides[-1]} px")
    say(f"engines for {', '.join(engines)}, batches 1 to {manifest.max_batch}")
    forms = sorted({form for entry in manifest.segments.values() for form in entry.forms})
    say(f"portable forms: {', '.join(forms)}")
    systems = _systems(opened.tree).items()
    say(f"systems: {', '.join(f'{name} ({count} routes)' for name, count in systems)}\n")
    largest = manifest.buckets[-1]
    latency = manifest.report.get("measure", {}).get("latency", {})
    say_table(
        (
            ("route", "left"),
            ("px", "right"),
            ("M MACs", "right"),
            ("accuracy", "right"),
            (f"p50 ms, batch {largest}", "right"),
        ),
        (_route(opened, route, latency) for route in opened.tree.routes()),
    )
    say()
    _print_plan(manifest)
    for stage, found in manifest.report.items():
        say(f" {stage:<10} {found.get('line', '')}")
    for found in verified or ():
        say(
            f"\nverified on {found['backend']}: {len(found['nodes'])} engines agree with "
            f"their canaries, largest difference {found['largest_difference']:.0e}"
        )


def _print_plan(manifest: Any) -> None:
    """Who runs which segment at which batch sizes, and what the build measured of each backend."""
    from opa_trt_cli.console import say, say_table

    found = manifest.report.get("compile", {}).get("ms", {})
    ms = {name: rows for name, rows in found.items() if name in manifest.plan}  # that were kept
    tried = dict.fromkeys(k for rows in ms.values() for row in rows.values() for k in row)
    if not tried:
        return
    columns = [("segment", "left"), ("batch", "right"), ("run by", "left")]
    columns += [(f"{label} ms", "right") for label in tried]
    say("the build's contest, median ms of each backend:")
    say_table(
        columns,
        (
            (name, batch, _chosen(manifest.plan[name], int(batch)), *_figures(row, tried))
            for name, rows in ms.items()
            for batch, row in rows.items()
        ),
    )
    say()


def _chosen(entries: Any, batch: int) -> str:
    return str(next(entry.backend for entry in entries if batch <= entry.max_batch))


def _figures(row: dict[str, float], labels: Any) -> tuple[str, ...]:
    return tuple(f"{row[label]:.2f}" if label in row else "" for label in labels)


def _route(opened: Any, route: Any, latency: dict[str, Any]) -> tuple[str, ...]:
    nodes = [opened.tree[name] for name in route.nodes]
    known = all(node.name in latency for node in nodes)
    ms = f"{sum(latency[node.name]['ms'][-1][0] for node in nodes):.2f}" if known else ""
    macs = sum(node.macs for node in nodes) / 1e6
    side = str(nodes[0].resolution or "")
    return str(route), side, f"{macs:.2f}", f"{nodes[-1].accuracy:.1%}", ms
