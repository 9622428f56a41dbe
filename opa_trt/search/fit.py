"""Train the accuracy predictor on measured archs (OFA, section 3.3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opa_trt.errors import ConfigError
from opa_trt.progress import Progress
from opa_trt.search.accuracy_predictor import AccuracyPredictor, Floats, Layer
from opa_trt.supernet import Genome, Population

FEWEST = 20  # pairs; of fewer no share that is held out says anything
HELD_OUT = 0.2  # of all pairs
CHOOSING = 0.1  # of the rest
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FitSettings:
    """The network and how it is trained; what OFA's authors found to work.

    Args:
        hidden: widths of its hidden layers.
        learning_rate: of Adam.
        weight_decay: of every weight and bias, added to the gradient.
        batch_size: pairs a step.
        most_epochs: it stops there in any case.
        patience: epochs without a smaller error on the pairs that choose, after which it stops.
    """

    hidden: tuple[int, ...] = (400, 400, 400)
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 64
    most_epochs: int = 400
    patience: int = 60


@dataclass(frozen=True)
class Split:
    """Which pairs are fitted, which choose the number of epochs, and which judge."""

    fitted: Places
    choosing: Places
    held_out: Places


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained predictor.

    Args:
        predictor: with the layers of its best epoch, and no facts.
        split: what was held out from it.
        predicted: accuracies ``[H] float32`` of the archs held out.
        epochs: after how many it was best.
    """

    predictor: AccuracyPredictor
    split: Split
    predicted: Floats
    epochs: int


def split_pairs(count: int, seed: int) -> Split:
    """A random split of ``count`` pairs.

    Raises:
        ConfigError: fewer than ``FEWEST``.
    """
    if count < FEWEST:
        message = f"{count} archs to fit an accuracy predictor on."
        raise ConfigError(
            message,
            expected=f"at least {FEWEST}; 1,000 or more are better.",
            remedy="ask for more archs; a space that has no more can be measured whole instead.",
        )
    order = np.random.default_rng([seed, 61]).permutation(count)
    held_out = round(HELD_OUT * count)
    choosing = max(1, round(CHOOSING * (count - held_out)))
    return Split(
        fitted=order[held_out + choosing :],
        choosing=order[held_out : held_out + choosing],
        held_out=order[:held_out],
    )


def fit(
    genome: Genome,
    population: Population,
    accuracy: npt.ArrayLike,
    *,
    name: str = "predictor",
    seed: int = 0,
    settings: FitSettings | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Train a multilayer perceptron on the one-hot archs to predict their accuracy.

    Every draw follows from ``seed``: the same pairs give the same layers at one thread.

    Args:
        genome: of the space, with all its resolutions.
        population: the archs, ``[P, G]``.
        accuracy: theirs, ``[P]``, 0 to 1.
        name: of the predictor, for messages.
        seed: of the split, the first weights and the order of the pairs.
        settings: the network and its training.
        progress: hears of epochs.

    Raises:
        ConfigError: fewer than ``FEWEST`` pairs.
    """
    settings, split = settings or FitSettings(), split_pairs(len(population), seed)
    codes = torch.from_numpy(genome.one_hot(population))
    truth = torch.from_numpy(np.asarray(accuracy, dtype=np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(codes.shape[1], settings.hidden, float(truth[split.fitted].mean()))
        epochs = _train(network, codes, truth, split, settings, progress or Progress())
    resolutions = tuple(int(side) for side in genome.genes[0].choices)
    predictor = AccuracyPredictor(name, _layers(network), resolutions, genome.space)
    return Fit(predictor, split, predictor.bind(genome)(population[split.held_out]), epochs)


def _network(inputs: int, hidden: Sequence[int], mean: float) -> nn.Sequential:
    """The network; what it predicts begins at the mean accuracy."""
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    last = nn.Linear(hidden[-1], 1)
    nn.init.constant_(last.bias, mean)
    return nn.Sequential(*layers, last)


def _train(
    network: nn.Sequential,
    codes: Tensor,
    truth: Tensor,
    split: Split,
    settings: FitSettings,
    progress: Progress,
) -> int:
    """Train in place, and leave the weights of the best epoch; says which that was."""
    optimizer = torch.optim.Adam(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    fitted = torch.from_numpy(split.fitted)
    chosen_by = codes[split.choosing], truth[split.choosing]
    best, least, state = 0, _error(network, *chosen_by), copy.deepcopy(network.state_dict())
    for epoch in range(1, settings.most_epochs + 1):
        for rows in torch.split(fitted[torch.randperm(len(fitted))], settings.batch_size):
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(network(codes[rows])[:, 0], truth[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        error = _error(network, *chosen_by)
        progress.advance(epoch, f"RMSE {100 * error**0.5:.2f} points")
        if error < least:
            best, least, state = epoch, error, copy.deepcopy(network.state_dict())
        elif epoch - best >= settings.patience:
            break
    network.load_state_dict(state)
    return best


@torch.no_grad()
def _error(network: nn.Sequential, codes: Tensor, truth: Tensor) -> float:
    return float(F.mse_loss(network(codes)[:, 0], truth))


def _layers(network: nn.Sequential) -> list[Layer]:
    return [
        (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
        for layer in network
        if isinstance(layer, nn.Linear)
    ]
