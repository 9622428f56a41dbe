"""What every engine must do when it runs, whoever the vendor is."""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opa_trt.backends import Engine
from opa_trt.errors import EngineError
from opa_trt.supernet.onnx_form import onnx_bytes
from opa_trt.supernet.pt2_form import pt2_bytes
from opa_trt.supernet.trace import trace, trace_bytes
from opa_trt.tree import FEATURES, IMAGES, LOGITS, ONNX, PT2, TORCHSCRIPT, Segment, TensorSpec

BATCHES = range(1, 9)
SLACK = 1e-6  # between runs of a backend whose outputs mean nothing


def near(given: Tensor, wanted: Tensor, tolerance: float) -> bool:
    given, wanted = given.cpu(), wanted.cpu()
    scale = max(1.0, float(wanted.abs().max()))
    return float((given - wanted).abs().max()) / scale <= tolerance


@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_size_gives_both_outputs(vendor: Any, pioneer: Engine, batch: int) -> None:
    outputs = pioneer.run(vendor.images(batch))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        FEATURES: (batch, 4, 4, 4),
        LOGITS: (batch, 5),
    }
    assert all(value.dtype == torch.float32 for value in outputs.values())
    assert all(value.device.type == vendor.target.device for value in outputs.values())


@pytest.mark.parametrize("batch", BATCHES)
def test_results_are_those_of_eager(vendor: Any, pioneer: Engine, batch: int) -> None:
    if vendor.tolerance is None:
        pytest.skip(f"outputs of {vendor} mean nothing")
    images = vendor.images(batch)
    outputs = pioneer.run(images)
    for name, wanted in vendor.toy.eager("pioneer", images[IMAGES].cpu()).items():
        assert near(outputs[name], wanted, vendor.tolerance)


@pytest.mark.parametrize("batch", BATCHES)
def test_results_of_a_tail_are_those_of_eager(many: Any, batch: int) -> None:
    if many.tolerance is None:
        pytest.skip(f"outputs of {many} mean nothing")
    features = many.features(batch)
    found = many.engine("tiny").run(features)[LOGITS]
    wanted = many.toy.eager("tiny", features[FEATURES].cpu())[LOGITS]
    assert near(found, wanted, many.tolerance)


def test_batch_sizes_may_come_in_any_order(vendor: Any, pioneer: Engine) -> None:
    alone = {batch: pioneer.run(vendor.images(batch))[LOGITS].clone() for batch in BATCHES}
    for batch in (8, 1, 5, 2, 8, 3, 1, 7):
        given = pioneer.run(vendor.images(batch))[LOGITS]
        assert near(given, alone[batch], vendor.tolerance or SLACK)


def test_each_row_stands_for_itself(vendor: Any, pioneer: Engine) -> None:
    group = vendor.images(5)
    together = pioneer.run(group)
    for row in range(5):
        alone = pioneer.run({IMAGES: group[IMAGES][row : row + 1]})
        for name, value in alone.items():
            assert near(value, together[name][row : row + 1], vendor.tolerance or SLACK)


def test_preallocated_outputs_are_filled_and_returned(vendor: Any, pioneer: Engine) -> None:
    wanted = pioneer.run(vendor.images(3))
    out = {FEATURES: vendor.empty(3, 4, 4, 4), LOGITS: vendor.empty(3, 5)}
    given = pioneer.run(vendor.images(3), out)
    for name, value in out.items():
        assert given[name] is value
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0)


def test_an_output_left_out_is_allocated(vendor: Any, pioneer: Engine) -> None:
    out = {FEATURES: vendor.empty(3, 4, 4, 4)}
    given = pioneer.run(vendor.images(3), out)
    assert given[FEATURES] is out[FEATURES]
    wanted = pioneer.run(vendor.images(3))[LOGITS]
    torch.testing.assert_close(given[LOGITS], wanted, rtol=0, atol=0)


def test_rows_of_a_larger_buffer_are_filled_and_no_others(vendor: Any, pioneer: Engine) -> None:
    memory = vendor.empty(8, 4, 4, 4)
    for rows in (3, 1, 5):  # at one address
        memory.fill_(-7.0)
        pioneer.run(vendor.images(rows), {FEATURES: memory[:rows]})
        assert (memory[rows:] == -7.0).all()
        assert not (memory[:rows] == -7.0).any()


def test_memory_may_be_used_again_for_other_images(vendor: Any, pioneer: Engine) -> None:
    first, second = vendor.images(4), vendor.images(4, seed=1)
    wanted = pioneer.run(second)[LOGITS].clone()
    out = {FEATURES: vendor.empty(4, 4, 4, 4), LOGITS: vendor.empty(4, 5)}
    pioneer.run(first, out)
    first[IMAGES].copy_(second[IMAGES])
    assert torch.equal(pioneer.run(first, out)[LOGITS], wanted)


