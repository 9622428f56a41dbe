"""From images and weights to calibrated, folded modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from opa_trt.builder.entries import Entry
from opa_trt.builder.exit_heads import learn_head, make_lesson
from opa_trt.builder.network import Pioneer, logits_macs, run_batches, walk
from opa_trt.builder.parts import Parts, above
from opa_trt.builder.stages.exits import train_exits
from opa_trt.builder.supernet_parts import SupernetParts
from opa_trt.builder.work import Finding
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.fold import parity


def data(parts: Parts) -> Finding:
    """What was loaded, and how it is split."""
    splits = parts.splits
    counts = {"train": len(splits.train), "fit": len(splits.fit), "test": len(splits.test)}
    skipped = f", {len(splits.skipped)} unreadable ones left out" if splits.skipped else ""
    line = (
        f"{counts['train']:,} to train and calibrate, {counts['fit']:,} to choose and fit, "
        f"{counts['test']:,} held out, {len(parts.classes)} classes{skipped}"
    )
    return Finding(line, {**counts, "skipped": [path.name for path in splits.skipped]})


def supernet(parts: SupernetParts) -> Finding:
    """The weights, and what they span."""
    space = parts.supernet.space
    weights = sum(parameter.numel() for parameter in parts.supernet.parameters())
    ends = [space.macs(space.smallest(space.resolutions[-1])), space.macs(space.largest())]
    line = (
        f"{parts.checkpoint.name}, {space.name} space, {weights / 1e6:.2f} M weights, "
        f"{ends[0] / 1e6:.1f} to {ends[1] / 1e6:.1f} M MACs"
    )
    return Finding(line, {"weights": weights, "macs": ends})


def pioneer(parts: SupernetParts) -> Finding:
    """For each entry, calibrate the first stages and train their exit head, distilled from the
    full network at its resolution."""
    facts: dict[str, dict[str, Any]] = {}
    arrays: dict[str, Any] = {}
    parts.progress.start("pioneer", len(parts.entries))
    for done, entry in enumerate(parts.entries, 1):
        made, facts[entry.name] = _pioneer(parts, entry)
        arrays |= above(entry.name, made)
        parts.progress.advance(done, entry.name)
    archs = " and ".join(str(entry.pioneer) for entry in parts.entries)
    macs = _range([row["macs"] / 1e6 for row in facts.values()], "{:.2f}")
    accuracy = _range([row["accuracy"] for row in facts.values()], "{:.1%}")
    line = f"stages 1 to {parts.cut.stages} ({archs}), {macs} M MACs, exit head {accuracy}"
    return Finding(line, {"entries": facts}, arrays)


def _pioneer(parts: SupernetParts, entry: Entry) -> tuple[Pioneer, dict[str, Any]]:
    """One entry's pioneer, and its MACs, channels and accuracy."""
    pools, trunk = parts.pools, parts.cut.trunk(entry.pioneer)
    calibrate(trunk, pools.calibration(entry.side, parts.recipe.calibrate.images))
    taught = make_lesson(parts.supernet, pools, entry.side)
    features = run_batches(trunk, taught.inputs)
    head = learn_head(parts.recipe, taught, features)
    facts = {
        "macs": parts.cut.trunk_macs(entry.pioneer) + logits_macs(head, features[0]),
        "channels": features[0].shape[1],
        "accuracy": _accuracy(parts, entry.side, nn.Sequential(trunk, head)),
    }
    return parts.assemble(trunk, head, entry.side), facts


@torch.no_grad()
def _accuracy(parts: SupernetParts, side: int, module: nn.Module) -> float:
    inputs, labels = parts.pools.choosing_inputs(side)
    logits = torch.cat(run_batches(module, inputs))
    return float((logits.argmax(1) == labels).float().mean())


def _range(values: list[float], form: str) -> str:
    """From the least to the most, or the one there is."""
    ends = dict.fromkeys(form.format(value) for value in (min(values), max(values)))
    return " to ".join(ends)


def calibrate_tails(parts: SupernetParts) -> Finding:
    """Batch norm of every tail, measured on its frozen pioneer's features, and of every complete
    sub-network; and exit heads along the largest tail, where the recipe has some."""
    arrays: dict[str, Any] = {}
    tail, seen, done = nn.Sequential(), 0, 0
    wholes = parts.deployment.whole
    parts.progress.start("calibrate", len(parts.deployment.tails) + len(wholes))
    for family in parts.families:
        inputs = parts.pools.calibration(family.entry.side, parts.recipe.calibrate.images)
        features = run_batches(parts.pioneers[family.entry.name].trunk, inputs)
        for name, arch in family.by_name.items():
            tail = parts.cut.calibrated_tail(arch, features)
            arrays |= above(name, tail)
            done += 1
            parts.progress.advance(done, name)
        seen = sum(len(batch) for batch in inputs)
    for name, arch in wholes.items():
        inputs = parts.pools.calibration(arch.resolution, parts.recipe.calibrate.images)
        network = parts.uncut.calibrated_tail(arch, inputs)
        arrays |= above(name, network)
        done += 1
        parts.progress.advance(done, name)
    exits, heads = train_exits(parts, tail)
    arrays |= heads
    more = f", exit heads of {' and '.join(exits)}" if exits else ""
    nodes = sum(len(family.nodes) for family in parts.families) + len(wholes)
    line = f"{seen:,} images, batch norm of {nodes} nodes{more}"
    facts = {"images": seen, "data": parts.splits.train.digest(), "exits": exits}
    return Finding(line, facts, arrays)


def fold_all(parts: Parts) -> Finding:
    """Batch norm folded away, each segment compared with what it was."""
    modules, folded = parts.modules, parts.folded
    found: dict[str, float] = {}
    for node, source, _ in walk(parts.covering, modules, parts.pools.example()):
        name = node.segment
        if name not in found:
            found[name] = parity(name, folded[name], modules[name], source)
    line = f"{len(found)} segments without batch norm, parity {max(found.values()):.0e}"
    return Finding(line, {"parity": found})
