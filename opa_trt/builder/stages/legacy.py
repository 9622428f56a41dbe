"""From a legacy network to its exit head, and to the routes that are worth deploying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from opa_trt.builder.compiling import Runner
from opa_trt.builder.exit_heads import Lesson, learn_head
from opa_trt.builder.legacy_parts import EXIT, LegacyParts
from opa_trt.builder.network import logits_macs, run_batches
from opa_trt.builder.parts import above
from opa_trt.builder.pooling import head_images
from opa_trt.builder.tails import choose
from opa_trt.builder.work import Finding
from opa_trt.errors import RecipeError
from opa_trt.store import LatencyProfile
from opa_trt.supernet.legacy import Configuration
from opa_trt.training.leaf_draw import candidate_configurations
from opa_trt.training.leaf_measure import Measured, accuracies, front


def network(parts: LegacyParts) -> Finding:
    """The weights, and what the configurations span."""
    own, recipe = parts.network, parts.recipe
    costs = own.costs(recipe.data.size)
    ends = [Configuration.numbered(len(own.phases), n) for n in (2 ** len(own.phases) - 1, 0)]
    macs = [costs.of(end).macs for end in ends]
    weights = costs.of(ends[1]).params
    line = (
        f"{recipe.legacy.network}, {weights / 1e6:.2f} M weights, {costs.added_params / 1e6:.2f} M "
        f"more in shallow phases ({costs.added_params / weights:.1%}), {len(own.phases)} phases, "
        f"{macs[0] / 1e6:.1f} to {macs[1] / 1e6:.1f} M MACs"
    )
    facts = {"weights": weights, "added": costs.added_params, "phases": [*own.phases], "macs": macs}
    return Finding(line, facts)


def configurations(parts: LegacyParts) -> Finding:
    """How often each configuration is right on the choosing images; and those that are deployed as
    one engine each, for comparison, best those on the front of MACs."""
    own, side = parts.network, parts.recipe.data.size
    tried = candidate_configurations(len(own.phases), parts.recipe.seed)
    costs = own.costs(side)
    inputs, labels = parts.pools.choosing_inputs(side)
    batches = zip(inputs, torch.split(labels, parts.recipe.calibrate.batch), strict=True)
    measured = [
        Measured(each, share, costs.of(each).macs)
        for each, share in zip(tried, accuracies(own, tried, batches), strict=True)
    ]
    best = front(measured)
    wholes = _wholes(parts, measured)
    line = (
        f"{len(tried)} tried, {min(m.accuracy for m in measured):.1%} to "
        f"{max(m.accuracy for m in measured):.1%}, {len(best)} on the front of MACs"
    )
    facts = {
        "tried": [each.to_dict(each in best) for each in measured],
        "wholes": [each.configuration.bits for each in wholes],
    }
    return Finding(line, facts)


def _wholes(parts: LegacyParts, measured: Sequence[Measured]) -> list[Measured]:
    """As many as the recipe wants: of the front, and where it is shorter of the next fronts."""
    wanted = parts.recipe.baselines.whole
    if len(measured) < wanted:
        message = f"baselines.whole = {wanted}."
        raise RecipeError(message, expected=f"at most {len(measured)}: there are no more.")
    costs, shares = [m.cost for m in measured], [m.accuracy for m in measured]
    return [measured[place] for place in choose(costs, shares, wanted)]


def pioneer(parts: LegacyParts) -> Finding:
    """Train the exit head after the first phases, on what every choice among them gives; it is
    distilled from the legacy network."""
    own, recipe, stages = parts.network, parts.recipe, parts.recipe.pioneer.stages
    side = recipe.data.size
    images, labels = head_images(parts.splits.train, parts.pools.source, recipe)
    inputs = [parts.pools.source.tensor(part, side) for part in images]
    whole = nn.Sequential(*own.pieces(own.legacy_configuration.shallow)).eval()
    soft = torch.cat(run_batches(whole, inputs)).softmax(1)
    ways = [*product((False, True), repeat=stages)]
    features = [_trunk(parts, way, inputs) for way in ways]
    taught = Lesson(inputs, labels.repeat(len(ways)), soft.repeat(len(ways), 1))
    head = learn_head(recipe, taught, [batch for each in features for batch in each])
    accuracy = {_told(way): _accuracy(parts, way, head) for way in ways}
    told = ", ".join(f"{name} {share:.1%}" for name, share in accuracy.items())
    facts = {
        "channels": features[0][0].shape[1],
        "head_macs": logits_macs(head, features[0][0]),
        "accuracy": accuracy,
    }
    arrays = above(EXIT, head)
    return Finding(f"{', '.join(own.phases[:stages])}, exit head {told}", facts, arrays)


def _trunk(parts: LegacyParts, way: Sequence[bool], inputs: list[Tensor]) -> list[Tensor]:
    """What the first phases give, each its alternative of a way."""
    return run_batches(nn.Sequential(*parts.network.pieces(way)).eval(), inputs)


def _accuracy(parts: LegacyParts, way: Sequence[bool], head: nn.Module) -> float:
    inputs, labels = parts.pools.choosing_inputs(parts.recipe.data.size)
    logits = torch.cat(run_batches(head, _trunk(parts, way, inputs)))
    return float((logits.argmax(1) == labels).float().mean())


def _told(way: Sequence[bool]) -> str:
    return str(Configuration(tuple(way)))


def routes(parts: LegacyParts) -> Finding:
    """The routes on the front of accuracy and measured latency, at any batch size.

    A route's latency is the sum of its engines'; at most ``tails.count`` routes are kept, first
    those on the fronts of most batch sizes.
    """
    references, buckets = parts.covering_references, parts.recipe.measure.buckets
    compiled = parts.found["compile"]
    runner = Runner(parts.segments, compiled, references, parts.store, parts.clock)
    by_node = runner.profiles(buckets, parts.recipe.measure.seconds)
    runner.close()
    tree, segments_of = references.tree, parts.covering_deployment.segments_of
    profiles = {
        node.segment: LatencyProfile.from_dict(by_node[name]) for name, node in tree.nodes.items()
    }
    tried = [Measured.from_dict(row) for row in parts.found["configurations"].facts["tried"]]
    largest = parts.recipe.compile.max_batch
    fronts: dict[int, list[Configuration]] = {}
    ms: dict[int, dict[Configuration, float]] = {}
    for batch in sorted({min(bucket, largest) for bucket in buckets}):
        ms[batch] = {
            each.configuration: sum(
                profiles[name].at(batch) for name in segments_of(each.configuration)
            )
            for each in tried
        }
        rows = [Measured(m.configuration, m.accuracy, ms[batch][m.configuration]) for m in tried]
        fronts[batch] = [each.configuration for each in front(rows)]
    kept = _kept(fronts, parts.recipe.tails.count)
    line = f"{len(kept)} routes: {', '.join(map(str, kept))}; on the front at batch " + ", ".join(
        f"{batch}: {len(found)}" for batch, found in fronts.items()
    )
    facts = {
        "routes": [each.bits for each in kept],
        "fronts": {str(batch): [*map(str, found)] for batch, found in fronts.items()},
        "ms": {str(b): {str(each): v for each, v in row.items()} for b, row in ms.items()},
    }
    return Finding(line, facts)


def _kept(fronts: Mapping[int, Sequence[Configuration]], most: int) -> list[Configuration]:
    """At most so many of those on the fronts, those on most of them first, in order of how much
    of the network is legacy."""
    counts: dict[Configuration, int] = {}
    for found in fronts.values():
        for each in found:
            counts[each] = counts.get(each, 0) + 1
    chosen = sorted(counts, key=lambda each: -counts[each])[:most]
    return sorted(chosen, key=lambda each: each.shallow)
