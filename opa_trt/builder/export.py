"""One sub-network out of a super-network: extracted, calibrated, folded, written, compared."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from opa_trt import atomic
from opa_trt.builder.export_formats import ExportForm, Subnet, export_form
from opa_trt.builder.outputs import check_output
from opa_trt.errors import ConfigError, DataError, ParityError
from opa_trt.progress import Progress
from opa_trt.supernet import Arch, Space, Supernet, load, read_arch
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.fold import fold
from opa_trt.training.batches import Source
from opa_trt.training.data import Images, read_images
from opa_trt.training.digits import load_digits
from opa_trt.training.folder import image_files

DIGITS = "digits"
DIGITS_SIZE = 32  # the side that the bundled digits are brought to before a network's own
IMAGES, BATCH, SEED = 2000, 200, 0  # OFA's calibration, and what draws the images
BATCH_SIZES = (1, 2, 5)  # that the written file is compared at
TOLERANCE = 1e-3  # of the largest logit
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DIGITS_NORM = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@dataclass(frozen=True)
class CalibrationData:
    """Where calibration reads images, how many at most, and how they are normalised.

    Args:
        data: a folder of pictures at any depth, or ``digits`` for the bundled ones.
        images: drawn with a fixed seed where there are more; 200 (a batch) or more.
        mean: of each channel, 0 to 1; ImageNet's by default, and the digits' own for them.
        std: of each channel, on the same scale.
        skip_bad_images: leave out pictures that cannot be decoded, rather than refuse.

    Raises:
        ConfigError: fewer images than a batch, or a mean or std that cannot be used.
    """

    data: Path | str
    images: int = IMAGES
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    skip_bad_images: bool = False

    def __post_init__(self) -> None:
        if self.images < BATCH:
            message = f"images = {self.images}."
            raise ConfigError(message, expected=f"at least {BATCH}, one batch of calibration.")
        for key, values, smallest in (("mean", self.mean, -math.inf), ("std", self.std, 0.0)):
            fits = values is None or all(smallest < v < math.inf for v in values)
            if not fits or len(values or (0, 0, 0)) != 3:
                message = f"{key} = {values}."
                above = " above 0" if key == "std" else ""
                raise ConfigError(message, expected=f"3 numbers{above}: red, green, blue.")

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std."""
        mean, std = DIGITS_NORM if self.is_digits else IMAGENET
        return self.mean or mean, self.std or std

    @property
    def is_digits(self) -> bool:
        """Whether ``data`` is the word for the bundled digits."""
        return str(self.data) == DIGITS


@dataclass(frozen=True)
class Exported:
    """What was written, and what it was made with.

    ``difference`` is the largest one of the written file's logits from those of the calibrated
    module, as a share of the largest logit; ``digest`` the sha256 of the calibration's images.
    """

    path: Path
    format: str
    bytes: int
    space: Space
    arch: Arch
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    digest: str
    difference: float
    batch_sizes: tuple[int, ...] = BATCH_SIZES

    @property
    def input(self) -> str:
        """What the written network takes, in words."""
        side = self.arch.resolution
        return _input(side, self.mean, self.std)


