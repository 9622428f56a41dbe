"""From images and weights to calibrated, folded modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from opa_trt.builder.network import logits_macs, run_batches, walk
from opa_trt.builder.parts import Parts
from opa_trt.builder.picks import Setting, try_picks
from opa_trt.builder.stages.exits import (
    CANDIDATE_CALIBRATION,
    learn_head,
    lesson,
    train_exits,
)
from opa_trt.builder.tails import Trials, candidates, choose, pareto_layers
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


def supernet(parts: Parts) -> Finding:
    """The weights, and what they span."""
    space = parts.supernet.space
    weights = sum(parameter.numel() for parameter in parts.supernet.parameters())
    ends = [space.macs(space.smallest(space.resolutions[-1])), space.macs(space.largest())]
    line = (
        f"{parts.checkpoint.name}, {space.name} space, {weights / 1e6:.2f} M weights, "
        f"{ends[0] / 1e6:.1f} to {ends[1] / 1e6:.1f} M MACs"
    )
    return Finding(line, {"weights": weights, "macs": ends})


def pioneer(parts: Parts) -> Finding:
    """Calibrate the first stages and train their exit head, distilled from the full network."""
    recipe, cut = parts.recipe, parts.cut
    trunk = cut.trunk(parts.pioneer_arch)
    calibrate(trunk, parts.calibration(recipe.calibrate.images))
    taught = lesson(parts)
    features = run_batches(trunk, taught.inputs)
    head = learn_head(parts, taught, features)
    macs = cut.trunk_macs(parts.pioneer_arch) + logits_macs(head, features[0])
    accuracy = _accuracy(parts, nn.Sequential(trunk, head))
    line = (
        f"stages 1 to {cut.stages} ({parts.pioneer_arch}), {macs / 1e6:.2f} M MACs, "
        f"exit head {accuracy:.1%}"
    )
    state = parts.assemble(trunk, head).state_dict()
    facts = {"macs": macs, "channels": features[0].shape[1], "accuracy": accuracy}
    return Finding(line, facts, {key: value.numpy() for key, value in state.items()})


@torch.no_grad()
def _accuracy(parts: Parts, module: nn.Module) -> float:
    inputs, labels = parts.choosing_inputs
    logits = torch.cat(run_batches(module, inputs))
    return float((logits.argmax(1) == labels).float().mean())


def tails(parts: Parts) -> Finding:
    """Measure tails over the frozen pioneer, and keep those that a search would pick.

    One half is spread evenly over MACs; the other is what the online search takes by a predictor
    fitted to the first. Kept are those most often the best, then the Pareto front.
    """
    recipe, cut, trunk = parts.recipe, parts.cut, parts.pioneer.trunk
    asked = recipe.tails.candidates
    inputs, labels = parts.choosing_inputs
    calibration = run_batches(trunk, parts.calibration(CANDIDATE_CALIBRATION))
    features = run_batches(trunk, inputs)
    parts.progress.start("tails", asked)
    trials = Trials(cut, calibration, features, labels, parts.progress)
    trials.measure(candidates(cut, parts.pioneer_arch, asked - asked // 2, recipe.seed))
    spread = len(trials.archs)
    picks = try_picks(trials, _setting(parts, features), asked - spread)
    archs, macs, accuracy = trials.archs, trials.macs, trials.accuracy
    chosen = choose(macs, accuracy, recipe.tails.count, picks)
    layers = pareto_layers(macs, accuracy)
    searched = sum(i >= spread for i in chosen)
    front = sum(layers[i] == 0 for i in chosen)
    whole = [(cut.trunk_macs(parts.pioneer_arch) + macs[i]) / 1e6 for i in chosen]
    line = (
        f"{len(chosen)} of {len(archs)} candidates ({searched} found by search), "
        f"{front} on the Pareto front, {whole[0]:.1f} to {whole[-1]:.1f} M MACs"
    )
    facts = {
        "archs": [archs[i].to_dict() for i in chosen],
        "layers": [layers[i] for i in chosen],
        "candidates": [
            {"arch": str(arch), "tail_macs": m, "accuracy": a, "picks": n}
            for arch, m, a, n in zip(archs, macs, accuracy, picks, strict=True)
        ],
    }
    return Finding(line, facts)


def _setting(parts: Parts, features: list[Tensor]) -> Setting:
    """What the pioneer makes of the choosing images, from its features of them."""
    logits = torch.cat(run_batches(parts.pioneer.head, features))
    labels, condition = parts.choosing_pool[1:]
    macs: int = parts.found["pioneer"].facts["macs"]
    return Setting(
        pioneer=parts.pioneer_arch,
        exit_macs=macs - parts.cut.trunk_macs(parts.pioneer_arch),
        logits=logits.numpy(),
        right=logits.numpy().argmax(1) == labels,
        condition=condition,
        group_size=parts.recipe.fit.group_size,
        seed=parts.recipe.seed,
    )


def calibrate_tails(parts: Parts) -> Finding:
    """Batch norm of every tail, measured on the frozen pioneer's features; and exit heads along
    the largest one, where the recipe has some."""
    inputs = parts.calibration(parts.recipe.calibrate.images)
    features = run_batches(parts.pioneer.trunk, inputs)
    arrays: dict[str, Any] = {}
    tail = nn.Sequential()
    parts.progress.start("calibrate", len(parts.archs))
    for done, (name, arch) in enumerate(zip(parts.tail_names, parts.archs, strict=True), 1):
        tail = parts.cut.calibrated_tail(arch, features)
        arrays |= {f"{name}/{key}": value.numpy() for key, value in tail.state_dict().items()}
        parts.progress.advance(done, name)
    seen = sum(len(batch) for batch in inputs)
    exits, heads = train_exits(parts, tail)
    arrays |= heads
    more = f", exit heads of {' and '.join(exits)}" if exits else ""
    line = f"{seen:,} images, batch norm of {len(parts.nodes)} nodes{more}"
    facts = {"images": seen, "data": parts.splits.train.digest(), "exits": exits}
    return Finding(line, facts, arrays)


def fold_all(parts: Parts) -> Finding:
    """Batch norm folded away, each segment compared with what it was."""
    modules, folded = parts.modules, parts.folded
    found: dict[str, float] = {}
    for node, source, _ in walk(parts.tree, modules, parts.example()):
        name = node.segment
        if name not in found:
            found[name] = parity(name, folded[name], modules[name], source)
    line = f"{len(found)} segments without batch norm, parity {max(found.values()):.0e}"
    return Finding(line, {"parity": found})
