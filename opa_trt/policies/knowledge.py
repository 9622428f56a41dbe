"""What the build learned about accuracy, as arrays, evaluated with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from opa_trt.errors import BundleCorrupt
from opa_trt.policies.evidence import ascending_powers
from opa_trt.policies.thresholds import Chain, chains_from_arrays, chains_to_arrays

Floats = npt.NDArray[np.float32]
REMEMBERED = 1024  # estimates whose predictions are kept
TYPICAL = "typical/"  # before the node's name
_PARTS = ("prior", "weight")  # of an estimator


@dataclass(frozen=True)
class Estimator:
    """Multinomial naive Bayes that says of each image whether the pioneer is right (OPA, IV-B).

    Args:
        prior: ``[2] float32`` log prior of wrong and right.
        weight: ``[2, C] float32`` log probability of each sorted, scaled confidence.
    """

    prior: Floats
    weight: Floats

    def right(self, logits: Floats) -> npt.NDArray[np.bool_]:
        """``[N] bool``: whether the pioneer's ``[N, C]`` logits are judged right."""
        return self.judged(ascending_powers(logits))

    def judged(self, powers: Floats) -> npt.NDArray[np.bool_]:
        """``right``, of logits whose ``ascending_powers`` are known.

        That is ``scaled_sorted(confidences(logits))`` times the difference of the weights. Scaling
        undoes the division by the softmax's sum, and commutes with sorting and weighing, so it is
        left to the N scores: a group of 1,000 classes takes half the time.
        """
        ascending, total = self._difference
        lowest = powers[:, 0]
        score = (powers @ ascending - lowest * total) / np.maximum(1 - lowest, np.float32(1e-12))
        result: npt.NDArray[np.bool_] = score + (self.prior[1] - self.prior[0]) > 0
        return result

    @cached_property
    def _difference(self) -> tuple[Floats, np.float32]:
        """What a sorted confidence says for right rather than wrong, ascending, and its sum."""
        difference = np.ascontiguousarray((self.weight[1] - self.weight[0])[::-1])
        return difference, difference.sum()

    def accuracy(self, logits: Floats) -> float:
        """Estimated accuracy of the pioneer on this group, 0 to 1."""
        return share(self.right(logits))


def share(judged: npt.NDArray[np.bool_]) -> float:
    """How many of a group's images were judged right, 0 to 1."""
    return int(np.count_nonzero(judged)) / len(judged)


@dataclass(frozen=True)
class Predictor:
    """Three hidden layers: (pioneer's estimated accuracy, arch) to a tail's accuracy (OPA, IV-C).

    Args:
        weights: of each layer, ``[in, out] float32``.
        biases: of each layer, ``[out] float32``.
    """

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]

    def accuracies(self, estimated: float, codes: Floats) -> Floats:
        """``[T] float32`` accuracies (0 to 1) for the archs ``codes [T, E] float32``."""
        return self.of(codes)(estimated).copy()

    def of(self, codes: Floats) -> Callable[[float], Floats]:
        """``accuracies`` for these archs: what depends on them alone is computed once.

        A group of N images has N + 1 estimates, so answers are remembered; they are read-only.
        """
        column, rest = self.weights[0][0], self.weights[0][1:]
        start = codes @ rest + self.biases[0]
        layers = [*zip(self.weights[1:], self.biases[1:], strict=True)]

        @lru_cache(maxsize=REMEMBERED)
        def accuracies(estimated: float) -> Floats:
            out: Floats = start + np.float32(estimated) * column
            for weight, bias in layers:
                np.maximum(out, 0, out=out)
                out = out @ weight
                out += bias
            result = out[:, 0]
            np.maximum(result, 0, out=result)
            np.minimum(result, 1, out=result)
            result.flags.writeable = False
            return result

        return accuracies


@dataclass(frozen=True)
class Rightness:
    """Logistic models: what one node's logits say of an image to how likely nodes are right on it.

    Args:
        nodes: names, in the order of the columns.
        weight: ``[F, nodes] float32``, for what ``evidence`` gives.
        bias: ``[nodes] float32``.
    """

    nodes: tuple[str, ...]
    weight: Floats
    bias: Floats

    def probabilities(self, evidence: Floats) -> Floats:
        """``[N, nodes] float32``, 0 to 1, of ``evidence [N, F] float32``.

        A node's column is contiguous, as those who compare nodes want it.
        """
        found: Floats = self.weight.T @ evidence.T
        found += self.bias[:, None]
        found *= np.float32(0.5)
        np.tanh(found, out=found)  # the logistic function of twice as much, and never overflows
        found += 1
        found *= np.float32(0.5)
        return found.T

    def of(self, nodes: Sequence[str]) -> Rightness | None:
        """The models of these nodes alone, in this order; None where one is missing."""
        if not set(nodes) <= set(self.nodes):
            return None
        columns = [self.nodes.index(name) for name in nodes]
        weight = np.ascontiguousarray(self.weight[:, columns])
        return Rightness(tuple(nodes), weight, self.bias[columns])


