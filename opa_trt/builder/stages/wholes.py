"""Complete sub-networks: the best of the whole space, which share nothing with a pioneer."""

from __future__ import annotations

from opa_trt.builder.exit_heads import CANDIDATE_CALIBRATION
from opa_trt.builder.supernet_parts import SupernetParts
from opa_trt.builder.tails import Trials, candidates, choose
from opa_trt.builder.work import Finding
from opa_trt.supernet import Arch


def wholes(parts: SupernetParts) -> Finding:
    """Measure sub-networks of every resolution, spread evenly over MACs, and keep as many as the
    recipe wants: the ends of their Pareto front, and the rest of it evenly by accuracy."""
    space, recipe = parts.supernet.space, parts.recipe
    wanted, sides = recipe.baselines.whole, space.resolutions
    each = max(wanted, -(-recipe.tails.candidates // len(sides)))
    archs: list[Arch] = []
    macs: list[int] = []
    accuracy: list[float] = []
    for side in sides:
        parts.progress.start("wholes", each)
        trials = _try(parts, side, each)
        archs += trials.archs
        macs += trials.macs
        accuracy += trials.accuracy
    kept = choose(macs, accuracy, wanted)
    least, most = (macs[kept[end]] / 1e6 for end in (0, -1))
    right = [accuracy[place] for place in kept]
    line = (
        f"{len(kept)} of {len(archs)} complete sub-networks, {least:.1f} to {most:.1f} M MACs, "
        f"{min(right):.1%} to {max(right):.1%}"
    )
    rows = zip(archs, macs, accuracy, strict=True)
    facts = {
        "archs": [archs[place].to_dict() for place in kept],
        "candidates": [{"arch": str(a), "macs": m, "accuracy": share} for a, m, share in rows],
    }
    return Finding(line, facts)


def _try(parts: SupernetParts, side: int, count: int) -> Trials:
    """So many at one resolution."""
    calibration = parts.pools.calibration(side, CANDIDATE_CALIBRATION)
    inputs, labels = parts.pools.choosing_inputs(side)
    trials = Trials(parts.uncut, calibration, inputs, labels, parts.progress)
    smallest = parts.supernet.space.smallest(side)
    trials.measure(candidates(parts.uncut, smallest, count, parts.recipe.seed))
    return trials
