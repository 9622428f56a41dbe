"""The whole report, as plain values for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.backends import backend, backend_names
from opa_trt.evaluate.compare.arms import arm_of
from opa_trt.evaluate.compare.cells import STREAM
from opa_trt.evaluate.compare.content import content
from opa_trt.evaluate.compare.differences import differences
from opa_trt.evaluate.compare.frontier import frontier_section
from opa_trt.evaluate.compare.goals import goals
from opa_trt.evaluate.compare.sections import Reader
from opa_trt.evaluate.surroundings import machine_facts
from opa_trt.runtime import Session
from opa_trt.tree import LOGITS

SCHEMA = 1


def tables(reader: Reader) -> dict[str, Any]:
    """All that follows from what was run: the report without what stands around it."""
    frontier = frontier_section(reader)
    return {
        "partial": reader.findings.partial,
        "seed": reader.settings.seed,
        "settings": reader.settings.to_dict(),
        "arms": [asdict(arm_of(name)) for name in reader.findings.arms],
        "left_out": dict(reader.findings.left_out),
        "loads": reader.load_rows(),
        "results": reader.results(),
        "means": reader.means(),
        "differences": differences(reader),
        "overhead": reader.overhead(),
        "group_sizes": reader.group_sizes(),
        "content": content(reader),
        "violations": reader.violations(),
        "frontier": frontier,
        "goals": goals(reader, frontier),
    }


def bundle_facts(
    session: Session, path: str, reader: Reader, backend: str, threads: int
) -> dict[str, Any]:
    """What was compared: the bundle and its nodes with logits, by MACs of their routes."""
    manifest, tree = session.manifest, session.tree
    tested = _tested(reader)
    nodes = []
    for node in tree.nodes.values():
        if LOGITS not in node.outputs:
            continue
        route = tree.route_to(node.name).nodes
        nodes.append(
            {
                "name": node.name,
                "system": node.system,
                "resolution": node.resolution,
                "macs": sum(tree[name].macs for name in route),
                "fit_accuracy": node.accuracy,
                "test_accuracy": reader.answers.accuracy(node.name, tested),
                "ms": session.route_ms(node.name, reader.settings.group_size),
            }
        )
    return {
        "path": path,
        "name": manifest.name,
        "digest": manifest.recipe_sha256,
        "backend": backend,
        "threads": threads,
        "max_batch": manifest.max_batch,
        "classes": len(manifest.classes),
        "nodes": sorted(nodes, key=lambda row: row["macs"]),
    }


def surroundings(backends: str) -> dict[str, Any]:
    """This machine, and the versions of the backends (``a+b``) that run there."""
    known = [name for name in backends.split("+") if name.partition(":")[0] in backend_names()]
    versions = {name: backend(name).availability().version for name in known}
    return machine_facts() | {"versions": versions}


def _tested(reader: Reader) -> npt.NDArray[np.int64]:
    """Rows of the pool that the stream shows; all of them where there was none."""
    shown = [draw.rows for cell in reader.findings.of(STREAM) for draw in cell.draws[: cell.groups]]
    return np.unique(np.concatenate(shown)) if shown else np.arange(len(reader.answers.labels))
