"""``opa-trt import-ofa``: OFA's published weights become a super-network's file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opa_trt_cli import options

if TYPE_CHECKING:
    from opa_trt.supernet import Arch, OfaImport, Space

SIDE = 224  # of the images that costs are counted at


@click.command()
@click.argument("checkpoint", type=options.PATH)
@options.space
@click.option("--out", type=options.PATH, metavar="FILE", required=True, help="The weights.")
@options.as_json
def command(
    checkpoint: Path, space: str | None, width: float | None, out: Path, as_json: bool
) -> None:
    """Read CHECKPOINT, a published state dict of once-for-all (.pth or .safetensors).

    \b
    opa-trt import-ofa ofa_mbv3_w1.2.pth --space mobilenet_v3 --width 1.2 --out mbv3.safetensors

    Keys may be in any published style. Nothing is run that the file holds: only tensors are read.
    """
    from opa_trt.builder.outputs import check_output
    from opa_trt.supernet import ofa_classes, read_ofa_state_dict, save
    from opa_trt_cli.console import say, say_json

    if space is None:
        raise click.MissingParameter(param_type="option", param_hint="'--space'")
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        message = "it is CHECKPOINT itself, which would be lost."
        raise click.BadParameter(message, param_hint="'--out'")
    check_output(out)
    state_dict, digest = _read(checkpoint)
    chosen = options.read_space(space, width, classes=ofa_classes(state_dict))
    found = read_ofa_state_dict(state_dict, chosen)
    origin = {"file": checkpoint.name, "sha256": digest, "identities": len(found.identities)}
    save(found.supernet, out, notes={"imported": origin})
    if as_json:
        say_json(_facts(found, out, digest))
    else:
        for line in _lines(found, checkpoint, out):
            say(line)


def _read(path: Path) -> tuple[Any, str]:
    """What ``path`` holds, without running any of it, and the sha256 of the file.

    Raises:
        CheckpointError: no such file, no checkpoint, or one that needs pickled code.
    """
    import hashlib

    from opa_trt.errors import CheckpointError

    if not path.is_file():
        message = f"{path} does not exist, or is no file."
        raise CheckpointError(message, expected="a checkpoint of once-for-all.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if path.suffix == ".safetensors":
        return _read_safetensors(path), digest
    return _read_pickled(path), digest


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    from opa_trt.errors import CheckpointError

    try:
        with safe_open(path, framework="pt") as file:
            ours = "opa_trt" in (file.metadata() or {}).get("format", "")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as exc:
        message = f"{path} is not a readable safetensors file: {exc}."
        raise CheckpointError(message) from exc
    if ours:
        message = f"{path} is a file of opa_trt already."
        raise CheckpointError(message, remedy="use it as it is: it needs no import.")
    return tensors


def _read_pickled(path: Path) -> Any:
    import torch

    from opa_trt.errors import CheckpointError

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as exc:  # a file can be wrong in as many ways as pickle has errors
        named = re.search(r"GLOBAL ([\w.]+)", str(exc))
        message = f"{path} is not a checkpoint that torch can read as weights alone."
        if named:
            message = f"{path} holds more than weights: it needs {named[1]}."
        raise CheckpointError(
            message,
            expected="a state dict, saved by torch.save or as .safetensors.",
            remedy="nothing that can run code is read; save the network's state_dict() alone.",
        ) from exc


def _extremes(space: Space) -> dict[str, Arch]:
    return {"smallest": space.smallest(SIDE), "largest": space.largest(SIDE)}


def _facts(found: OfaImport, out: Path, digest: str) -> dict[str, Any]:
    space = found.supernet.space
    return {
        "weights": str(out),
        "bytes": out.stat().st_size,
        "space": space.to_dict(),
        "tensors": found.tensors,
        "identities": list(found.identities),
        "sha256": digest,
        "resolution": SIDE,
        "macs": {name: space.macs(arch) for name, arch in _extremes(space).items()},
        "params": {name: space.params(arch) for name, arch in _extremes(space).items()},
    }


def _lines(found: OfaImport, checkpoint: Path, out: Path) -> list[str]:
    space = found.supernet.space
    lines = [f" tensors    all {found.tensors} of {checkpoint.name} mapped to {space.name}"]
    if found.identities:
        lines.append(f" matrices   none in it: {len(found.identities)} are the identity,")
        lines.append("            as in a full network whose smaller kernels were never trained")
    for name, arch in _extremes(space).items():
        macs, params = space.macs(arch) / 1e6, space.params(arch) / 1e6
        lines.append(f" {name:<10} {macs:,.1f} M MACs at {SIDE} px, {params:.2f} M weights")
    lines.append(f" saved      {out}, {out.stat().st_size / 1e6:.2f} MB")
    described = f"the recipe's [space]: {_described(space)}"
    return [*lines, f"next: opa-trt build RECIPE --checkpoint {out} · {described}"]


def _described(space: Space) -> str:
    """``name = "mobilenet_v3", width = 1.2, classes = 1000``."""
    width = space.to_dict().get("width")
    wide = [] if width is None else [f"width = {width}"]
    return ", ".join([f'name = "{space.name}"', *wide, f"classes = {space.classes}"])
