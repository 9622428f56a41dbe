"""AOTInductor: the exported program as a shared library, compiled ahead of time by torch."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opa_trt.backends.base import Availability, Backend, Engine
from opa_trt.backends.torch_calls import (
    CUDA_TORCH,
    NO_GPU,
    Turns,
    exact,
    fill,
    on_stream,
    sample_inputs,
    torch_threads,
)
from opa_trt.device import CPU, CUDA
from opa_trt.errors import CompileError
from opa_trt.machine import has_gpu
from opa_trt.tree import PT2, Segment, Target

PACKAGE = "engine.pt2"
SOURCES = (".cpp", ".h")  # in a package; they hold the compiler's command line with its paths
INSTALL_COMPILER = "install g++, or name a C++ compiler in CXX."
EVERY = 17  # up to here, every batch size is tried
DIFFERENCE = 1e-4  # from the program itself, over the largest value (or 1)

# Freezing is left off: with a batch that varies it packs no weights, and its programs took up to
# twice as long. Headers compiled beforehand would lie outside the temporary folder. Line tables
# would only add its paths.
OPTIONS: dict[str, Any] = {
    "max_autotune": False,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.enable_line_tables": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",  # it calls kernels: as fast, sooner compiled
    "aot_inductor.check_lowerbound": False,  # the engine itself checks the batch, and 1 is fine
}


def _options() -> dict[str, Any]:
    """Those of ``OPTIONS`` that this torch knows: 2.11 has no line tables to leave out."""
    known = torch._inductor.config.get_config_copy()
    return {key: value for key, value in OPTIONS.items() if key in known}


class InductorBackend(Backend):
    """Engines are AOTInductor packages: machine code and weights in one file."""

    name = "inductor"
    forms = (PT2,)
    devices = (CPU, CUDA)
    quick = False  # half a minute a segment

    def availability(self) -> Availability:
        compiler = os.environ.get("CXX") or "g++"
        try:
            found = shutil.which(shlex.split(compiler)[0])
        except (ValueError, IndexError):  # quotes that never close, or nothing but blanks
            found = None
        if found is None:
            reason = f"there is no C++ compiler {compiler!r}."
            return Availability(reason=reason, install=INSTALL_COMPILER)
        if self.device == CUDA and not has_gpu():
            return Availability(reason=NO_GPU, install=CUDA_TORCH)
        return Availability(version=torch.__version__)

    def _compile(self, segment: Segment, target: Target) -> bytes:
        with torch_threads(target), _quiet(), tempfile.TemporaryDirectory(prefix="opa_trt-") as at:
            program = _program(segment, target)
            wanted = _wanted(program.module(), segment, target)
            package = _packaged(program, Path(at))
            _check(package, wanted, segment, target)
            return package

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        return InductorEngine(data, segment, target)


class InductorEngine(Engine):
    """One loaded package. It allows one run at a time: those of forks take turns."""

    def __init__(self, package: bytes, segment: Segment, target: Target) -> None:
        super().__init__(segment, target)
        with tempfile.TemporaryDirectory(prefix="opa_trt-") as at:
            path = Path(at) / PACKAGE
            path.write_bytes(package)
            # The loader unpacks it to a folder of its own, which goes when the engine is closed.
            model = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
        self._turns = Turns(target)
        self._loader: Any = model.loader  # calling the model parses its call's description anew

    def _run(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor], stream: Any) -> None:
        turn = self._turns.turn(stream)
        with turn, torch.inference_mode(), on_stream(stream), exact(self.target):
            given = self._loader.boxed_run([inputs[spec.name] for spec in self.segment.inputs])
            fill(self.segment.outputs, given, out)

    def _fork(self) -> Engine:
        return copy(self)

    def _close(self) -> None:
        self._loader = None


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own ways
        yield


def _program(segment: Segment, target: Target) -> Any:
    program = torch.export.load(io.BytesIO(segment.forms[PT2]))
    if target.device == CPU:
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, target.device)


def _wanted(module: Any, segment: Segment, target: Target) -> dict[int, list[Tensor]]:
    """What the program gives, by batch size; it refuses those that it was not exported for."""
    found = {}
    for batch in _batches(target):
        inputs = sample_inputs(segment, target, batch)
        with torch.no_grad(), exact(target):
            given = module(*(inputs[spec.name] for spec in segment.inputs))
        found[batch] = list(given) if isinstance(given, tuple | list) else [given]
        if len(found[batch]) != len(segment.outputs):
            msg = f"the program of {segment.name} has {len(found[batch])} outputs."
            raise CompileError(msg, expected=f"{len(segment.outputs)}.")
    return found


def _batches(target: Target) -> list[int]:
    """Every small batch size, then powers of two and their neighbours, and the largest."""
    lowest, highest = target.min_batch, target.max_batch
    powers = {2**power + more for power in range(5, 12) for more in (-1, 0, 1)}
    tried = {*range(lowest, lowest + EVERY), *powers, highest}
    return sorted(batch for batch in tried if lowest <= batch <= highest)


def _packaged(program: Any, folder: Path) -> bytes:
    """The package's bytes, without the C++ source; whatever is cached goes with ``folder``."""
    from torch._inductor.utils import fresh_cache

    path = folder / PACKAGE
    with torch.no_grad(), fresh_cache(dir=str(folder)):
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=_options()
        )
    kept = io.BytesIO()
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(kept, "w") as part:
        for entry in whole.infolist():
            if not entry.filename.endswith(SOURCES):
                part.writestr(entry, whole.read(entry))
    return kept.getvalue()


def _check(
    package: bytes, wanted: Mapping[int, list[Tensor]], segment: Segment, target: Target
) -> None:
    """Compare the package with the program.

    Generated code may hold for fewer batch sizes than the program does (torch narrows the range
    as it goes, for memory layouts that depend on it), and at run time nothing checks that.

    Raises:
        CompileError: they differ at a batch size, which it names.
    """
    engine = InductorEngine(package, segment, target)
    for batch, tensors in wanted.items():
        found = engine.run(sample_inputs(segment, target, batch))
        for spec, tensor in zip(segment.outputs, tensors, strict=True):
            worst = float((found[spec.name] - tensor).abs().max())
            if not worst <= DIFFERENCE * max(1.0, float(tensor.abs().max())):
                msg = f"{spec.name} of {segment.name} is off by {worst:.1e} at batch {batch}."
                raise CompileError(msg, remedy="report it to torch; use another backend.")
    engine.close()
