"""Per-image results as one safetensors file, from which a comparison can be replayed.

``records.safetensors`` holds these arrays; N rows of the pool, G groups of n images, R runs of an
engine, T trials, C classes::

    meta                        uint8: JSON of names, settings, profiles and the cells' facts
    pool/label, source, condition   [N]     true class; row among the test images; place of
                                            meta's conditions
    node/NAME/answer            [N] int64   the class that a node with logits gives
    node/NAME/logits            [N, C]      of nodes that others follow
    trial/LOAD/SIZE/NAME        [T]         ms of the route that ends at a node, fitting images
    step/load, turn, node, images, ms [R]   every run of an engine, in order: turns count the groups
                                            answered under a load, -1 for trials; images are the
                                            rows that it ran on
    cell/K/rows                 [G, n]      rows of the pool
    cell/K/ARM/node             [G, n]      place of the node that answered
    cell/K/ARM/right            [G, n]      whether it was right
    cell/K/ARM/kind             [G]         answered by the entry, by one later node, by several
    cell/K/ARM/decisions, turn  [G]         how many were made; groups answered before, under a load
    cell/K/ARM/accuracy, ms, decision_ms, engines_ms, in_time   [G]
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from opa_trt.errors import DataError
from opa_trt.evaluate.compare.answers import Answers
from opa_trt.evaluate.compare.cells import Cell, Findings, Trials
from opa_trt.evaluate.compare.pool import Condition, Pool
from opa_trt.evaluate.compare.settings import Settings
from opa_trt.store import LatencyProfile

RECORDS = "records.safetensors"
VERSION = 1
STEP = {
    "load": np.int16, "turn": np.int32, "node": np.int16, "images": np.int32, "ms": np.float64,
}  # fmt: skip
PER_GROUP = ("accuracy", "ms", "decision_ms", "engines_ms", "in_time")
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """What a comparison left behind.

    Args:
        settings: of that comparison.
        nodes: names of the tree's nodes, in order.
        digest: of the bundle's recipe.
        backend: that ran the engines.
        threads: that they had.
        machine: where.
        split: which images were fitted, chosen and tested on.
        profiles: of every node, as the session had them.
        pool: without pixels.
        answers: of every node.
        trials: by load and group size.
        steps: ``load``, ``turn``, ``node``, ``images`` and ``ms`` ``[R]`` of every engine's run.
        overheads: by (load, group size, arm) ``[K, 4]``: ms of one decision, of the switch after
            it, the kind (``cells.STOPPED`` …), and the turn, in which they ascend.
    """

    settings: Settings
    nodes: tuple[str, ...]
    digest: str
    backend: str
    threads: int
    machine: Mapping[str, Any]
    split: Mapping[str, Any]
    profiles: dict[str, LatencyProfile]
    pool: Pool
    answers: Answers
    trials: dict[tuple[int, int], Trials]
    steps: Arrays
    overheads: dict[tuple[int, int, str], Any]


def pack(
    report: Mapping[str, Any],
    settings: Settings,
    profiles: Mapping[str, LatencyProfile],
    pool: Pool,
    answers: Answers,
    findings: Findings,
) -> bytes:
    """The file's bytes.

    Args:
        report: gives bundle, machine and split.
        settings: of the comparison.
        profiles: of every node.
        pool: what groups were drawn from.
        answers: of every node on it.
        findings: what was run.
    """
    arrays: Arrays = {
        "pool/label": pool.labels,
        "pool/source": pool.source,
        "pool/condition": pool.condition,
    }
    arrays |= {f"node/{name}/answer": given for name, given in answers.given.items()}
    arrays |= {f"node/{name}/logits": logits for name, logits in answers.logits.items()}
    for (under, size), trials in findings.trials.items():
        arrays |= {f"trial/{under}/{size}/{name}": ms for name, ms in trials.ms.items()}
    steps = list(zip(*findings.steps, strict=True)) or [()] * len(STEP)
    for (name, kind), values in zip(STEP.items(), steps, strict=True):
        arrays[f"step/{name}"] = np.array(values, dtype=kind)
    for place, cell in enumerate(findings.cells):
        arrays |= _cell_arrays(f"cell/{place}", cell, findings.entries)
    meta = {
        "version": VERSION,
        "settings": settings.to_dict(),
        "nodes": findings.nodes,
        "digest": report["bundle"]["digest"],
        "backend": report["bundle"]["backend"],
        "threads": report["bundle"]["threads"],
        "machine": report["machine"],
        "split": report["split"],
        "profiles": {name: profile.to_dict() for name, profile in profiles.items()},
        "conditions": [condition.pair for condition in pool.conditions],
        "scaled": pool.scaled,
        "cells": [_cell_facts(cell) for cell in findings.cells],
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()})


def _cell_facts(cell: Cell) -> dict[str, Any]:
    return {
        "phase": cell.phase,
        "load": cell.load,
        "deadline_ms": cell.deadline_ms,
        "judged": cell.judged,
        "size": cell.size,
        "arms": [*cell.taken],
    }


def _cell_arrays(prefix: str, cell: Cell, entries: Container[int]) -> Arrays:
    """As many groups as every arm has answered."""
    draws = cell.draws[: cell.groups]
    rows = [draw.rows for draw in draws]
    arrays: Arrays = {f"{prefix}/rows": np.array(rows, np.int64).reshape(len(rows), cell.size)}
    for arm, given in cell.taken.items():
        taken, key = given[: cell.groups], f"{prefix}/{arm}"
        shape = (len(taken), cell.size)
        arrays[f"{key}/node"] = np.array([each.node for each in taken], np.int16).reshape(shape)
        arrays[f"{key}/right"] = np.array([each.right for each in taken], bool).reshape(shape)
        kinds = [each.kind(entries) for each in taken]
        arrays[f"{key}/kind"] = np.array(kinds, dtype=np.int16)
        for name in ("decisions", "turn"):
            arrays[f"{key}/{name}"] = np.array([getattr(t, name) for t in taken], dtype=np.int32)
        for field in PER_GROUP:
            kind = bool if field == "in_time" else np.float64
            values = [getattr(each, field) for each in taken]
            arrays[f"{key}/{field}"] = np.array(values, dtype=kind)
    return arrays


def read_records(folder: Path) -> Records:
    """The records in a comparison's folder (or a ``records.safetensors`` itself).

    Raises:
        DataError: there are none, or they cannot be read.
    """
    path = folder / RECORDS if folder.is_dir() else folder
    if not path.is_file():
        message = f"{folder} has no {RECORDS}."
        raise DataError(message, expected="a folder that `opa-trt compare --out FOLDER` wrote.")
    try:
        arrays = load(path.read_bytes())
        meta = json.loads(bytes(arrays["meta"]))
        version = meta["version"]
        if version == VERSION:
            return _records(meta, arrays)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as exc:
        message = f"{path} cannot be read: {exc}."
        raise DataError(message, remedy="compare again.") from exc
    message = f"{path} has version {version}."
    raise DataError(message, expected=f"{VERSION}.", remedy="compare again.")


def _records(meta: Mapping[str, Any], arrays: Arrays) -> Records:
    labels = arrays["pool/label"]
    pool = Pool(
        pixels=np.zeros((len(labels), 0), np.uint8),
        labels=labels,
        source=arrays["pool/source"],
        condition=arrays["pool/condition"],
        conditions=tuple(Condition(family, severity) for family, severity in meta["conditions"]),
        scaled=bool(meta["scaled"]),
    )
    given = _under("node", "answer", arrays)
    answers = Answers(labels, given, _under("node", "logits", arrays))
    return Records(
        settings=Settings.from_dict(meta["settings"]),
        nodes=tuple(meta["nodes"]),
        digest=meta["digest"],
        backend=meta["backend"],
        threads=int(meta.get("threads", 0)),
        machine=meta["machine"],
        split=meta["split"],
        profiles={name: LatencyProfile.from_dict(v) for name, v in meta["profiles"].items()},
        pool=pool,
        answers=answers,
        trials=_trials(arrays),
        steps={name: arrays[f"step/{name}"] for name in STEP},
        overheads=_overheads(meta, arrays),
    )


def _under(prefix: str, suffix: str, arrays: Arrays) -> Arrays:
    """By what stands between prefix and suffix."""
    start, end = f"{prefix}/", f"/{suffix}"
    return {
        key.removeprefix(start).removesuffix(end): value
        for key, value in arrays.items()
        if key.startswith(start) and key.endswith(end)
    }


def _trials(arrays: Arrays) -> dict[tuple[int, int], Trials]:
    found: dict[tuple[int, int], Trials] = {}
    for key, ms in arrays.items():
        if key.startswith("trial/"):
            _, under, size, node = key.split("/", 3)
            found.setdefault((int(under), int(size)), Trials({})).ms[node] = ms
    return found


def _overheads(meta: Mapping[str, Any], arrays: Arrays) -> dict[tuple[int, int, str], Any]:
    """ms of a decision and a switch, kind and turn of each group, by load, group size and arm."""
    found: dict[tuple[int, int, str], list[Any]] = {}
    for place, cell in enumerate(meta["cells"]):
        for arm in cell["arms"]:
            key = f"cell/{place}/{arm}"
            decision, engines = arrays[f"{key}/decision_ms"], arrays[f"{key}/engines_ms"]
            switch = np.maximum(0.0, arrays[f"{key}/ms"] - decision - engines)
            more = (arrays[f"{key}/{name}"] for name in ("kind", "turn"))
            made = np.maximum(1, arrays[f"{key}/decisions"])
            rows = np.stack([decision / made, switch / made, *more], axis=1)
            found.setdefault((cell["load"], cell["size"], arm), []).append(rows)
    joined = {key: np.concatenate(parts) for key, parts in found.items()}
    return {key: rows for key, rows in joined.items() if len(rows)}
