"""Engines that look up what was recorded, and images that say which row of the pool they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.backends import Engine
from opa_trt.bundle import Bundle
from opa_trt.clock import VirtualClock
from opa_trt.evaluate.compare.answers import Answers
from opa_trt.evaluate.compare.pool import Ints, Pool
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Segment, Target, Tree

Passed = tuple[str, ...]  # the segments that an image has passed
EngineMs = Callable[[str, int], float]  # from (segment, images)
SURE = np.float32(10)  # logit of the answer, where logits were not recorded
BYTES = 3  # of a row's number: one a channel


@dataclass(frozen=True)
class CodedPool(Pool):
    """A pool whose images say which row they are, and nothing else.

    Args:
        side: of the images, in px.
    """

    side: int = 1

    def take(self, rows: Ints) -> npt.NDArray[Any]:
        """``[n, 3, S, S]``: the row's three bytes in the first pixel's channels."""
        pixels = np.zeros((len(rows), BYTES, self.side, self.side), dtype=np.uint8)
        for channel in range(BYTES):
            pixels[:, channel, 0, 0] = (rows >> (8 * channel)) & 255
        return pixels.astype(np.float32) / np.float32(255) if self.scaled else pixels


def coded(pool: Pool, side: int) -> CodedPool:
    """The same rows, without pixels, for images of ``side`` px."""
    return CodedPool(
        pool.pixels,
        pool.labels,
        pool.source,
        pool.condition,
        pool.conditions,
        pool.scaled,
        side,
    )


def recorded_engines(
    bundle: Bundle, answers: Answers, clock: VirtualClock, engine_ms: EngineMs
) -> dict[str, Engine]:
    """An engine for each segment of a bundle.

    Args:
        bundle: whose nodes they are.
        answers: of every node on the pool.
        clock: moved on by every run.
        engine_ms: how long a run takes.
    """
    manifest = bundle.manifest
    target = Target("records", "1", max_batch=manifest.max_batch)
    given = _Given(bundle.tree, answers, len(manifest.classes))
    return {
        name: RecordedEngine(bundle.segment(name), target, given, clock, engine_ms)
        for name in manifest.segments
    }


class RecordedEngine(Engine):
    """One segment. Its features hold the row and the place of the path in their first numbers."""

    def __init__(
        self,
        segment: Segment,
        target: Target,
        given: _Given,
        clock: VirtualClock,
        engine_ms: EngineMs,
    ) -> None:
        super().__init__(segment, target)
        self._given, self._clock, self._ms = given, clock, engine_ms

    def prepare(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> None:
        """Nothing: there are no rows yet, and no time must pass."""

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        name = self.segment.name
        before: Passed = ()
        if IMAGES in inputs:
            rows = _rows_of(inputs[IMAGES])
        else:
            first = inputs[FEATURES].flatten(1)[:, :2].long().numpy()
            rows, before = first[:, 0], self._given.paths[int(first[0, 1])]
        passed = (*before, name)
        if LOGITS in out:
            out[LOGITS].copy_(torch.from_numpy(self._given.logits(passed, rows)))
        if FEATURES in out:
            place = self._given.places[passed]
            room = out[FEATURES].view(len(rows), -1)
            room[:, 0] = torch.from_numpy(rows)
            room[:, 1] = place
        self._clock.advance(self._ms(name, len(rows)))

    def _fork(self) -> Engine:
        return RecordedEngine(self.segment, self.target, self._given, self._clock, self._ms)


class _Given:
    """What nodes gave, by the segments passed: nodes that share all of them answer alike."""

    def __init__(self, tree: Tree, answers: Answers, classes: int) -> None:
        self._answers, self._classes = answers, classes
        self._nodes: dict[Passed, list[str]] = {}
        for name in tree.nodes:
            self._nodes.setdefault(_passed(tree, name), []).append(name)
        self.paths = [*self._nodes]
        self.places = {path: place for place, path in enumerate(self.paths)}

    def logits(self, passed: Passed, rows: Ints) -> npt.NDArray[np.float32]:
        """``[n, C]``: as recorded, or the answer's alone where they were not."""
        names = self._nodes[passed]
        for name in names:
            if name in self._answers.logits:
                return self._answers.logits[name][rows]
        answers = next(self._answers.given[name] for name in names if name in self._answers.given)
        logits = np.zeros((len(rows), self._classes), dtype=np.float32)
        logits[np.arange(len(rows)), answers[rows]] = SURE
        return logits


def _passed(tree: Tree, name: str) -> Passed:
    node = tree[name]
    before = _passed(tree, tree.parents[name]) if node.source == FEATURES else ()
    return (*before, node.segment)


def _rows_of(images: Tensor) -> Ints:
    """``[n]`` which rows the images of ``CodedPool.take`` are."""
    pixel = images[:, :, 0, 0]
    codes = pixel.numpy().astype(np.int64) if pixel.dtype == torch.uint8 else _bytes(pixel)
    rows: Ints = (codes << (8 * np.arange(BYTES))).sum(axis=1)
    return rows


def _bytes(pixel: Tensor) -> Ints:
    codes: Ints = np.rint(pixel.numpy() * 255).astype(np.int64)
    return codes