@dataclass(frozen=True)
class Knowledge:
    """All that policies know beyond the view.

    Args:
        estimators: by the node whose logits they read, an entry.
        predictor: of every tail's accuracy, whatever its entry: archs say their resolution.
        codes: archs by node.
        rightness: by the node whose logits are read how likely it and others are right (none in
            bundles built earlier).
        chains: thresholds by system.
        typical: by the node whose logits are read the ``evidence [K, F]`` of images such as those
            that the rest was fitted on, by ascending log-odds.
    """

    estimators: Mapping[str, Estimator]
    predictor: Predictor
    codes: Mapping[str, Floats]
    rightness: Mapping[str, Rightness] = field(default_factory=dict)
    chains: Mapping[str, Chain] = field(default_factory=dict)
    typical: Mapping[str, Floats] = field(default_factory=dict)

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """All but the archs, which stand in the manifest, as named arrays."""
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for source, estimator in self.estimators.items():
            arrays[f"estimator/{source}/prior"] = estimator.prior
            arrays[f"estimator/{source}/weight"] = estimator.weight
        for i, (weight, bias) in enumerate(
            zip(self.predictor.weights, self.predictor.biases, strict=True)
        ):
            arrays |= {f"predictor/{i}/weight": weight, f"predictor/{i}/bias": bias}
        for source, model in self.rightness.items():
            for column, name in enumerate(model.nodes):
                key = f"rightness/{source}/{name}"
                arrays[f"{key}/weight"] = model.weight[:, column]
                arrays[f"{key}/bias"] = model.bias[column : column + 1]
        arrays |= {f"{TYPICAL}{source}": rows for source, rows in self.typical.items()}
        return arrays | chains_to_arrays(self.chains)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], codes: Mapping[str, Floats]) -> Knowledge:
        """Read what ``to_arrays`` made; ``codes`` names all nodes, in the manifest's order.

        Raises:
            BundleCorrupt: an array is missing.
        """
        layers = sum(key.startswith("predictor/") and key.endswith("weight") for key in arrays)
        try:
            return cls(
                _estimators(arrays, tuple(codes)),
                Predictor(
                    tuple(arrays[f"predictor/{i}/weight"] for i in range(layers)),
                    tuple(arrays[f"predictor/{i}/bias"] for i in range(layers)),
                ),
                codes,
                _rightness(arrays, tuple(codes)),
                chains_from_arrays(arrays),
                _typical(arrays, tuple(codes)),
            )
        except KeyError as exc:
            message = f"the profile lacks the array {exc}."
            raise BundleCorrupt(message, remedy="build the bundle again.") from exc


def _estimators(arrays: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, Estimator]:
    """By the node whose logits are read; KeyError where one is in parts or there is none.

    Bundles built earlier have one without a name: it reads the logits of every node.
    """
    keys = {source: f"estimator/{source}" for source in nodes}
    if not any(f"{key}/{part}" in arrays for key in keys.values() for part in _PARTS):
        return dict.fromkeys(nodes, Estimator(*(arrays[f"estimator/{part}"] for part in _PARTS)))
    return {
        source: Estimator(*(arrays[f"{key}/{part}"] for part in _PARTS))
        for source, key in keys.items()
        if any(f"{key}/{part}" in arrays for part in _PARTS)
    }


def _typical(arrays: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, Floats]:
    """By the node whose logits are read; none in bundles built earlier."""
    keys = {source: f"{TYPICAL}{source}" for source in nodes}
    return {source: arrays[key] for source, key in keys.items() if key in arrays}


def _rightness(arrays: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, Rightness]:
    """By the node whose logits are read; KeyError where a bias is missing."""
    found = {}
    for source in nodes:
        keys = {name: f"rightness/{source}/{name}" for name in nodes}
        known = [name for name, key in keys.items() if f"{key}/weight" in arrays]
        if known:
            weight = np.stack([arrays[f"{keys[name]}/weight"] for name in known], axis=1)
            bias = np.concatenate([arrays[f"{keys[name]}/bias"] for name in known])
            found[source] = Rightness(tuple(known), weight, bias)
    return found
