"""Whether adapting is worth it on this machine: spread, hand-off, memory, and what it may gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opa_trt.bundle import Bundle
from opa_trt.errors import BackendUnavailable, ConfigError
from opa_trt.evaluate.engine_set import EngineSet, Setting, loaded
from opa_trt.evaluate.handoff import Handoff, example_routes, measure_handoff
from opa_trt.evaluate.monoliths import joined_segments
from opa_trt.evaluate.outlook import Outlook, Point
from opa_trt.policies import Knowledge
from opa_trt.progress import Progress
from opa_trt.store import LatencyProfile
from opa_trt.tree import LOGITS, OPA, Route, Segment, Tree

SECONDS = 0.5
WORTH = 0.005  # of accuracy: a gain that is worth the trouble
FLAT = 1.2  # largest over fastest route: below it there is nothing to choose between
COSTLY = 1.15  # session over one engine


@dataclass(frozen=True)
class Spread:
    """The fastest and the largest of ``opa``'s routes at a batch size: medians and accuracies."""

    batch: int
    fastest: str
    fastest_ms: float
    fastest_accuracy: float
    largest: str
    largest_ms: float
    largest_accuracy: float

    @property
    def ratio(self) -> float:
        """Of latencies, largest over fastest."""
        return self.largest_ms / self.fastest_ms if self.fastest_ms > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Args:
        where: plain values: backend, versions, threads, device, memory of the engines.
        spreads: by batch.
        handoffs: by route and batch; empty where no route can be had as one engine.
        no_handoff: why they are empty.
        points: expected accuracy by batch and deadline; empty where the bundle does not say.
        over_range: by batch, mean gain over one static route that serves the whole range.
        equal_macs: the build's held-out gain image by image at equal MACs; None if not known.
        worth: whether adapting pays: at some batch; None where that cannot be told.
        verdict: a sentence for people.
    """

    where: Mapping[str, Any]
    spreads: Sequence[Spread]
    handoffs: Sequence[Handoff]
    no_handoff: str
    points: Sequence[Point]
    over_range: Mapping[int, float]
    equal_macs: float | None
    worth: bool | None
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.verdict,
            "worth": self.worth,
            **self.where,
            "spread": [each.to_dict() for each in self.spreads],
            "handoff": [each.to_dict() for each in self.handoffs],
            "no_handoff": self.no_handoff,
            "deadlines": [each.to_dict() for each in self.points],
            "gain_by_batch": {str(batch): gain for batch, gain in gains(self.points).items()},
            "gain_over_range": {str(batch): gain for batch, gain in self.over_range.items()},
            "gain_at_equal_macs": self.equal_macs,
        }


def diagnose(
    setting: Setting,
    knowledge: Knowledge,
    batches: Sequence[int],
    *,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Diagnosis:
    """Load a bundle's engines, time what tells whether adapting pays, and judge.

    Args:
        setting: the bundle and its backend.
        knowledge: of its build.
        batches: images a group, as ``bench.check_batches`` gives them.
        seconds: spent on the hand-off of each example route at each batch.
        progress: hears of the stages.

    Raises:
        OpaError: an engine cannot be compiled, loaded or verified.
    """
    told, loader = progress or Progress(), setting.loader
    told.start("load")
    joined, why = _joined(setting)
    with loaded(setting, joined) as found:
        told.start("profile")
        profiles = loader.profiles(found.engines)
        measured = measure_handoff(
            found, profiles, knowledge, batches, seconds=seconds, progress=told
        )
        where = _where(found)
    tree, manifest = loader.tree, loader.bundle.manifest
    spreads = [_spread(tree, profiles, batch) for batch in batches]
    outlook = Outlook(tree, profiles, manifest, _beside(measured))
    points = [point for batch in batches for point in outlook.points(batch)]
    over_range = {
        batch: outlook.tightest([point for point in points if point.batch == batch])
        for batch in (batches if points else ())
    }
    worth, verdict = judge(spreads, measured, points)
    equal = manifest.report.get("fit", {}).get("rightness", {}).get("gain")
    return Diagnosis(
        where, spreads, measured, why, points, over_range, equal, worth, verdict
    )  # fmt: skip


def gains(points: Sequence[Point]) -> dict[int, float]:
    """By batch, the mean gain over the best static route of each deadline."""
    found: dict[int, list[float]] = {}
    for point in points:
        found.setdefault(point.batch, []).append(point.gain)
    return {batch: float(np.mean(each)) for batch, each in found.items()}


def judge(
    spreads: Sequence[Spread], handoffs: Sequence[Handoff], points: Sequence[Point]
) -> tuple[bool | None, str]:
    """Whether adapting is worth it, and a sentence that says at which group sizes, or why not."""
    if not points:
        return None, (
            "Not known: this bundle does not say how accuracy grows with the share of images "
            "that go on. Build it again with this version."
        )
    found = gains(points)
    better = {batch: gain for batch, gain in found.items() if gain >= WORTH}
    if not better:
        most = max(found, key=lambda batch: found[batch])
        return False, (
            f"Not worth it here: at best {_points(found[most])} points expected over the best "
            f"static route ({_groups([most])}){_reasons(spreads, handoffs)}."
        )
    most = max(better, key=lambda batch: better[batch])
    others = [batch for batch in found if batch not in better]
    rest = f"; not for {_groups(others)}" if others else ""
    return True, (
        f"Worth it here for {_groups([*better])}: up to {_points(better[most])} points expected "
        f"over the best static route of the same deadline{rest}."
    )


def _reasons(spreads: Sequence[Spread], handoffs: Sequence[Handoff]) -> str:
    """What stands in the way, as far as it was seen."""
    found = []
    if flat := [each.batch for each in spreads if each.ratio < FLAT]:
        found.append(f"routes hardly differ in latency for {_groups(flat)}")
    costly = dict.fromkeys(each.ratio.route.batch for each in handoffs if each.ratio.ratio > COSTLY)
    if costly:
        found.append(f"deciding and handing on cost more than 15 % for {_groups([*costly])}")
    return f"; {', and '.join(found)}" if found else ""


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f}"


def _groups(batches: Sequence[int]) -> str:
    """``single images and groups of 8 and 32``."""
    *first, last = [str(batch) for batch in batches if batch > 1] or [""]
    larger = f"groups of {', '.join(first)} and {last}" if first else f"groups of {last}"
    parts = ["single images"] * (1 in batches) + [larger] * bool(last)
    return " and ".join(parts)


def _joined(setting: Setting) -> tuple[dict[Route, Segment], str]:
    """The example routes as one segment each, and why there are none."""
    bundle: Bundle = setting.loader.bundle
    wanted = example_routes(bundle.tree)
    if not wanted:
        return {}, "no route of this bundle hands on features."
    try:
        made = joined_segments(bundle, [setting.loader.plan])
    except (BackendUnavailable, ConfigError) as exc:
        return {}, str(exc)
    return {route: made[route] for route in wanted}, ""


def _where(found: EngineSet) -> dict[str, Any]:
    """What runs, and what it takes."""
    facts = found.to_dict()
    wholes = len(found.monoliths)
    return {**facts, "engines": len(found.engines), "monoliths": wholes}


def _spread(tree: Tree, profiles: Mapping[str, LatencyProfile], batch: int) -> Spread:
    ends = [
        node.name
        for node in tree.nodes.values()
        if node.system == OPA and LOGITS in node.outputs and not node.successors
    ]
    ms = {
        name: sum(profiles[each].at(batch) for each in tree.route_to(name).nodes) for name in ends
    }
    macs = {name: sum(tree[each].macs for each in tree.route_to(name).nodes) for name in ends}
    fastest, largest = min(ms, key=lambda name: ms[name]), max(macs, key=lambda name: macs[name])
    return Spread(
        batch,
        fastest,
        ms[fastest],
        tree[fastest].accuracy,
        largest,
        ms[largest],
        tree[largest].accuracy,
    )


def _beside(measured: Sequence[Handoff]) -> dict[int, float]:
    """By batch, the median over the example routes."""
    found: dict[int, list[float]] = {}
    for each in measured:
        found.setdefault(each.ratio.route.batch, []).append(each.beside_ms)
    return {batch: float(np.median(ms)) for batch, ms in found.items()}
