"""The accuracy of many archs of a super-network, each calibrated, on images held out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np

from opa_trt.builder.pairs_file import Pair, PairsFile
from opa_trt.errors import DataError
from opa_trt.progress import Progress
from opa_trt.supernet import Arch, Supernet
from opa_trt.training.batches import Source
from opa_trt.training.data import Images, Splits
from opa_trt.training.evaluation import CALIBRATION_BATCH, batches, measured_accuracy

# More images cost more than all the rest, and move an arch's accuracy by a fifth of what
# archs differ by (digits: 0.24 points against 1.4; the held-out images matter far more).
CALIBRATION_IMAGES = 400


def held_out_images(images: Images, source: Source, count: int, seed: int) -> Images:
    """``count`` of the images, drawn evenly, each as often as any other.

    Where the source degrades them an image comes more than once if need be, degraded anew each
    time; otherwise ``count`` is at most as many as there are.

    Raises:
        DataError: there are none.
    """
    if len(images) == 0:
        message = "no images are held out to measure archs on."
        raise DataError(message, remedy="raise data.holdout in the recipe.")
    order = np.random.default_rng([seed, 71]).permutation(len(images))
    repeats = -(-count // len(images)) if source.degradations else 1
    return images.select(np.tile(order, repeats)[:count])


def run_facts(
    supernet: Supernet, weights: str, source: Source, splits: Splits, images: int, seed: int
) -> dict[str, Any]:
    """What measured accuracies depend on, for ``PairsFile``; ``weights`` is their sha256."""
    return {
        "space": supernet.space.to_dict(),
        "weights": weights,
        "source": asdict(source),
        "train_images": splits.train.digest(),
        "held_out_images": splits.fit.digest(),
        "images": images,
        "calibration": [CALIBRATION_IMAGES, CALIBRATION_BATCH],
        "seed": seed,
    }


def measure_pairs(
    supernet: Supernet,
    archs: Sequence[Arch],
    source: Source,
    train_images: Images,
    check_images: Images,
    file: PairsFile,
    progress: Progress | None = None,
) -> list[Pair]:
    """The accuracy of every arch, those in ``file`` read and the others measured and added to it.

    The largest resolution comes first: a time that is foretold is then rather too long, and
    inputs, made once a resolution, find their memory at once or not at all.

    Args:
        supernet: the weights, in evaluation mode.
        archs: which, no two alike.
        source: how images become inputs.
        train_images: what batch norm is calibrated on (``CALIBRATION_IMAGES`` of them).
        check_images: what accuracy is measured on, all of them.
        file: where pairs are kept.
        progress: hears of archs done.

    Returns:
        A pair an arch, in the order of ``archs``.

    Raises:
        CheckpointError: the file is of another run, damaged, or no file of pairs.
    """
    progress = progress or Progress()
    known = {pair.arch: pair for pair in file.resume()}
    missing = sorted((a for a in archs if a not in known), key=lambda a: -a.resolution)
    done = len(archs) - len(missing)
    progress.advance(done)
    for side, members in groupby(missing, key=lambda arch: arch.resolution):
        calibration = list(source.inputs(train_images, CALIBRATION_IMAGES, CALIBRATION_BATCH, side))
        labelled = list(batches(source, check_images, side))
        for arch in members:
            begun = time.perf_counter()
            accuracy = measured_accuracy(supernet, arch, calibration, labelled)
            known[arch] = Pair(arch, accuracy, time.perf_counter() - begun)
            file.append(known[arch])
            done += 1
            progress.advance(done, f"{100 * accuracy:.1f} %")
    return [known[arch] for arch in archs]
