"""Tails of every entry: tried over its frozen pioneer, and those that are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opa_trt.builder.entries import Entry
from opa_trt.builder.exit_heads import CANDIDATE_CALIBRATION
from opa_trt.builder.network import run_batches
from opa_trt.builder.picks import Setting, try_picks
from opa_trt.builder.supernet_parts import SupernetParts
from opa_trt.builder.tails import Trials, candidates, choose, pareto_layers
from opa_trt.builder.work import Finding


@dataclass(frozen=True)
class Tried:
    """One entry's candidates.

    Args:
        entry: theirs.
        trials: what was measured: evenly spread ones, then those that the search took.
        picks: how often each would be taken.
        spread: how many were evenly spread.
        chosen: places of those that are kept, by ascending MACs.
    """

    entry: Entry
    trials: Trials
    picks: list[int]
    spread: int
    chosen: list[int]

    def archs(self) -> list[dict[str, Any]]:
        """Of those that are kept."""
        return [self.trials.archs[place].to_dict() for place in self.chosen]

    def candidates(self) -> list[dict[str, Any]]:
        """What is reported of each."""
        trials = self.trials
        rows = zip(trials.archs, trials.macs, trials.accuracy, self.picks, strict=True)
        return [
            {"arch": str(arch), "tail_macs": macs, "accuracy": accuracy, "picks": picks}
            for arch, macs, accuracy, picks in rows
        ]


def tails(parts: SupernetParts) -> Finding:
    """Measure tails over the frozen pioneers, and keep those that a search would pick.

    For each entry one half is spread evenly over MACs; the other is what the online search takes
    by a predictor fitted to the first. Kept are those most often the best, then the Pareto front.
    """
    tried = [_try(parts, entry) for entry in parts.entries]
    macs = parts.supernet.space.macs
    every = [(macs(a), acc) for t in tried for a, acc in _measured(t)]
    layers = iter(pareto_layers([m for m, _ in every], [accuracy for _, accuracy in every]))
    best = 0
    for found in tried:
        own = [next(layers) for _ in found.trials.archs]
        best += sum(own[place] == 0 for place in found.chosen)
    kept = [macs(found.trials.archs[place]) / 1e6 for found in tried for place in found.chosen]
    searched = sum(place >= found.spread for found in tried for place in found.chosen)
    line = (
        f"{len(kept)} of {len(every)} candidates ({searched} found by search), "
        f"{best} on the Pareto front, {min(kept):.1f} to {max(kept):.1f} M MACs"
    )
    facts = {
        "archs": {found.entry.name: found.archs() for found in tried},
        "candidates": {found.entry.name: found.candidates() for found in tried},
    }
    return Finding(line, facts)


def _measured(found: Tried) -> Any:
    return zip(found.trials.archs, found.trials.accuracy, strict=True)


def _try(parts: SupernetParts, entry: Entry) -> Tried:
    """Measure one entry's candidates and choose among them."""
    recipe, cut, trunk = parts.recipe, parts.cut, parts.pioneers[entry.name].trunk
    asked = recipe.tails.candidates
    inputs, labels = parts.pools.choosing_inputs(entry.side)
    calibration = run_batches(trunk, parts.pools.calibration(entry.side, CANDIDATE_CALIBRATION))
    features = run_batches(trunk, inputs)
    parts.progress.start("tails", asked)
    trials = Trials(cut, calibration, features, labels, parts.progress)
    trials.measure(candidates(cut, entry.pioneer, asked - asked // 2, recipe.seed))
    spread = len(trials.archs)
    picks = try_picks(trials, _setting(parts, entry, features), asked - spread)
    chosen = choose(trials.macs, trials.accuracy, recipe.tails.count, picks)
    return Tried(entry, trials, picks, spread, chosen)


def _setting(parts: SupernetParts, entry: Entry, features: list[Tensor]) -> Setting:
    """What the pioneer makes of the choosing images, from its features of them."""
    logits = torch.cat(run_batches(parts.pioneers[entry.name].head, features))
    labels, condition = parts.pools.choosing_pool[1:]
    return Setting(
        pioneer=entry.pioneer,
        exit_macs=parts.pioneer_macs[entry.name] - parts.cut.trunk_macs(entry.pioneer),
        logits=logits.numpy(),
        right=logits.numpy().argmax(1) == labels,
        condition=condition,
        group_size=parts.recipe.fit.group_size,
        seed=parts.recipe.seed,
    )
