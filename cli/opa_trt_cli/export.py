"""``opa-trt export``: one sub-network as TorchScript, ONNX or weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.builder.export import Exported

FORMATS = ("torchscript", "onnx", "state-dict")
Numbers = tuple[float, float, float]


@click.command()
@click.argument("checkpoint", type=options.PATH)
@click.option(
    "--arch", type=options.PATH, required=True, metavar="FILE", help="An arch (see opa-trt arch)."
)
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="What to write.")
@click.option(
    "--calibrate",
    required=True,
    metavar="DATA",
    help="Images for batch norm: a folder of pictures, at any depth, or `digits`.",
)
@click.option("--out", type=options.PATH, required=True, metavar="FILE", help="Where to write it.")
@click.option("--resolution", type=int, metavar="R", help="In place of the arch's own.")
@click.option(
    "--images", type=int, default=2000, show_default=True, help="Calibrate on at most so many."
)
@click.option(
    "--mean", type=float, nargs=3, help="Of red, green, blue (0 to 1); ImageNet's, or the digits'."
)
@click.option("--std", type=float, nargs=3, help="Of the same; ImageNet's, or the digits'.")
@click.option("--skip-bad-images", is_flag=True, help="Leave out images that cannot be decoded.")
@options.threads
@options.as_json
def command(
    checkpoint: Path,
    arch: Path,
    form: str,
    calibrate: str,
    out: Path,
    resolution: int | None,
    images: int,
    mean: Numbers | None,
    std: Numbers | None,
    skip_bad_images: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the sub-network --arch of CHECKPOINT, calibrated, with batch norm folded.

    \b
    opa-trt export net.safetensors --arch arch.json --format onnx --calibrate train/ --out net.onnx

    What was written is read back and compared with the calibrated network before it takes its
    place. It takes normalised float32 images [N, 3, R, R] of any batch size and gives logits.
    """
    import torch

    from opa_trt.builder.export import CalibrationData, export
    from opa_trt_cli.console import StageLines, say_json

    if threads is not None:
        torch.set_num_threads(threads)
    calibration = CalibrationData(calibrate, images, mean, std, skip_bad_images)
    with StageLines(quiet=as_json) as lines:
        found = export(
            checkpoint,
            arch,
            out,
            format=form,
            calibration=calibration,
            resolution=resolution,
            progress=lines,
        )
    if as_json:
        say_json(_facts(found))
    else:
        _print(found, images)


def _facts(found: Exported) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "format": found.format,
        "bytes": found.bytes,
        "input": found.input,
        "resolution": found.arch.resolution,
        "mean": found.mean,
        "std": found.std,
        "macs": found.space.macs(found.arch),
        "params": found.space.params(found.arch),
        "arch": found.arch.to_dict(),
        "calibration": {"images": found.images, "sha256": found.digest},
        "largest_difference": found.difference,
        "batch_sizes": found.batch_sizes,
    }


def _print(found: Exported, asked: int) -> None:
    from opa_trt_cli.console import say

    macs, params = found.space.macs(found.arch), found.space.params(found.arch)
    fewer = f"; there are no more, {asked} were asked for" if found.images < asked else ""
    sizes = ", ".join(map(str, found.batch_sizes))
    say(f"{found.path}: {found.format}, {found.bytes / 1e6:.2f} MB, {found.arch}")
    say(f" {macs:,} MACs, {params:,} parameters before batch norm was folded")
    say(f" input       {found.input}")
    say(f" output      logits float32 [N, {found.space.classes}]")
    say(f" calibrated  on {found.images} images, sha256 {found.digest[:16]}…{fewer}")
    say(f" parity      largest difference {found.difference:.1e}, at batch sizes {sizes}")
