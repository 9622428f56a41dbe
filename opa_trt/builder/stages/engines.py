"""From folded modules to engines, and to what is known of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from opa_trt.builder import pooling
from opa_trt.builder.compiling import References, Runner, compile_all
from opa_trt.builder.contest import Outcome
from opa_trt.builder.deployment import PIONEER
from opa_trt.builder.fit import (
    Records,
    draw_groups,
    fit_estimator,
    fit_predictor,
    fit_rightness,
    report,
)
from opa_trt.builder.network import walk
from opa_trt.builder.parts import Parts, file_of
from opa_trt.builder.rightness_report import report_rightness
from opa_trt.builder.work import Finding
from opa_trt.policies import Knowledge
from opa_trt.supernet.fold import parity
from opa_trt.supernet.onnx_form import onnx_bytes
from opa_trt.supernet.pt2_form import pt2_bytes
from opa_trt.supernet.trace import content, trace, trace_bytes
from opa_trt.tree import BRANCHYNET, CASCADE, FEATURES, ONNX, PT2, TORCHSCRIPT

LEAST_HELD_OUT_GROUPS = 50


def trace_all(parts: Parts) -> Finding:
    """Every segment's portable forms; the trace is compared with its module."""
    blobs, contents, parities, features = {}, {}, {}, {}
    parts.progress.start("trace", len(parts.folded))
    for node, example, given in walk(parts.tree, parts.folded, parts.example()):
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
        References(parts.tree, parts.canary),
        recipe.compile,
        tuple(sorted({min(bucket, largest) for bucket in recipe.measure.buckets})),
        parts.threads,
        parts.clock,
        parts.progress,
        (PIONEER, parts.tail_names[-1]),
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
    compiled, references = parts.found["compile"], References(parts.tree, parts.canary)
    runner = Runner(parts.segments, compiled, references, parts.store, parts.clock)
    latency = runner.profiles(recipe.measure.buckets, recipe.measure.seconds)
    chained = [name for name, node in nodes.items() if node.system in (CASCADE, BRANCHYNET)]
    arrays: dict[str, Any] = {}
    for part, images in (("fit", parts.fitting), ("test", parts.splits.test)):
        pixels, labels, condition = pooling.draw(
            images, parts.source, recipe.fit.images, recipe.seed + 1
        )
        answers = runner.answers(pooling.as_input(pixels, recipe.data.float_images))
        arrays |= {
            f"{part}/condition": condition,
            f"{part}/logits": answers[PIONEER],
            **{f"{part}/right/{name}": a.argmax(1) == labels for name, a in answers.items()},
            **{f"{part}/logits/{name}": answers[name] for name in chained},
        }
    runner.close()
    accuracy = {name: float(arrays[f"fit/right/{name}"].mean()) for name in nodes}
    first, last = accuracy[parts.tail_names[0]], accuracy[parts.tail_names[-1]]
    line = (
        f"{len(nodes)} nodes × {len(recipe.measure.buckets)} batch buckets; "
        f"pioneer {accuracy[PIONEER]:.1%}, tails {first:.1%} to {last:.1%}"
    )
    return Finding(line, {"accuracy": accuracy, "latency": latency}, arrays)


def fit(parts: Parts) -> Finding:
    """What policies know, and how well it does on images that nothing was fitted on."""
    wanted, seed = parts.recipe.fit, parts.recipe.seed
    codes = np.stack([parts.supernet.space.encode(arch) for arch in parts.archs])
    fitting, held_out = _records(parts, "fit"), _records(parts, "test")
    estimator = fit_estimator(fitting, PIONEER)
    names, size = parts.tail_names, wanted.group_size
    groups = draw_groups(fitting, names, estimator, groups=wanted.groups, size=size, seed=seed)
    predictor = fit_predictor(groups, codes, seed=seed)
    count = max(LEAST_HELD_OUT_GROUPS, wanted.groups // 4)
    others = draw_groups(held_out, names, estimator, groups=count, size=size, seed=seed + 1)
    rightness = fit_rightness(fitting, PIONEER, seed=seed)
    macs = {name: parts.cut.tail_macs(a) for name, a in zip(names, parts.archs, strict=True)}
    trusted = report_rightness(rightness, fitting, held_out, macs)
    facts = report(estimator, predictor, held_out, others, codes, PIONEER)
    facts["rightness"] = trusted
    line = (
        f"held out: estimator {facts['judgement']:.1%} right "
        f"(always the commoner: {facts['judgement_base']:.1%}), "
        f"predictor RMSE {facts['rmse']:.3f}, R² {facts['r2']:.2f}, "
        f"an image's rightness log loss {trusted['log_loss']:.3f} "
        f"(always the rate: {trusted['log_loss_base']:.3f}), {100 * trusted['gain']:+.1f} points "
        "image by image at equal MACs"
    )
    knowledge = Knowledge(estimator, predictor, {}, {PIONEER: rightness})
    return Finding(line, facts, knowledge.to_arrays())


def _records(parts: Parts, part: str) -> Records:
    arrays = parts.found["measure"].arrays
    return Records(
        arrays[f"{part}/logits"],
        {name: arrays[f"{part}/right/{name}"] for name in parts.nodes},
        arrays[f"{part}/condition"],
    )
