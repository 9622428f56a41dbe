"""Accuracy of archs, predicted: once-for-all's published network (``.npz``) and our own.

A multilayer perceptron on the one-hot arch and resolution (OFA, section 3.3), in plain numpy, for
a whole population at a time. ``search.fit`` trains one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from opa_trt import atomic
from opa_trt.errors import CheckpointError, ConfigError
from opa_trt.supernet import Genome, Population, Space, space_from_dict
from opa_trt.supernet.checkpoint import FileKind, read_file

FORMAT = "opa_trt.accuracy"
VERSION = 1
PUBLISHED_RESOLUTIONS = tuple(range(112, 225, 16))
FIT = "opa-trt search fit-accuracy"
KIND = FileKind(FORMAT, VERSION, "an accuracy predictor's weights", f"`{FIT}`")

Floats = npt.NDArray[np.float32]
Accuracy = Callable[[Population], Floats]
Layer = tuple[Floats, Floats]  # weight [out, in] and bias [out]


@dataclass(frozen=True, eq=False)
class AccuracyPredictor:
    """Layers with ReLU between them; the last has one output, the accuracy (0 to 1).

    Args:
        name: for messages.
        layers: weight ``[out, in]`` and bias ``[out]`` of each, float32.
        resolutions: what the last inputs stand for, one each.
        space: what it was fitted in; None for the published one, which does not say.
        facts: how it was fitted and how well it predicts.
    """

    name: str
    layers: Sequence[Layer]
    resolutions: tuple[int, ...]
    space: Space | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """Length of the code that it reads."""
        return int(self.layers[0][0].shape[1])

    def bind(self, genome: Genome) -> Accuracy:
        """The predictor for populations of ``genome``: ``[P, G]`` to ``[P] float32``.

        Raises:
            ConfigError: the genome's codes or resolutions are not those that it was fitted on.
        """
        self._check(genome)
        sides = genome.genes[0].choices
        weight, bias = self.layers[0]
        arch = weight.shape[1] - len(self.resolutions)
        used = [*range(arch), *(arch + self.resolutions.index(int(side)) for side in sides)]
        layers = [(weight[:, used], bias), *self.layers[1:]]
        ready = [(np.ascontiguousarray(w.T), b) for w, b in layers]

        def accuracy(population: Population) -> Floats:
            found = genome.one_hot(population)
            for weight, bias in ready[:-1]:
                found = found @ weight
                found += bias
                np.maximum(found, 0.0, out=found)
            weight, bias = ready[-1]
            predicted: Floats = (found @ weight + bias)[:, 0]
            return predicted

        return accuracy

    def _check(self, genome: Genome) -> None:
        columns = genome.one_hot_columns[:-1]
        size = int(genome.counts[columns].sum())
        expected = self.inputs - len(self.resolutions)
        if size != expected:
            message = (
                f"{self.name} reads codes of {expected} + {len(self.resolutions)} inputs; "
                f"an arch of {genome.space.name} has {size}."
            )
            raise ConfigError(
                message,
                expected="a predictor of the space that is searched.",
                remedy=f"fit one with `{FIT}`.",
            )
        if missing := [r for r in genome.genes[0].choices if r not in self.resolutions]:
            message = f"{self.name} knows nothing of resolutions {missing}."
            raise ConfigError(message, expected=f"some of {list(self.resolutions)}.")
        if self.space is not None and not _same_but_resolutions(self.space, genome.space):
            message = f"{self.name} was fitted in another space: {self.space}."
            raise ConfigError(message, expected=f"{genome.space}.", remedy=f"fit one with `{FIT}`.")

    def save(self, path: Path) -> None:
        """Write it as safetensors, atomically; only one that knows its space."""
        assert self.space is not None
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "space": json.dumps(self.space.to_dict()),
            "resolutions": json.dumps(self.resolutions),
            "facts": json.dumps(dict(self.facts)),
        }
        tensors = {}
        for index, (weight, bias) in enumerate(self.layers):
            tensors[f"{index}.weight"] = np.ascontiguousarray(weight)
            tensors[f"{index}.bias"] = np.ascontiguousarray(bias)
        atomic.write_bytes(path, save(tensors, metadata=metadata))


def read_accuracy(path: Path | str) -> AccuracyPredictor:
    """Read a predictor: the published one (``.npz``) or our own (``.safetensors``).

    Raises:
        CheckpointError: no such file, or one that is no predictor.
    """
    place = Path(path)
    if not place.is_file():
        message = f"{place} {'is no file' if place.exists() else 'does not exist'}."
        raise CheckpointError(
            message,
            expected="an accuracy predictor (.npz or .safetensors).",
            remedy=f"fit one with `{FIT}`.",
        )
    if place.suffix == ".npz":
        layers = _layers(place, _read_npz(place))
        return AccuracyPredictor(place.name, layers, PUBLISHED_RESOLUTIONS)
    metadata, arrays = _read_ours(place)
    try:
        return AccuracyPredictor(
            place.name,
            _layers(place, arrays),
            tuple(map(int, json.loads(metadata["resolutions"]))),
            space_from_dict(json.loads(metadata["space"])),
            dict(json.loads(metadata["facts"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as exc:
        message = f"{place} does not describe itself: {exc}."
        raise CheckpointError(message, remedy=f"fit it again with `{FIT}`.") from exc


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as exc:  # numpy, zipfile and zlib have a dozen kinds for damaged files
        message = f"{path} is not a readable .npz file: {exc}."
        raise CheckpointError(message) from exc


def _read_ours(path: Path) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    metadata, tensors = read_file(path, KIND)
    try:
        return metadata, {key: tensor.numpy() for key, tensor in tensors.items()}
    except TypeError as exc:
        message = f"{path} holds numbers that numpy lacks: {exc}."
        raise CheckpointError(message, remedy=f"fit it again with `{FIT}`.") from exc


def _layers(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> list[Layer]:
    """The layers in order, checked to fit each other and to be finite."""
    try:
        numbers = sorted({int(key.split(".")[0]) for key in arrays})
        layers = [(_floats(arrays[f"{n}.weight"]), _floats(arrays[f"{n}.bias"])) for n in numbers]
        if not layers:
            raise KeyError
    except (KeyError, TypeError, ValueError) as exc:
        message = f"{path} holds {sorted(arrays)[:4]} …."
        expected = "weight and bias of layers: 0.weight, 0.bias, …."
        raise CheckpointError(message, expected=expected) from exc
    width = None
    for weight, bias in layers:
        fits = (
            weight.ndim == 2 and bias.shape == weight.shape[:1] and width in (None, weight.shape[1])
        )
        if not fits or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            message = f"{path} has a layer of shapes {weight.shape} and {bias.shape}."
            raise CheckpointError(message, expected="finite layers that follow from each other.")
        width = weight.shape[0]
    if width != 1:
        message = f"{path} has {width} outputs."
        raise CheckpointError(message, expected="1, the accuracy.")
    return layers


def _floats(values: npt.NDArray[Any]) -> Floats:
    """As float32; what is too large for it becomes infinite, and is refused as such."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32, casting="same_kind")


def _same_but_resolutions(one: Space, other: Space) -> bool:
    left, right = one.to_dict(), other.to_dict()
    return {**left, "resolutions": None} == {**right, "resolutions": None}
