"""How a GPU is timed: device events and the host's clock, and what waiting and deciding cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alternating import alternate, ratio
from gpu_subjects import Arm, Loaded, Subject
from ofa_network import Design
from steering import steer
from switch import Stream, figures, rounds

import opa_trt
from opa_trt.device import CUDA, Device
from opa_trt.store import EngineStore
from opa_trt.tree import IMAGES, LOGITS

FEWEST, MOST = 10, 400  # runs of one figure
Run = Callable[[], Any]


@dataclass(frozen=True)
class Clock:
    """Times runs on a device: from the call until the device is done, and on the device alone.

    Args:
        device: where they run; without events of a GPU both times are the host's.
        seconds: for each figure.
    """

    device: Device
    seconds: float

    def times(self, run: Run) -> dict[str, float]:
        """Medians in ms of the host's clock and of the device's events, and the number of runs."""
        run()
        self.device.wait()
        found: list[tuple[float, float]] = []
        begun = time.perf_counter()
        while len(found) < FEWEST or (
            len(found) < MOST and time.perf_counter() - begun < self.seconds
        ):
            found.append(self._once(run))
        host, device = np.median(np.array(found), axis=0)
        return {"host_ms": float(host), "device_ms": float(device), "runs": len(found)}

    def _once(self, run: Run) -> tuple[float, float]:
        if self.device.name != CUDA:
            begun = time.perf_counter()
            run()
            host = 1e3 * (time.perf_counter() - begun)
            return host, host
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun = time.perf_counter()
        first.record()
        run()
        last.record()
        last.synchronize()
        return 1e3 * (time.perf_counter() - begun), first.elapsed_time(last)

    def host_us(self, run: Run) -> float:
        """The host's median alone, in µs, of something that waits for itself."""
        run()
        times = []
        begun = time.perf_counter()
        while len(times) < FEWEST or time.perf_counter() - begun < self.seconds:
            start = time.perf_counter()
            run()
            times.append(1e6 * (time.perf_counter() - start))
        return float(np.median(times))


def costs(clock: Clock, design: Design) -> dict[str, float]:
    """µs of what surrounds a decision: a launch and a wait, logits down, images up."""
    device, batch = clock.device, design.max_batch
    images = design.images(batch)
    if device.name == CUDA:
        images = images.pin_memory()
    with device.scope():
        one = device.empty((1,), "float32").zero_()
        logits = device.empty((batch, design.space.classes), "float32").zero_()
        room = device.empty(tuple(images.shape), "uint8")

        def after(wait: Run) -> Run:
            def run() -> None:
                one.add_(1)
                wait()

            return run

        size = f"[{batch}, {design.space.classes}]"
        runs: dict[str, Run] = {
            "a kernel, event and wait": after(device.wait),
            "a kernel and .item()": after(one.item),
            f"logits {size} to pinned memory": lambda: device.download(logits),
            f"logits {size} by .cpu()": logits.cpu,
            f"images {list(images.shape)} to the device": lambda: _uploaded(device, images, room),
        }
        if device.name == CUDA:
            runs["a kernel and torch.cuda.synchronize()"] = after(torch.cuda.synchronize)
        return {name: clock.host_us(run) for name, run in runs.items()}


def _uploaded(device: Device, images: torch.Tensor, room: torch.Tensor) -> None:
    device.upload(images, room)
    device.wait()


def latencies(
    clock: Clock, subject: Subject, arm: Arm, design: Design, check: Callable[..., float]
) -> list[dict[str, Any]]:
    """A row for every batch of a subject on an arm; what it gives is checked at the smallest."""
    loaded = Loaded(subject, arm, design.max_batch, clock.device)
    facts = {"side": design.side, "subject": subject.name, "arm": arm.name}
    rows = []
    try:
        with torch.inference_mode(), clock.device.scope():
            for batch in design.buckets:
                run, outputs = loaded.ready(batch)
                if not rows:
                    clock.device.wait()
                    facts["error"] = check(subject, arm, batch, outputs)
                rows.append(facts | {"batch": batch} | clock.times(run))
    finally:
        loaded.close()
    return rows


def handoffs(
    clock: Clock, path: Path, whole: Subject, arm: Arm, tail: str, design: Design, folder: Path
) -> list[dict[str, Any]]:
    """`session.infer` (pioneer, decision, tail) against one engine of the whole, for every batch.

    Both take the same images from the host, and leave logits there.
    """
    peer, rows = Loaded(whole, arm, design.max_batch, clock.device), []
    with opa_trt.load(path, backend=arm.label, threads=1, store=EngineStore(folder)) as session:
        policy = steer(session)
        policy.tail = tail
        for batch in design.buckets:
            images, parts = design.images(batch), []

            def ours() -> float:
                begun = time.perf_counter()
                result = session.infer(images, math.inf)  # noqa: B023 - called before the next
                total = 1e3 * (time.perf_counter() - begun)
                engines = sum(step.measured_ms for step in result.steps)
                parts.append((engines, policy.ms, total - engines - policy.ms))  # noqa: B023
                return total

            theirs = _by_hand(clock.device, peer, images)
            parts.clear()
            pairs = alternate(ours, theirs, 4 * clock.seconds)
            middle, low, high = ratio(pairs)
            engines, decision, rest = np.median(np.array(parts), axis=0)
            mine, other = np.median(np.array(pairs), axis=0)
            rows.append(
                {
                    "arm": arm.name, "side": design.side, "batch": batch, "tail": tail,
                    "pairs": len(pairs), "our_ms": float(mine), "their_ms": float(other),
                    "ratio": middle, "ratio_interval": [low, high], "engines_ms": float(engines),
                    "decision_ms": float(decision), "rest_ms": float(rest),
                }
            )  # fmt: skip
    peer.close()
    return rows


def _by_hand(device: Device, peer: Loaded, images: torch.Tensor) -> Callable[[], float]:
    """ms of one run of the whole: images up, engine, logits down."""
    with torch.inference_mode(), device.scope():
        engine = peer.engine
        room = device.empty(tuple(images.shape), "uint8")
        out = engine.run({IMAGES: device.upload(images, room)})
        engine.prepare({IMAGES: device.upload(images, room)}, out)

    def run() -> float:
        begun = time.perf_counter()
        with device.scope():
            given = device.upload(images, room)
            device.download(engine.run({IMAGES: given}, out)[LOGITS])
        return 1e3 * (time.perf_counter() - begun)

    return run


def switches(
    clock: Clock, path: Path, arm: Arm, design: Design, folder: Path
) -> list[dict[str, Any]]:
    """The first group after a change of tail, in both directions, at the smallest batch."""
    batch, store = design.buckets[0], EngineStore(folder)
    small, large = design.tail_names[0], design.tail_names[-1]

    def load() -> opa_trt.Session:
        return opa_trt.load(path, backend=arm.label, threads=1, store=store)

    with load() as first, load() as second:
        stream, other = (Stream(s, steer(s), design.images(batch)) for s in (first, second))
        facts = {"arm": arm.name, "side": design.side, "batch": batch}
        return [
            facts
            | {"to": after}
            | figures(rounds(stream, other, before, after, 4 * clock.seconds), batch)
            for before, after in ((small, large), (large, small))
        ]
