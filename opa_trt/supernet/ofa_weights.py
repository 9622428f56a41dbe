"""OFA's published weights, exactly: super-networks from their state dicts, and back.

Source: mit-han-lab/once-for-all. Every space says how its tensors are called there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opa_trt.errors import CheckpointError
from opa_trt.supernet.ofa_checkpoint import (
    COUNTER,
    OfaCheckpoint,
    listed,
    normalised,
    read_checkpoint,
)
from opa_trt.supernet.registry import published_spaces
from opa_trt.supernet.space import Space
from opa_trt.supernet.supernet import Supernet

MATRIX = "_matrix"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfaImport:
    """A super-network with published weights, and how they were mapped.

    Args:
        supernet: in float32 and evaluation mode.
        tensors: how many came from the checkpoint.
        identities: the published keys of the kernel matrices that it lacks; they are the identity,
            as in a full network before its kernels are made elastic.
    """

    supernet: Supernet
    tensors: int
    identities: tuple[str, ...]


@dataclass(frozen=True)
class _Slot:
    """Where a tensor belongs: its key in our parts, the published one, its shape and dtype."""

    ours: str
    published: str
    empty: Tensor

    @property
    def is_matrix(self) -> bool:
        return self.published.endswith(MATRIX)

    @property
    def is_counter(self) -> bool:
        return self.published.endswith(COUNTER)


_Slots = Mapping[str, _Slot]  # by normalised key


def from_ofa_state_dict(state_dict: Mapping[str, Any], space: Space) -> Supernet:
    """The super-network of ``read_ofa_state_dict``, which says what is read and raised."""
    return read_ofa_state_dict(state_dict, space).supernet


def to_ofa_state_dict(supernet: Supernet) -> dict[str, Tensor]:
    """Copies of the weights of ``supernet`` under OFA's keys, in their newest style."""
    state = supernet.parts.state_dict()
    names = supernet.space.published_names()
    return {theirs: state[ours].clone() for ours, theirs in names.items()}


def read_ofa_state_dict(state_dict: Mapping[str, Any], space: Space) -> OfaImport:
    """Map OFA's weights onto ``space``.

    Args:
        state_dict: published keys in any style, with or without ``module.`` before all of them,
            bare or inside ``{"state_dict": …}``. Nothing of it is shared with the result.
        space: whose weights they are.

    Where a checkpoint has no kernel matrix at all, as that of a full network, they are the
    identity, with a warning in the log. Counters of batches may be absent.

    Raises:
        CheckpointError: tensors that are missing, unknown, misshapen or not finite (named), values
            that are no tensors, or two keys for one place. It says where the weights look like
            those of another published space or width.
    """
    given, slots = read_checkpoint(state_dict), _slots(space)
    absent = _absent_matrices(given, slots)
    _check_fit(given, slots, space, absent)
    _check_finite(given, slots)
    supernet = Supernet(space)
    state = supernet.parts.state_dict()
    state.update({slots[key].ours: found.tensor for key, found in given.tensors.items()})
    state.update({slots[key].ours: torch.eye(len(slots[key].empty)) for key in absent})
    supernet.parts.load_state_dict(state)
    identities = tuple(slots[key].published for key in absent)
    if identities:
        _log.warning("the checkpoint has no kernel matrices: all %d are the identity", len(absent))
    return OfaImport(supernet.eval(), len(given.tensors), identities)


# --- what a space wants ---------------------------------------------------------------------------


def _slots(space: Space) -> _Slots:
    with torch.device("meta"):  # shapes alone
        state = nn.ModuleDict(space.elastic_parts()).state_dict()
    names = space.published_names().items()
    return {normalised(theirs): _Slot(ours, theirs, state[ours]) for ours, theirs in names}


def _absent_matrices(given: OfaCheckpoint, slots: _Slots) -> list[str]:
    """All kernel matrices where the checkpoint has none; some of them must not be missing."""
    matrices = [key for key, slot in slots.items() if slot.is_matrix]
    return [] if any(key in given.tensors for key in matrices) else matrices


def _misshapen(given: OfaCheckpoint, slots: _Slots) -> list[str]:
    return [
        f"{found.key} {list(found.tensor.shape)} for {list(slots[key].empty.shape)}"
        for key, found in given.tensors.items()
        if key in slots and found.tensor.shape != slots[key].empty.shape
    ]


def _check_fit(given: OfaCheckpoint, slots: _Slots, space: Space, absent: Iterable[str]) -> None:
    wanted = {key: slot for key, slot in slots.items() if not slot.is_counter and key not in absent}
    problems = {
        "lacks": [slot.published for key, slot in wanted.items() if key not in given.tensors],
        "has unknown": [found.key for key, found in given.tensors.items() if key not in slots],
        "has misshapen": _misshapen(given, slots),
    }
    told = [f"{what} {len(keys)}: {listed(keys)}" for what, keys in problems.items() if keys]
    if told:
        msg = f"the checkpoint {'; '.join(told)}."
        expected = f"the tensors of {_described(space)}."
        raise CheckpointError(msg, expected=expected, remedy=_remedy(given, space))


def _check_finite(given: OfaCheckpoint, slots: _Slots) -> None:
    wrong = [
        found.key
        for key, found in given.tensors.items()
        if not found.tensor.to(slots[key].empty.dtype).isfinite().all()
    ]
    if wrong:
        msg = f"the checkpoint has NaN or infinity in {len(wrong)} tensors: {listed(wrong)}."
        raise CheckpointError(msg, expected="finite float32.", remedy="download the file again.")


# --- which space it looks like --------------------------------------------------------------------


def _remedy(given: OfaCheckpoint, asked: Space) -> str:
    for space in published_spaces(given.classes) if given.classes else []:
        if space != asked and _resembles(given, _slots(space)):
            return f"it looks like {_described(space)}: name that."
    return "give the whole checkpoint of a super-network, not of a network specialised from it."


def _resembles(given: OfaCheckpoint, slots: _Slots) -> bool:
    """Whether all that is given belongs there, and is more than half of it."""
    needed = [key for key, slot in slots.items() if not slot.is_matrix and not slot.is_counter]
    belongs = given.tensors.keys() <= slots.keys() and not _misshapen(given, slots)
    return belongs and 2 * sum(key in given.tensors for key in needed) > len(needed)


def _described(space: Space) -> str:
    """``mobilenet_v3 of width 1.2, 1000 classes``."""
    width = space.to_dict().get("width")
    wide = "" if width is None else f" of width {width}"
    return f"{space.name}{wide}, {space.classes} classes"