def test_runs_may_alternate_between_buffers(vendor: Any, pioneer: Engine) -> None:
    groups = [vendor.images(4, seed) for seed in range(3)]
    outs = [{FEATURES: vendor.empty(4, 4, 4, 4), LOGITS: vendor.empty(4, 5)} for _ in groups]
    wanted = [pioneer.run(group)[LOGITS].clone() for group in groups]
    for _ in range(20):
        for group, out, logits in zip(groups, outs, wanted, strict=True):
            assert torch.equal(pioneer.run(group, out)[LOGITS], logits)


def test_many_short_lived_buffers_are_told_apart(vendor: Any, pioneer: Engine) -> None:
    wanted = [pioneer.run(vendor.images(2, seed))[LOGITS].clone() for seed in range(4)]
    for count in range(80):
        out = {LOGITS: vendor.empty(2 + count, 5)[count:]}
        given = pioneer.run(vendor.images(2, count % 4), out)[LOGITS]
        assert torch.equal(given, wanted[count % 4])


def test_preparing_changes_no_result(vendor: Any, pioneer: Engine) -> None:
    wanted = pioneer.run(vendor.images(4, seed=1))[LOGITS].clone()
    group = vendor.images(4)
    out = {FEATURES: vendor.empty(4, 4, 4, 4), LOGITS: vendor.empty(4, 5)}
    pioneer.prepare(group, out)
    group[IMAGES].copy_(vendor.images(4, seed=1)[IMAGES])
    given = pioneer.run(group, out)[LOGITS]
    assert near(given, wanted, vendor.tolerance or SLACK)


def test_repeated_runs_are_identical(vendor: Any, pioneer: Engine) -> None:
    first = pioneer.run(vendor.images(4))
    for _ in range(5):
        for name, value in pioneer.run(vendor.images(4)).items():
            torch.testing.assert_close(value, first[name], rtol=0, atol=0)


def test_outputs_survive_later_runs(vendor: Any, pioneer: Engine) -> None:
    kept = pioneer.run(vendor.images(4))
    copies = {name: value.clone() for name, value in kept.items()}
    pioneer.run(vendor.images(4, seed=1))
    for name, value in kept.items():
        torch.testing.assert_close(value, copies[name], rtol=0, atol=0)


def test_outputs_outlive_the_engine(vendor: Any) -> None:
    engine = vendor.engine("pioneer")
    kept = engine.run(vendor.images(4))[LOGITS]
    copy = kept.clone()
    engine.close()
    del engine
    assert torch.equal(kept, copy)


def test_inputs_are_only_read(vendor: Any, pioneer: Engine) -> None:
    group = vendor.images(4)
    before = group[IMAGES].clone()
    pioneer.run(group)
    assert torch.equal(group[IMAGES], before)


def test_inputs_may_go_away_after_the_run(vendor: Any, pioneer: Engine) -> None:
    group = vendor.images(4)
    first = pioneer.run(group)[LOGITS]
    kept = first.clone()
    group[IMAGES].zero_()
    del group
    assert torch.equal(first, kept)
    assert torch.equal(pioneer.run(vendor.images(4))[LOGITS], kept)


def test_two_engines_at_once_do_not_disturb_each_other(vendor: Any) -> None:
    one, two = vendor.engine("pioneer"), vendor.engine("pioneer")
    alone = one.run(vendor.images(4)), two.run(vendor.images(2, seed=1))
    for _ in range(3):
        together = one.run(vendor.images(4)), two.run(vendor.images(2, seed=1))
        for given, wanted in zip(together, alone, strict=True):
            for name, value in given.items():
                assert torch.equal(value, wanted[name])


def test_a_fork_gives_identical_results(vendor: Any, pioneer: Engine) -> None:
    with contextlib.closing(pioneer.fork()) as fork:
        assert (fork.segment, fork.target, fork.key) == (
            pioneer.segment, pioneer.target, pioneer.key,
        )  # fmt: skip
        for batch in (4, 1, 8):
            wanted = {k: v.clone() for k, v in pioneer.run(vendor.images(batch)).items()}
            for name, value in fork.run(vendor.images(batch)).items():
                assert torch.equal(value, wanted[name])


