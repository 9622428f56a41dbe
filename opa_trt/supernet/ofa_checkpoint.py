"""The tensors of a published checkpoint of OFA, whichever style its keys are in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opa_trt.errors import CheckpointError

CLASSIFIER = "classifier.linear.bias"  # normalised, in every space
COUNTER = "num_batches_tracked"
PREFIX = "module."  # before every key where the network was wrapped to train on many devices
REPEATED = ("conv", "bn", "linear")  # components that some styles repeat
NAMED = 3  # how many tensors an error names


@dataclass(frozen=True)
class Given:
    """A tensor of a checkpoint and its key there."""

    key: str
    tensor: Tensor


@dataclass(frozen=True)
class OfaCheckpoint:
    """Tensors by normalised key."""

    tensors: Mapping[str, Given]

    @property
    def classes(self) -> int | None:
        """How many classes the classifier tells apart; None where there is no classifier."""
        found = self.tensors.get(CLASSIFIER)
        if found is None or found.tensor.ndim != 1:
            return None
        return len(found.tensor) or None


def normalised(key: str) -> str:
    """``key`` in one style: ``conv`` for ``mobile_inverted_conv``, and no ``conv.conv``."""
    parts = ["conv" if part == "mobile_inverted_conv" else part for part in key.split(".")]
    pairs = zip(parts, [None, *parts], strict=False)
    return ".".join(part for part, before in pairs if part != before or part not in REPEATED)


def read_checkpoint(state_dict: object) -> OfaCheckpoint:
    """The tensors of ``state_dict``, which may be inside ``{"state_dict": …}``; nothing is copied.

    Raises:
        CheckpointError: no state dict, values that are no tensors of floats, or two keys that
            mean the same.
    """
    inner = state_dict.get("state_dict") if isinstance(state_dict, Mapping) else None
    tensors = _tensors(state_dict if inner is None else inner)
    prefix = PREFIX if all(key.startswith(PREFIX) for key in tensors) else ""
    found: dict[str, Given] = {}
    for key, tensor in tensors.items():
        name = normalised(key.removeprefix(prefix))
        if name in found:
            msg = f"the checkpoint has two tensors for {name}: {found[name].key} and {key}."
            raise CheckpointError(msg, expected="one key for each tensor.")
        found[name] = Given(key, tensor)
    return OfaCheckpoint(found)


def ofa_classes(state_dict: Mapping[str, Any]) -> int:
    """How many classes the classifier of OFA's weights tells apart.

    Raises:
        CheckpointError: no classifier, or as ``read_checkpoint`` says.
    """
    classes = read_checkpoint(state_dict).classes
    if classes is None:
        msg = f"the checkpoint has no {CLASSIFIER}."
        raise CheckpointError(msg, expected="a checkpoint of once-for-all.")
    return classes


def listed(keys: Iterable[object]) -> str:
    """The first few, and a mark where there are more."""
    first = [str(key) for key in itertools.islice(keys, NAMED + 1)]
    return ", ".join(first[:NAMED]) + (" …" if len(first) > NAMED else "")


def _tensors(state_dict: object) -> Mapping[str, Tensor]:
    expected = "a state dict: tensors of floats by key."
    if not isinstance(state_dict, Mapping) or not state_dict:
        kind = "nothing" if isinstance(state_dict, Mapping) else type(state_dict).__name__
        msg = f"the checkpoint holds {kind}."
        raise CheckpointError(msg, expected=expected)
    wrong = [key for key, value in state_dict.items() if not _is_usable(key, value)]
    if wrong:
        msg = f"the checkpoint has {len(wrong)} values of other kinds: {listed(wrong)}."
        raise CheckpointError(msg, expected=expected)
    return state_dict


def _is_usable(key: object, value: object) -> bool:
    if not isinstance(key, str) or not isinstance(value, Tensor):
        return False
    dense = value.layout is torch.strided and not value.is_meta
    return dense and (value.is_floating_point() or key.endswith(COUNTER))
