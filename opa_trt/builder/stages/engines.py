"""From folded modules to engines, and to what is known of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from opa_trt.builder import pooling
from opa_trt.builder.branches import Branch
from opa_trt.builder.compiling import Runner, compile_all
from opa_trt.builder.contest import Outcome
from opa_trt.builder.network import walk
from opa_trt.builder.parts import Parts, file_of
from opa_trt.builder.work import Finding
from opa_trt.supernet.fold import parity
from opa_trt.supernet.onnx_form import onnx_bytes
from opa_trt.supernet.pt2_form import pt2_bytes
from opa_trt.supernet.trace import content, trace, trace_bytes
from opa_trt.tree import BRANCHYNET, CASCADE, FEATURES, LOGITS, ONNX, PT2, TORCHSCRIPT


def trace_all(parts: Parts) -> Finding:
    """Every segment's portable forms; the trace is compared with its module."""
    blobs, contents, parities, features = {}, {}, {}, {}
    parts.progress.start("trace", len(parts.folded))
    for node, example, given in walk(parts.covering, parts.folded, parts.pools.example()):
        name, module = node.segment, parts.folded[node.segment]
        if name in contents:
            continue
        traced = trace(module, example)
        parities[name] = parity(name, traced, module, example)
        contents[name] = content(traced)
        blobs[file_of(name, TORCHSCRIPT)] = trace_bytes(traced)
        blobs[file_of(name, ONNX)] = onnx_bytes(module, example, node.source, node.outputs)
        if PT2 in parts.forms:
            largest = parts.recipe.compile.max_batch
            blobs[file_of(name, PT2)] = pt2_bytes(module, example, largest)
        if FEATURES in given:
            features[name] = list(given[FEATURES].shape[1:])
        parts.progress.advance(len(contents), name)
    size = sum(map(len, blobs.values())) / 1e6
    worst = max(parities.values())
    forms = f"{', '.join(parts.forms[:-1])} and {parts.forms[-1]}"
    line = f"{len(contents)} segments to {forms}, {size:.1f} MB, parity {worst:.0e}"
    facts = {"content": contents, "parity": parities, "features": features}
    return Finding(line, facts, blobs=blobs)


def compile_engines(parts: Parts) -> Finding:
    """Who runs what fastest, and the engines of that (and of all backends named), verified."""
    recipe = parts.recipe
    largest = recipe.compile.max_batch
    done = compile_all(
        parts.segments,
        parts.covering_references,
        recipe.compile,
        tuple(sorted({min(bucket, largest) for bucket in recipe.measure.buckets})),
        parts.threads,
        parts.clock,
        parts.progress,
        parts.telling,
    )
    outcome = done.outcome
    plan = {name: [asdict(row) for row in rows] for name, rows in outcome.plan.items()}
    facts = {
        "backend": outcome.best,
        "plan": plan,
        "engines": done.entries,
        "ms": outcome.ms,
        "refused": outcome.refused,
    }
    line = f"{_who(outcome, done.version)}, {len(done.entries)} engines, canary {done.worst:.0e}"
    return Finding(line, facts, blobs=done.blobs)


def _who(outcome: Outcome, version: str) -> str:
    """The backend that runs most, those that run the rest, and whom they were compared with."""
    tried = dict.fromkeys(k for rows in outcome.ms.values() for row in rows.values() for k in row)
    used = dict.fromkeys(row.backend for rows in outcome.plan.values() for row in rows)
    rest = [name for name in used if name != outcome.best]
    where = f", with {' and '.join(rest)} where faster" if rest else ""
    among = f" (fastest of {', '.join(tried)}{where})" if len(tried) > 1 else ""
    return f"{outcome.best} {version}{among}"


def measure_all(parts: Parts) -> Finding:
    """Latency of every engine, and what every node answers on the fitting and held-out images."""
    recipe, nodes = parts.recipe, parts.tree.nodes
    runner = Runner(parts.deployed, parts.compiled, parts.references, parts.store, parts.clock)
    latency = runner.profiles(recipe.measure.buckets, recipe.measure.seconds)
    read = [branch.entry.name for branch in parts.branches]
    read += [name for name, node in nodes.items() if node.system in (CASCADE, BRANCHYNET)]
    arrays: dict[str, Any] = {}
    for part, images in (("fit", parts.pools.fitting), ("test", parts.splits.test)):
        pixels, labels, condition = pooling.draw(
            images, parts.pools.source, recipe.fit.images, recipe.seed + 1
        )
        answers = runner.answers(pooling.as_input(pixels, recipe.data.float_images))
        arrays |= {
            f"{part}/condition": condition,
            **{f"{part}/right/{name}": a.argmax(1) == labels for name, a in answers.items()},
            **{f"{part}/logits/{name}": answers[name] for name in read},
        }
    runner.close()
    answering = [name for name, node in nodes.items() if LOGITS in node.outputs]
    accuracy = {name: float(arrays[f"fit/right/{name}"].mean()) for name in answering}
    told = [_told(branch, accuracy) for branch in parts.branches]
    line = f"{len(nodes)} nodes × {len(recipe.measure.buckets)} batch buckets; {'; '.join(told)}"
    return Finding(line, {"accuracy": accuracy, "latency": latency}, arrays)


def _told(branch: Branch, accuracy: dict[str, float]) -> str:
    """How often an entry, and the smallest and the largest of the answers below it are right."""
    entry, first, last = (
        accuracy[node.name] for node in (branch.entry, branch.ends[0], branch.ends[-1])
    )
    return f"{branch.entry.name} {entry:.1%}, tails {first:.1%} to {last:.1%}"