def test_an_engine_and_its_fork_run_in_two_threads_at_once(vendor: Any, pioneer: Engine) -> None:
    engines = [pioneer, pioneer.fork()]
    groups = [vendor.images(4, seed) for seed in range(2)]
    wanted = [pioneer.run(group)[LOGITS].cpu().clone() for group in groups]
    ready, worst = threading.Barrier(len(engines)), [0.0] * len(engines)

    def work(place: int) -> None:
        ready.wait(30)
        for _ in range(50):
            given = engines[place].run(groups[place])[LOGITS].cpu()
            worst[place] = max(worst[place], float((given - wanted[place]).abs().max()))

    workers = [threading.Thread(target=work, args=(place,)) for place in range(len(engines))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    engines[1].close()
    assert not torch.equal(*wanted)
    assert max(worst) <= (vendor.tolerance or SLACK)


def test_closing_a_fork_leaves_its_parent_and_siblings(vendor: Any, pioneer: Engine) -> None:
    wanted = pioneer.run(vendor.images(4))[LOGITS].clone()
    fork, sibling = pioneer.fork(), pioneer.fork()
    fork.run(vendor.images(4))
    fork.close()
    for engine in (pioneer, sibling):
        assert torch.equal(engine.run(vendor.images(4))[LOGITS], wanted)
    with pytest.raises(EngineError, match="is closed"):
        fork.run(vendor.images(4))


def test_a_fork_outlives_its_parent_and_can_be_forked(vendor: Any) -> None:
    engine = vendor.engine("pioneer")
    wanted = engine.run(vendor.images(4))[LOGITS].clone()
    fork = engine.fork()
    engine.close()
    del engine
    gc.collect()
    second = fork.fork()
    fork.close()
    assert torch.equal(second.run(vendor.images(4))[LOGITS], wanted)


def test_a_closed_engine_is_not_forked(vendor: Any, pioneer: Engine) -> None:
    pioneer.close()
    with pytest.raises(EngineError, match="is closed"):
        pioneer.fork()


def test_a_tail_goes_on_from_the_pioneers_very_memory(many: Any) -> None:
    if many.tolerance is None:
        pytest.skip(f"outputs of {many} mean nothing")
    pioneer, tail = many.engine("pioneer"), many.engine("small")
    images = many.images(3)
    given = tail.run({FEATURES: pioneer.run(images)[FEATURES]})[LOGITS]
    wanted = many.toy.monolith("small", images[IMAGES].cpu().numpy())
    assert near(given, torch.from_numpy(wanted), many.tolerance)


def test_its_own_engine_passes_the_canary(vendor: Any, pioneer: Engine) -> None:
    worst = vendor.verified(pioneer, "pioneer")
    assert vendor.tolerance is None or worst <= vendor.tolerance


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_every_tails_engine_passes_the_canary(many: Any, name: str) -> None:
    worst = many.verified(many.engine(name), name)
    assert many.tolerance is None or worst <= many.tolerance


def test_torchs_threads_are_left_alone(vendor: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        vendor.engine("pioneer").run(vendor.images(2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_given_stream_is_used(vendor: Any, pioneer: Engine) -> None:
    if vendor.target.device != "cuda":
        pytest.skip("a CPU has no streams")
    wanted = pioneer.run(vendor.images(4))[LOGITS]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    given = pioneer.run(vendor.images(4), stream=stream)[LOGITS]
    stream.synchronize()
    assert torch.equal(given, wanted)


class Middle(nn.Module):
    """The middle of a chain: what it reads and what it gives have one name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        given = torch.relu(self.body(features))
        return given, self.head(given.mean((2, 3)))


def test_a_middle_of_a_chain_reads_and_gives_features(many: Any) -> None:
    if many.tolerance is None:
        pytest.skip(f"outputs of {many} mean nothing")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = Middle().eval()
    read = TensorSpec(FEATURES, (4, 4, 4))
    example, gives = torch.zeros(2, *read.shape), (read, TensorSpec(LOGITS, (5,)))
    forms = {
        TORCHSCRIPT: trace_bytes(trace(module, example)),
        ONNX: onnx_bytes(module, example, FEATURES, [FEATURES, LOGITS]),
    }
    if PT2 in many.backend.forms:
        forms[PT2] = pt2_bytes(module, example, many.target.max_batch)
    segment = Segment("middle", (read,), gives, forms, content="middle")
    compiled = many.backend.compile(segment, many.target)
    with contextlib.closing(many.backend.load(compiled, segment, many.target)) as engine:
        features = many.features(3)
        found = engine.run(features)
        with torch.no_grad():
            wanted = module(features[FEATURES].cpu())
        assert list(found) == [FEATURES, LOGITS]
        for given, eager in zip(found.values(), wanted, strict=True):
            assert near(given, eager, many.tolerance)
