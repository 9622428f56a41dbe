"""Several engines of one segment as one, each for its range of batch sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from opa_trt.backends.by_batch import ByBatch, joined
from opa_trt.backends.null import NullBackend, NullEngine
from opa_trt.errors import EngineError
from opa_trt.tree import Target


@pytest.fixture
def engine(toy: Any) -> ByBatch:
    """Two invented engines: up to 2 images, and up to 8."""
    backend, segment = NullBackend(), toy.segment("tiny")
    targets = [Target("null", "1", min_batch=low, max_batch=high) for low, high in ((1, 2), (3, 8))]
    made = joined([NullEngine(segment, target, backend) for target in targets])
    assert isinstance(made, ByBatch)
    return made


def features(count: int) -> dict[str, torch.Tensor]:
    return {"features": torch.rand(count, 4, 4, 4, generator=torch.Generator().manual_seed(count))}


def test_a_fork_has_forks_of_all_parts(engine: ByBatch) -> None:
    fork: Any = engine.fork()
    assert (fork.target, fork.key) == (engine.target, engine.key)
    assert not set(fork.parts) & set(engine.parts)
    for count in (1, 2, 3, 8):
        wanted = engine.run(features(count))["logits"]
        assert torch.equal(fork.run(features(count))["logits"], wanted)


def test_closing_a_fork_leaves_the_parts_of_its_parent(engine: ByBatch) -> None:
    engine.fork().close()
    for count in (2, 3):
        assert len(engine.run(features(count))["logits"]) == count


def test_a_part_that_cannot_be_forked_leaves_no_other_open(
    engine: ByBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    first, second = engine.parts
    fork = first.fork
    monkeypatch.setattr(first, "fork", lambda: made.append(fork()) or made[-1])
    second.close()
    with pytest.raises(EngineError, match="is closed"):
        engine.fork()
    with pytest.raises(EngineError, match="is closed"):
        made[0].run(features(1))
