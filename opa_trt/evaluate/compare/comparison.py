"""Compare every policy on one bundle: live, or once more from records."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from opa_trt.bundle import Bundle
from opa_trt.clock import Clock
from opa_trt.errors import ConfigError
from opa_trt.evaluate.background import LONGEST, applications
from opa_trt.evaluate.compare.answers import Answers, record_answers
from opa_trt.evaluate.compare.cells import Findings
from opa_trt.evaluate.compare.deadlines import check_reachable
from opa_trt.evaluate.compare.images import Data, check_enough, split_facts
from opa_trt.evaluate.compare.pool import Pool, make_pool
from opa_trt.evaluate.compare.recall import replay_scene
from opa_trt.evaluate.compare.records import Records, pack
from opa_trt.evaluate.compare.report import SCHEMA, bundle_facts, surroundings, tables
from opa_trt.evaluate.compare.runner import Background, Runner, Scene
from opa_trt.evaluate.compare.sections import Reader
from opa_trt.evaluate.compare.settings import CONTENT, Settings
from opa_trt.evaluate.compare.watch import Watched
from opa_trt.policies import Knowledge
from opa_trt.progress import Progress
from opa_trt.runtime import Session
from opa_trt.training.degrade import CLEAN


@dataclass(frozen=True)
class Comparison:
    """What was found, ready to be written.

    Args:
        report: plain values for JSON.
        findings: group by group.
        records: bytes of ``records.safetensors``.
    """

    report: dict[str, Any]
    findings: Findings
    records: bytes


def on_the_cpu(load: int) -> AbstractContextManager[object]:
    """So many background applications on the CPU compute within."""
    return applications(load, "cpu", seconds=LONGEST) if load else nullcontext()


def on_the_gpu(load: int) -> AbstractContextManager[object]:
    """So many background applications on the GPU compute within."""
    return applications(load, "cuda", seconds=LONGEST) if load else nullcontext()


def compare(
    session: Session,
    knowledge: Knowledge,
    data: Data,
    settings: Settings,
    clock: Clock,
    *,
    path: str = "",
    background: Background = on_the_cpu,
    progress: Progress | None = None,
) -> Comparison:
    """Run every arm on the session's engines.

    Interrupted (KeyboardInterrupt) once arms are running, it reports what there is until then, and
    the report says ``partial``.

    Args:
        session: of the bundle; its policy is another one afterwards.
        knowledge: of the bundle.
        data: which images.
        settings: how much.
        clock: the session's.
        path: of the bundle, for the report.
        background: a context within which so many applications run.
        progress: hears of every stage.

    Raises:
        DataError: too few images.
        ConfigError: no route meets any of the deadlines; too many background applications.
        BackendUnavailable: background applications on a GPU that is not there.
    """
    manifest = session.manifest
    check_enough(data, settings.group_size)
    with background(settings.loads[-1]):  # what cannot run is told before hours of work
        pass
    size = settings.group_size
    check_reachable(settings.deadlines, session.tree, lambda node: session.route_ms(node, size))
    families = settings.families or CONTENT
    scaled = manifest.images.dtype != "uint8"
    test = data.splits.test
    pool = make_pool(
        test,
        families,
        settings.images,
        settings.seed,
        mostly_clean=not settings.families,
        scaled=scaled,
    )
    pixels = data.splits.fit.pixels
    scene = Scene(
        session=session,
        knowledge=knowledge,
        background=background,
        watch=lambda policy, arm, load, size: Watched(policy, clock),
        trial_pixels=pixels.astype(np.float32) / np.float32(255) if scaled else pixels,
    )
    answers = record_answers(session, pool, progress)
    runner = Runner(scene, pool, answers, settings, progress=progress)
    largest = max(size, *settings.group_sizes, 0)
    facts = {
        "split": split_facts(data, manifest, pool.rows, largest),
        "machine": surroundings(session.backend),
        "replay": None,
    }
    ran = session.backend, session.threads
    return _reported(session, runner, pool, answers, settings, facts, path, ran)


def replay(
    bundle: Bundle,
    records: Records,
    settings: Settings,
    *,
    path: str = "",
    origin: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """The same from records: no engine runs, and every latency is a recorded one.

    Args:
        bundle: that was compared.
        records: of that comparison.
        settings: how much; the recorded ones, or others under the recorded loads.
        path: of the bundle, for the report.
        origin: of the records, for the report.
        progress: hears of every stage.

    Raises:
        DataError: records of another bundle.
        ConfigError: a load or content that was not recorded; no route meets any of the deadlines.
    """
    _check_recorded(settings, records.pool)
    scene, pool = replay_scene(bundle, records)
    session, size = scene.session, settings.group_size
    check_reachable(settings.deadlines, session.tree, lambda node: session.route_ms(node, size))
    runner = Runner(
        scene, pool, records.answers, settings, trials=records.trials, progress=progress
    )
    facts = {"split": records.split, "machine": records.machine, "replay": origin}
    ran = records.backend, records.threads
    return _reported(session, runner, pool, records.answers, settings, facts, path, ran)


def _check_recorded(settings: Settings, pool: Pool) -> None:
    known = {family for family, _ in pool.members}
    missing = [name for name in settings.families or CONTENT if name not in known]
    if missing:
        message = f"content {', '.join(missing)} was not recorded."
        expected = f"some of {', '.join(sorted(known - {CLEAN}))}."
        raise ConfigError(message, expected=expected, remedy="compare with it.")


def _reported(
    session: Session,
    runner: Runner,
    pool: Pool,
    answers: Answers,
    settings: Settings,
    facts: Mapping[str, Any],
    path: str,
    ran: tuple[str, int],
) -> Comparison:
    """Run, and compute the report; ``ran`` are the engines' backend and threads."""
    findings = runner.run()
    reader = Reader(findings, settings, session.tree, answers)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "seconds": None,
        **facts,
        "bundle": bundle_facts(session, path, reader, *ran),
        **tables(reader),
    }
    records = pack(report, settings, session.profiles, pool, answers, findings)
    return Comparison(report, findings, records)