def export(
    checkpoint: Path | str,
    arch_file: Path | str,
    out: Path,
    *,
    format: str,
    calibration: CalibrationData,
    resolution: int | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the sub-network that ``arch_file`` describes to ``out``, atomically.

    Args:
        checkpoint: a super-network, as ``opa_trt.supernet.save`` writes it.
        arch_file: an arch, in any form that ``opa_trt.supernet.read_arch`` reads.
        out: the file; what was there before is replaced only when all is well.
        format: ``torchscript``, ``onnx`` or ``state-dict``.
        calibration: the images that batch norm is calibrated on.
        resolution: in place of the arch's own.
        progress: hears of the steps.

    Raises:
        UnknownNameError: no such format.
        ConfigError: ``out`` cannot be written.
        CheckpointError, ArchError: what cannot be read, or does not fit together.
        DataError: fewer than 200 images, or some that cannot be decoded.
        BackendUnavailable: the format needs a package that is missing.
        ParityError: what was written differs from the calibrated module by more than 1e-3.
    """
    progress, form = progress or Progress(), export_form(format)
    form.check()
    check_output(out)
    supernet = load(checkpoint)
    _, arch = read_arch(arch_file, supernet.space, resolution=resolution)
    images, source = _images(calibration, arch.resolution, progress)
    module, seen = _calibrated(supernet, arch, images, source, calibration.images, progress)
    mean, std = calibration.normalisation
    notes = _notes(arch.resolution, mean, std, seen, images.digest())
    progress.start("export")
    data, difference = _written(form, Subnet(fold(module), supernet.space, arch, notes), module)
    atomic.write_bytes(out, data)
    progress.finish("export", f"{out}, {len(data) / 1e6:.2f} MB, parity {difference:.0e}")
    digest = notes["calibration_sha256"]
    return Exported(
        out, form.name, len(data), supernet.space, arch, mean, std, seen, digest, difference
    )


# --- the images of calibration --------------------------------------------------------------------


def _images(
    calibration: CalibrationData, resolution: int, progress: Progress
) -> tuple[Images, Source]:
    """The images that calibration reads, and how they become inputs."""
    progress.start("images")
    if calibration.is_digits:
        images, size = load_digits(DIGITS_SIZE, SEED).train, DIGITS_SIZE
        count = len(images)
        images = images.select(_draw(count, calibration.images))
    else:
        images, size, count = _pictures(calibration, resolution, progress)
    if len(images) % BATCH == 1:  # a last batch of one has no variance to normalise by
        images = images.select(range(len(images) - 1))
    progress.finish("images", f"{len(images)} of {count}, {size}×{size}")
    return images, Source(size, *calibration.normalisation)


def _pictures(
    calibration: CalibrationData, resolution: int, progress: Progress
) -> tuple[Images, int, int]:
    """Pictures of a folder at the network's resolution, and how many there were to draw from."""
    files = image_files(calibration.data)
    _check_count(len(files), calibration)
    drawn = [files[row] for row in _draw(len(files), calibration.images)]
    pixels, _, _ = read_images(
        drawn,
        resolution,
        skip_bad_images=calibration.skip_bad_images,
        progress=lambda done, total: progress.advance(done, f"of {total} images"),
    )
    _check_count(len(pixels), calibration)
    labels = np.zeros(len(pixels), dtype=np.int64)
    return Images(pixels, labels, ("",)), resolution, len(files)


def _draw(count: int, limit: int) -> Sequence[int]:
    order = np.random.default_rng(SEED).permutation(count)[:limit]
    drawn: list[int] = np.sort(order).tolist()
    return drawn


def _check_count(count: int, calibration: CalibrationData) -> None:
    if count < BATCH:
        message = f"{calibration.data} has {count} images that can be used."
        raise DataError(
            message,
            expected=f"at least {BATCH}, one batch of calibration.",
            remedy="add images; those of training are best, labels are not needed.",
        )


# --- the network ----------------------------------------------------------------------------------


def _calibrated(
    supernet: Supernet,
    arch: Arch,
    images: Images,
    source: Source,
    limit: int,
    progress: Progress,
) -> tuple[nn.Module, int]:
    """The extracted, calibrated module, and how many images calibration saw."""
    progress.start("calibrate")
    module = supernet.extract(arch)
    seen = calibrate(module, source.inputs(images, limit, BATCH, arch.resolution, SEED))
    progress.finish("calibrate", f"{seen} images in batches of {BATCH}")
    return module, seen


def _notes(
    resolution: int, mean: Sequence[float], std: Sequence[float], images: int, digest: str
) -> dict[str, str]:
    return {
        "input": _input(resolution, mean, std),
        "calibration_images": str(images),
        "calibration_batch": str(BATCH),
        "calibration_sha256": digest,
    }


def _input(resolution: int, mean: Sequence[float], std: Sequence[float]) -> str:
    numbers = [" ".join(f"{value:g}" for value in values) for values in (mean, std)]
    return (
        f"float32 [N, 3, {resolution}, {resolution}], RGB from 0 to 1, normalised by "
        f"mean {numbers[0]} and std {numbers[1]}"
    )


@torch.no_grad()
def _written(form: ExportForm, subnet: Subnet, module: nn.Module) -> tuple[bytes, float]:
    """The file's bytes, and their difference once read back; ParityError where it is too large."""
    data = form.dump(subnet)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"written.{form.name}"
        path.write_bytes(data)
        run = form.load(path)
        differences = []
        for count in BATCH_SIZES:
            images = subnet.random_images(count, seed=count)
            wanted = module(images)
            scale = float(wanted.abs().max()) or 1.0
            differences.append(float((run(images) - wanted).abs().max()) / scale)
    worst = float(np.max(differences))  # nan stays nan
    if not worst <= TOLERANCE:
        message = f"the {form.name} file differs from the calibrated network by {worst:.1e}."
        raise ParityError(message, expected=f"at most {TOLERANCE:.0e} of the largest logit.")
    return data, worst
