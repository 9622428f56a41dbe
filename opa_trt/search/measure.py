"""Our own latency tables: every operator of a space timed here, and checked on whole networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opa_trt.backends import Backend
from opa_trt.clock import Clock
from opa_trt.errors import ConfigError
from opa_trt.machine import fingerprint, processor
from opa_trt.progress import Progress
from opa_trt.search.bench import STAGE, Bench
from opa_trt.search.latency_table import LatencyTable
from opa_trt.search.subjects import Subjects, network_name, sides_ms
from opa_trt.search.timings import Timings
from opa_trt.search.whole_networks import Floats, draw_networks, error_of, fit_line, split
from opa_trt.supernet import Space
from opa_trt.tree import Target

FEW_RESOLUTIONS = 8
PUBLISHED_FROM, PUBLISHED_STEP = 160, 16  # the resolutions that the published tables have


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Args:
        space: the choices.
        resolutions: those to cover, ascending.
        target: of every engine; its largest batch is the one that is timed.
        networks: random whole networks to check the table with, besides smallest and largest.
        seconds: spent on timing each engine.
        seed: of the networks and of the order.
    """

    space: Space
    resolutions: tuple[int, ...]
    target: Target
    networks: int = 12
    seconds: float = 0.05
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """All that the latency of one operator depends on, as plain values."""
        return {
            "space": self.space.to_dict(),
            "target": self.target.to_dict(),
            "machine": fingerprint(),
            "seconds": self.seconds,
        }


def choose_resolutions(space: Space, given: Sequence[int] = ()) -> tuple[int, ...]:
    """``given``, or the space's if they are few, else those of the published tables; ascending.

    Raises:
        ConfigError: the space does not sample one of them.
    """
    known = space.resolutions
    for resolution in given:
        if resolution not in known:
            message = f"resolution {resolution} is none of {space.name}'s."
            raise ConfigError(message, expected=f"one or more of {list(known)}.")
    if given:
        return tuple(sorted(set(given)))
    if len(known) <= FEW_RESOLUTIONS:
        return known
    published = [r for r in known if r >= PUBLISHED_FROM and r % PUBLISHED_STEP == 0]
    return tuple(published) or known


def measure_table(
    plan: Plan, backend: Backend, timings: Timings, clock: Clock, progress: Progress, name: str
) -> LatencyTable:
    """Time what ``timings`` lacks, and make the table called ``name``.

    Its scale and offset are fitted to half of the whole networks. Its facts say the errors on the
    others (``errors``): of the operators' engines summed (``alone``), of the sum without their
    boundaries (``sum``), and of what the table predicts (``corrected``).

    Raises:
        CompileError, EngineError, ParityError: the backend refuses an operator.
    """
    space = replace(plan.space, resolutions=plan.resolutions)
    subjects = Subjects(space, tuple(draw_networks(space, plan.networks, plan.seed)))
    names = _time(plan, backend, subjects, timings, clock, progress)
    ms = timings.calm_ms(names)
    operators = subjects.costs(ms)
    measured = np.array([ms[network_name(arch)] for arch in subjects.archs])
    plain = LatencyTable(name, dict.fromkeys(plan.resolutions, operators), space=plan.space)
    fitted, _ = split(subjects.archs)
    scale, offset = fit_line(_predicted(plain, subjects)[fitted], measured[fitted])
    table = replace(plain, scale=scale, offset=offset)
    engines = {key: ms[key] for key in operators}
    alone = replace(plain, by_resolution=dict.fromkeys(plan.resolutions, engines))
    predictions = {
        what: _predicted(tried, subjects)
        for what, tried in (("alone", alone), ("sum", plain), ("corrected", table))
    }
    facts = _facts(plan, subjects, ms) | _checks(subjects, measured, predictions)
    return replace(table, facts=facts | {"load_spread": timings.spread(names)})


def _time(
    plan: Plan,
    backend: Backend,
    subjects: Subjects,
    timings: Timings,
    clock: Clock,
    progress: Progress,
) -> list[str]:
    """Time all subjects that ``timings`` lacks; the names of all.

    The yardstick is the same for every choice of resolutions, so that more can be added later.
    """
    yardstick = Subjects(plan.space, ()).network(plan.space.smallest())
    target, seconds = plan.target, plan.seconds
    bench = Bench(backend, target, yardstick, timings, clock, progress, seconds, plan.seed)
    everything = subjects.all()
    bench.time(everything)
    names = [subject.name for subject in everything]
    progress.finish(
        STAGE,
        f"{len(subjects.operators)} operators, {len(subjects.boundaries)} boundaries, "
        f"{len(subjects.archs)} networks; the load varied by {timings.spread(names) - 1:.0%}",
    )
    return names


def _predicted(table: LatencyTable, subjects: Subjects) -> Floats:
    """``[N]``: what the table says of the whole networks, as a search asks it."""
    genome = subjects.space.genome
    return table.cost(genome)(genome.rows(subjects.archs))


def _checks(
    subjects: Subjects, measured: Floats, predictions: Mapping[str, Floats]
) -> dict[str, Any]:
    """Errors on the networks held out, and every network's latencies (ms)."""
    fitted, held_out = split(subjects.archs)
    tested = held_out or fitted  # a space of three archs has none to hold out
    networks = [
        {
            "arch": arch.to_dict(),
            "held_out": place in held_out,
            "ms": float(measured[place]),
            **{what: float(predicted[place]) for what, predicted in predictions.items()},
        }
        for place, arch in enumerate(subjects.archs)
    ]
    errors = {
        what: error_of(predicted[tested], measured[tested]).to_dict()
        for what, predicted in predictions.items()
    }
    return {"held_out": len(held_out), "errors": errors, "networks": networks}


def _facts(plan: Plan, subjects: Subjects, ms: Mapping[str, float]) -> dict[str, Any]:
    """Where and how it was measured."""
    return {
        "machine": fingerprint(),
        "processor": processor(),
        "backend": plan.target.backend,
        "backend_version": plan.target.version,
        "target": plan.target.to_dict(),
        "batch": plan.target.max_batch,
        "threads": plan.target.threads,
        "seconds": plan.seconds,
        "seed": plan.seed,
        "boundaries_ms": {
            "x".join(map(str, shape)): dict(
                zip(("entry", "exit"), sides_ms(shape, ms), strict=True)
            )
            for shape in subjects.boundaries
        },
    }
