"""Images in groups, each with its deadline, checked before the first is answered."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from opa_trt.bundle import ImageSpec
from opa_trt.errors import ConfigError, DeadlineError, ImageError
from opa_trt.runtime.images import LAYOUTS, check_deadline, check_images

Fastest: TypeAlias = Callable[[], str]


def check_group_size(size: Any) -> int:
    """How many images a group has.

    Raises:
        ConfigError: not a whole number of at least 1.
    """
    if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
        message = f"group_size = {size!r}."
        raise ConfigError(message, expected="a whole number of at least 1.")
    return int(size)


def grouped(images: Any, size: int, spec: ImageSpec, layout: str | None) -> Iterator[Any]:
    """``images`` in groups of ``size``, the last of what is left, as ``Session.infer`` takes them.

    An array's first image is checked now; what comes out of an iterable is checked as it comes.

    Raises:
        ImageError: not images, nor an iterable; or the first of them is wrong.
        ConfigError: an unknown layout.
    """
    if layout is not None and layout not in LAYOUTS:
        message = f"layout {layout!r}."
        raise ConfigError(message, expected=f"one of {', '.join(LAYOUTS)}.")
    if isinstance(images, np.ndarray | Tensor):
        check_images(images[:1] if images.ndim == 4 else images, spec, layout)
        return (images[first : first + size] for first in range(0, len(images), size))
    if isinstance(images, str | bytes | Mapping) or not isinstance(images, Iterable):
        message = f"images are a {type(images).__name__}."
        raise ImageError(message, expected="an array, a tensor, or an iterable of them.")
    if isinstance(images, list | tuple) and images:
        _piece(images[0], spec, layout)
    return _regrouped(iter(images), size, spec, layout)


def group_count(images: Any, size: int) -> int | None:
    """Into how many groups ``images`` go; None where only the end of an iterable tells."""
    known = isinstance(images, np.ndarray | Tensor) and images.ndim == 4
    return -(-len(images) // size) if known else None


def each_deadline(deadline_ms: Any, groups: int | None, fastest: Fastest) -> Iterator[float]:
    """A deadline in ms for every group.

    Args:
        deadline_ms: a number for all groups; a callable that is given a group's number, from 0,
            just before the group is answered; or an iterable of numbers.
        groups: how many there will be, where that is known.
        fastest: what this machine can do, for messages.

    Raises:
        DeadlineError: not a deadline, or too few of them.
    """
    if callable(deadline_ms):
        _check_signature(deadline_ms)
        return (check_deadline(deadline_ms(number), fastest) for number in itertools.count())
    if isinstance(deadline_ms, np.ndarray | Tensor):
        deadline_ms = deadline_ms.tolist()  # a list, or one number
    if isinstance(deadline_ms, str | bytes | Mapping) or not isinstance(deadline_ms, Iterable):
        return itertools.repeat(check_deadline(deadline_ms, fastest))
    if isinstance(deadline_ms, list | tuple):
        deadline_ms = [check_deadline(value, fastest) for value in deadline_ms]
    if groups is not None and isinstance(deadline_ms, Sized) and len(deadline_ms) < groups:
        message = f"{len(deadline_ms)} deadlines for {groups} groups."
        raise DeadlineError(message, expected="one for every group.")
    return _each(deadline_ms, fastest)


def _each(deadlines: Iterable[Any], fastest: Fastest) -> Iterator[float]:
    count = 0
    for deadline in deadlines:
        yield check_deadline(deadline, fastest)
        count += 1
    message = f"the deadlines end after {count} groups, and there are more images."
    raise DeadlineError(message, expected="one for every group.")


def _regrouped(
    items: Iterator[Any], size: int, spec: ImageSpec, layout: str | None
) -> Iterator[Tensor]:
    kept: list[Tensor] = []
    count = 0
    for item in items:
        piece = _piece(item, spec, layout)
        while count + len(piece) >= size:
            missing = size - count
            yield _joined([*kept, piece[:missing]])
            kept, count, piece = [], 0, piece[missing:]
        if len(piece):
            kept.append(piece.clone())  # whoever gave it may use the memory for the next
            count += len(piece)
    if kept:
        yield _joined(kept)


def _piece(item: Any, spec: ImageSpec, layout: str | None) -> Tensor:
    """One image or a batch as ``[N, 3, S, S]``."""
    alone = isinstance(item, np.ndarray | Tensor) and item.ndim == 3
    return check_images(item[None] if alone else item, spec, layout)


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _check_signature(deadline: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(deadline)
    except (TypeError, ValueError):  # some of C have none
        return
    try:
        signature.bind(0)
    except TypeError as exc:
        message = f"deadline_ms is a callable {signature}."
        raise DeadlineError(message, expected="one that takes the number of a group.") from exc
