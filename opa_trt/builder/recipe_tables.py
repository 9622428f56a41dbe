"""The tables of a recipe, as frozen values with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataRecipe:
    """Where images come from. ``source`` is ``digits`` or ``folder`` (then ``--data`` names it)."""

    source: str = "folder"
    size: int = 32
    holdout: float = 0.1
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    degradations: tuple[str, ...] = ()
    clean: float = 0.25
    float_images: bool = False

    @property
    def dtype(self) -> str:
        """Of the images that a bundle takes."""
        return "float32" if self.float_images else "uint8"


@dataclass(frozen=True)
class LegacyRecipe:
    """A trained network that gets shallow phases, instead of a space; none where ``network`` is
    empty.

    ``network`` is ``small_resnet``, a torchvision network with ready phases, or
    ``package.module:function``, called with the number of classes and ``options``. ``weights`` is
    a ``.safetensors`` file, or the name of torchvision's.
    """

    network: str = ""
    classes: int = 1000
    weights: str = ""
    phases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    ratio: float = 0.25
    divisor: int = 8


@dataclass(frozen=True)
class PioneerRecipe:
    """The pioneers: their stages' choices and the training of their exit heads.

    There is one for each of ``resolutions`` (none: the space's largest alone). 0 stages leave the
    shape to a study, whatever depth, kernel size and expand ratio say. Of a legacy network they
    are the first ``stages`` phases, and have no choices.
    """

    stages: int = 2
    resolutions: tuple[int, ...] = ()
    depth: int = 2
    kernel_size: int = 3
    expand_ratio: float = 4.0
    head_width: int = 128
    images: int = 4000
    epochs: int = 15
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class TailsRecipe:
    """For each pioneer, how many tails, out of how many candidates measured on how many images.

    With ``complete`` there is one more pioneer, the smallest of ``baselines.whole`` complete
    sub-networks; its tails are the larger ones, which read the images again. What it computed is
    computed anew, but nothing that comes after it has to begin as it does.
    """

    count: int = 12
    candidates: int = 48
    images: int = 1000
    complete: bool = False


@dataclass(frozen=True)
class CalibrateRecipe:
    """Batch-norm calibration: the batch size matters (OFA's is 200)."""

    images: int = 2000
    batch: int = 200


@dataclass(frozen=True)
class CompileRecipe:
    """Backends (``auto``: the fastest for each segment), precision, batch range, threads.

    ``precision`` holds for backends that have it; others compile for fp32. 0 threads: all cores.
    """

    backends: tuple[str, ...] = ("auto",)
    precision: str = "fp32"
    max_batch: int = 128
    threads: int = 0


@dataclass(frozen=True)
class MeasureRecipe:
    """Batch buckets of the latency profile and the seconds spent on each engine and bucket."""

    buckets: tuple[int, ...] = (1, 8, 32, 64, 128)
    seconds: float = 0.3


@dataclass(frozen=True)
class FitRecipe:
    """Images (drawn anew with degradations), groups and group size for estimator and predictor."""

    images: int = 4000
    groups: int = 400
    group_size: int = 100


@dataclass(frozen=True)
class BaselinesRecipe:
    """What ``opa`` is compared with, in the same bundle; 0 leaves a system out.

    ``whole`` complete sub-networks out of the whole space, which ``opa_split`` may take, too; a
    ``cascade`` of some of them, and ``branchynet`` exits along the largest tail's network.
    """

    whole: int = 0
    cascade: int = 0
    branchynet: int = 0
