"""A stream is answered group by group, each under its own deadline."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opa_trt
from opa_trt.errors import ConfigError, DeadlineError, ImageError, SessionClosed


@pytest.fixture
def session(machine: Any, toy_bundle: Path) -> opa_trt.Session:
    return machine.load(toy_bundle)


@pytest.fixture
def pixels(session: opa_trt.Session) -> list[Any]:
    """Keeps what the pioneer is given."""
    seen: list[Any] = []

    def pioneer(inputs: Any) -> Any:
        seen.append(inputs["images"].clone())
        return {"logits": torch.zeros(len(seen[-1]), 5)}

    engine: Any = session._machinery.engines["pioneer"]
    engine._backend.outputs["pioneer"] = pioneer
    return seen


def sizes(results: Any) -> list[int]:
    return [len(result.labels) for result in results]


# --- groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "wanted"), [(8, 4, [4, 4]), (9, 4, [4, 4, 1]), (3, 4, [3]), (20, 20, [20])]
)
def test_an_array_is_answered_in_groups(
    session: Any, toy: Any, count: int, size: int, wanted: list[int]
) -> None:
    assert sizes(session.stream(toy.images(count), size, 5.0)) == wanted
    assert sizes(session.stream(torch.from_numpy(toy.images(count)), size, 5.0)) == wanted


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 5], [2, 6, 1], [3, 3, 3]])
def test_an_iterable_of_batches_is_regrouped(
    session: Any, toy: Any, pixels: list[Any], pieces: list[int]
) -> None:
    images = toy.images(9)
    ends = [0, *itertools.accumulate(pieces)]
    batches = (images[first:last] for first, last in itertools.pairwise(ends))
    assert sizes(session.stream(batches, 4, 5.0)) == [4, 4, 1]
    np.testing.assert_array_equal(torch.cat(pixels).numpy(), images)


def test_single_images_are_put_together(session: Any, toy: Any, pixels: list[Any]) -> None:
    images = toy.images(5)
    assert sizes(session.stream(list(torch.from_numpy(images)), 2, 5.0)) == [2, 2, 1]
    np.testing.assert_array_equal(torch.cat(pixels).numpy(), images)


def test_memory_that_is_used_again_for_the_next_image_is_copied(
    session: Any, toy: Any, pixels: list[Any]
) -> None:
    images, memory = torch.from_numpy(toy.images(4)), torch.empty(3, 16, 16, dtype=torch.uint8)

    def camera() -> Any:
        for image in images:
            yield memory.copy_(image)

    assert sizes(session.stream(camera(), 4, 5.0)) == [4]
    assert torch.equal(pixels[0], images)


def test_layouts_may_be_said_of_arrays_and_pieces(
    session: Any, toy: Any, pixels: list[Any]
) -> None:
    images = toy.images(4)
    last = images.transpose(0, 2, 3, 1)
    for given in (last, list(last)):
        assert sizes(session.stream(given, 4, 5.0, layout="NHWC")) == [4]
    for seen in pixels:
        np.testing.assert_array_equal(seen.numpy(), images)


def test_no_images_are_no_groups(session: Any) -> None:
    assert list(session.stream(iter(()), 4, 5.0)) == []
    assert list(session.stream([], 4, iter(()))) == []


def test_a_group_is_pulled_and_answered_when_it_is_asked_for(session: Any, toy: Any) -> None:
    pulled = []

    def camera() -> Any:
        for number, image in enumerate(toy.images(6)):
            pulled.append(number)
            yield image

    results = session.stream(camera(), 2, 5.0)
    assert pulled == []
    next(results)
    assert pulled == [0, 1]
    assert session.metrics().groups == 1


def test_the_session_may_be_used_between_groups(session: Any, toy: Any) -> None:
    results = session.stream(toy.images(16), 8, math.inf)
    assert set(next(results).nodes) == {"large"}
    session.use("static:tiny")
    assert set(next(results).nodes) == {"tiny"}


def test_a_stream_gives_what_infer_gives(toy: Any, toy_bundle: Path, ticking: Any) -> None:
    with opa_trt.load(toy_bundle, backend="torchscript", clock=ticking) as session:
        images = toy.images(10)
        found = [result.logits for result in session.stream(images, 4, math.inf)]
        np.testing.assert_allclose(np.concatenate(found), toy.monolith("large", images), atol=1e-4)


# --- deadlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "deadlines",
    [
        [2.0, 5.0, 9.0],
        (2, 5, 9),
        np.array([2.0, 5.0, 9.0]),
        torch.tensor([2.0, 5.0, 9.0]),
        lambda group: (2.0, 5.0, 9.0)[group],
    ],
)
def test_deadlines_change_from_group_to_group(session: Any, toy: Any, deadlines: Any) -> None:
    results = [*session.stream(toy.images(24), 8, deadlines)]
    assert [result.deadline_ms for result in results] == [2.0, 5.0, 9.0]
    assert [set(r.nodes) for r in results] == [{"tiny"}, {"medium"}, {"large"}]


def test_deadlines_without_end_last_as_long_as_the_images(session: Any, toy: Any) -> None:
    results = session.stream(toy.images(9), 4, itertools.cycle([3.0, 5.0]))
    assert [result.deadline_ms for result in results] == [3.0, 5.0, 3.0]


@pytest.mark.parametrize("deadline", [5, np.float32(5), torch.tensor(5.0), np.array(5.0)])
def test_a_number_is_every_groups_deadline(session: Any, toy: Any, deadline: Any) -> None:
    results = session.stream(toy.images(16), 8, deadline)
    assert [result.deadline_ms for result in results] == [5.0, 5.0]


def test_a_callable_is_asked_just_before_its_group(session: Any, toy: Any) -> None:
    asked: list[int] = []

    def deadline(group: int) -> float:
        asked.append(group)
        return 5.0

    results = session.stream(toy.images(16), 8, deadline)
    assert asked == []
    next(results)
    assert asked == [0]


def test_too_few_deadlines_are_told_at_the_call_where_it_can_be_known(
    session: Any, toy: Any
) -> None:
    with pytest.raises(DeadlineError, match="2 deadlines for 3 groups"):
        session.stream(toy.images(9), 4, [5.0, 5.0])
    results = session.stream(toy.images(9), 4, iter([5.0, 5.0]))
    assert sizes(itertools.islice(results, 2)) == [4, 4]
    with pytest.raises(DeadlineError, match="end after 2 groups"):
        next(results)


def test_a_bad_deadline_of_a_later_group_is_told_when_it_comes(session: Any, toy: Any) -> None:
    results = session.stream(toy.images(16), 8, lambda group: 5.0 - 5.0 * group)
    next(results)
    with pytest.raises(DeadlineError, match="fastest route of toy"):
        next(results)


# --- what is refused at the call ----------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, 2.5, "8", None, True])
def test_an_impossible_group_size_is_refused(session: Any, toy: Any, size: Any) -> None:
    with pytest.raises(ConfigError, match="group_size"):
        session.stream(toy.images(8), size, 5.0)


@pytest.mark.parametrize(
    "deadline",
    [0, -1.0, math.nan, None, "soon", [5.0, 0.0], (5.0, "soon"), {5.0: 1}, np.array([5.0, -1.0])],
)
def test_an_impossible_deadline_is_refused(session: Any, toy: Any, deadline: Any) -> None:
    with pytest.raises(DeadlineError):
        session.stream(toy.images(8), 4, deadline)


@pytest.mark.parametrize("deadline", [lambda: 5.0, lambda group, more: 5.0])
def test_a_callable_that_takes_no_group_is_refused(session: Any, toy: Any, deadline: Any) -> None:
    with pytest.raises(DeadlineError, match="callable"):
        session.stream(toy.images(8), 4, deadline)


@pytest.mark.parametrize("images", [None, 5, "photos", {"images": 1}])
def test_what_holds_no_images_is_refused(session: Any, images: Any) -> None:
    with pytest.raises(ImageError) as refused:
        session.stream(images, 4, 5.0)
    assert refused.value.expected == "an array, a tensor, or an iterable of them."


def test_wrong_images_are_refused(session: Any, toy: Any) -> None:
    images = toy.images(8)
    for wrong in (images[:0], images[0], images[:, :, :8], images.astype(float), [images[0, 0]]):
        with pytest.raises(ImageError):
            session.stream(wrong, 4, 5.0)
    with pytest.raises(ConfigError, match="layout"):
        session.stream(iter(images), 4, 5.0, layout="CHWN")


def test_a_wrong_image_in_an_iterable_is_told_as_it_comes(session: Any, toy: Any) -> None:
    results = session.stream(iter([*toy.images(2), "a path"]), 2, 5.0)
    next(results)
    with pytest.raises(ImageError, match="images are a str"):
        next(results)


def test_a_closed_session_streams_nothing(session: Any, toy: Any) -> None:
    results = session.stream(toy.images(8), 4, 5.0)
    session.close()
    with pytest.raises(SessionClosed):
        next(results)
    with pytest.raises(SessionClosed):
        session.stream(toy.images(8), 4, 5.0)
