"""One segment on several engines, each for a range of batch sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from opa_trt.backends.base import Engine


class ByBatch(Engine):
    """Hands every group to the engine whose range holds it.

    Args:
        parts: engines of one segment on one device, in ascending ranges that leave no gap.
    """

    def __init__(self, parts: Sequence[Engine]) -> None:
        first, last = parts[0], parts[-1]
        backends = dict.fromkeys(part.target.backend for part in parts)
        versions = dict.fromkeys(part.target.version for part in parts)
        target = replace(
            first.target,
            backend="+".join(backends),
            version="+".join(versions),
            max_batch=last.target.max_batch,
        )
        super().__init__(first.segment, target)
        self.parts = tuple(parts)
        keys = [part.key for part in parts]
        self.key = hashlib.sha256(" ".join(keys).encode()).hexdigest() if all(keys) else ""

    def prepare(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> None:
        self._part(inputs).prepare(inputs, out)

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        self._part(inputs)._run(inputs, out, stream)

    def _fork(self) -> Engine:
        made: list[Engine] = []
        try:
            for part in self.parts:
                made.append(part.fork())
        except BaseException:
            for part in made:
                part.close()
            raise
        return ByBatch(made)

    def _close(self) -> None:
        for part in self.parts:
            part.close()

    def _part(self, inputs: Mapping[str, Tensor]) -> Engine:
        batch = inputs[self.segment.inputs[0].name].shape[0]
        return next(part for part in self.parts if batch <= part.target.max_batch)


def joined(parts: Sequence[Engine]) -> Engine:
    """One engine for all ranges of ``parts``; the part itself where there is but one."""
    return parts[0] if len(parts) == 1 else ByBatch(parts)
