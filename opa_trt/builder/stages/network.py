"""From images and weights to calibrated, folded modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from opa_trt.builder import pooling
from opa_trt.builder.network import logits_macs, run_batches
from opa_trt.builder.parts import PIONEER, Parts
from opa_trt.builder.tails import candidates, choose, pareto_layers, tail_accuracies
from opa_trt.builder.work import Finding
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.fold import parity
from opa_trt.training.exit_head import ExitHeadPlan, train_exit_head

CANDIDATE_CALIBRATION = 400  # images; the chosen tails are calibrated again on all


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
    images, labels = pooling.head_images(parts.splits.train, parts.source, recipe)
    batches = [parts.source.tensor(part, parts.side) for part in images]
    features = torch.cat(run_batches(trunk, batches))
    largest = parts.supernet.extract(parts.supernet.space.largest(parts.side))
    calibrate(largest, parts.calibration(CANDIDATE_CALIBRATION))
    soft = torch.cat(run_batches(largest, batches)).softmax(1)
    wanted = recipe.pioneer
    plan = ExitHeadPlan(wanted.head_width, wanted.epochs, wanted.learning_rate)
    head = train_exit_head(features, labels, soft, plan, seed=recipe.seed)
    macs = cut.trunk_macs(parts.pioneer_arch) + logits_macs(head, features)
    accuracy = _accuracy(parts, nn.Sequential(trunk, head))
    line = (
        f"stages 1 to {cut.stages} ({parts.pioneer_arch}), {macs / 1e6:.2f} M MACs, "
        f"exit head {accuracy:.1%}"
    )
    state = parts.assemble(trunk, head).state_dict()
    facts = {"macs": macs, "channels": features.shape[1], "accuracy": accuracy}
    return Finding(line, facts, {key: value.numpy() for key, value in state.items()})


@torch.no_grad()
def _accuracy(parts: Parts, module: nn.Module) -> float:
    inputs, labels = parts.choosing_inputs
    logits = torch.cat(run_batches(module, inputs))
    return float((logits.argmax(1) == labels).float().mean())


def tails(parts: Parts) -> Finding:
    """Measure candidates over the frozen pioneer and keep those on the Pareto front."""
    recipe, cut = parts.recipe, parts.cut
    archs = candidates(cut, parts.pioneer_arch, recipe.tails.candidates, recipe.seed)
    inputs, labels = parts.choosing_inputs
    trunk = parts.pioneer.trunk
    calibration = run_batches(trunk, parts.calibration(CANDIDATE_CALIBRATION))
    features = run_batches(trunk, inputs)
    parts.progress.start("tails", len(archs))
    accuracy = tail_accuracies(cut, archs, calibration, features, labels, parts.progress)
    macs = [cut.tail_macs(arch) for arch in archs]
    chosen, layers = choose(macs, accuracy, recipe.tails.count), pareto_layers(macs, accuracy)
    front = sum(layers[i] == 0 for i in chosen)
    rest = f", {len(chosen) - front} from the next ones" if front < len(chosen) else ""
    whole = [(cut.trunk_macs(parts.pioneer_arch) + macs[i]) / 1e6 for i in chosen]
    line = (
        f"{len(chosen)} of {len(archs)} candidates, {front} on the Pareto front{rest}, "
        f"{whole[0]:.1f} to {whole[-1]:.1f} M MACs"
    )
    facts = {
        "archs": [archs[i].to_dict() for i in chosen],
        "layers": [layers[i] for i in chosen],
        "candidates": [
            {"arch": str(arch), "tail_macs": m, "accuracy": a}
            for arch, m, a in zip(archs, macs, accuracy, strict=True)
        ],
    }
    return Finding(line, facts)


def calibrate_tails(parts: Parts) -> Finding:
    """Batch norm of every tail, measured on the frozen pioneer's features."""
    inputs = parts.calibration(parts.recipe.calibrate.images)
    features = run_batches(parts.pioneer.trunk, inputs)
    arrays: dict[str, Any] = {}
    parts.progress.start("calibrate", len(parts.archs))
    for done, (name, arch) in enumerate(zip(parts.tail_names, parts.archs, strict=True), 1):
        tail = parts.cut.calibrated_tail(arch, features)
        arrays |= {f"{name}/{key}": value.numpy() for key, value in tail.state_dict().items()}
        parts.progress.advance(done, name)
    seen = sum(len(batch) for batch in inputs)
    line = f"{seen:,} images, batch norm of {len(parts.nodes)} nodes"
    return Finding(line, {"images": seen, "data": parts.splits.train.digest()}, arrays)


def fold_all(parts: Parts) -> Finding:
    """Batch norm folded away, each segment compared with what it was."""
    example = parts.example()
    features = parts.pioneer(example)[0]
    found = {PIONEER: parity(PIONEER, parts.folded[PIONEER], parts.pioneer, example)}
    for name, tail in zip(parts.tail_names, parts.tails, strict=True):
        found[name] = parity(name, parts.folded[name], tail, features)
    line = f"{len(found)} segments without batch norm, parity {max(found.values()):.0e}"
    return Finding(line, {"parity": found})
