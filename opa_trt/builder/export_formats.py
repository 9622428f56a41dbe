"""The forms that one sub-network leaves in: TorchScript, ONNX, or its weights alone."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from opa_trt.errors import BackendUnavailable, UnknownNameError
from opa_trt.supernet import Arch, Space, load_subnet
from opa_trt.supernet.onnx_form import onnx_bytes
from opa_trt.supernet.subnet import subnet_bytes
from opa_trt.supernet.trace import trace, trace_bytes

Run = Callable[[Tensor], Tensor]

INPUT, OUTPUT = "images", "logits"
NOTES_FILE = "opa_trt.json"
INSTALL_ONNX = "pip install 'opa-trt[build,onnxruntime]'"


@dataclass(frozen=True)
class Subnet:
    """What is written: a calibrated module whose batch norm is folded, and what it is.

    ``notes`` (texts) are written beside it where the form has room for them.
    """

    module: nn.Module
    space: Space
    arch: Arch
    notes: Mapping[str, str]

    def random_images(self, count: int, seed: int = 0) -> Tensor:
        """``[count, 3, R, R] float32``: standard normal numbers."""
        side = self.arch.resolution
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, side, side, generator=draw)

    def described(self) -> dict[str, str]:
        """The notes, and space and arch as JSON."""
        space, arch = json.dumps(self.space.to_dict()), json.dumps(self.arch.to_dict())
        return {**self.notes, "space": space, "arch": arch}


class ExportForm(ABC):
    """One form: how it is written, and how what was written is run again."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()  # beyond the core

    def check(self) -> None:
        """BackendUnavailable where a package is missing; says what installs it."""
        for package in self.packages:
            _imported(package)

    @abstractmethod
    def dump(self, subnet: Subnet) -> bytes:
        """The file's bytes, for any batch size."""

    @abstractmethod
    def load(self, path: Path) -> Run:
        """The file at ``path`` as a function of ``[N, 3, R, R] float32``."""


class TorchScriptForm(ExportForm):
    """A frozen trace; its notes lie in an extra file, ``opa_trt.json``."""

    name = "torchscript"

    def dump(self, subnet: Subnet) -> bytes:
        traced = trace(subnet.module, subnet.random_images(2))
        return trace_bytes(traced, {NOTES_FILE: json.dumps(subnet.described(), indent=1)})

    def load(self, path: Path) -> Run:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit says at every call that it is deprecated
            loaded: Run = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        return loaded


class OnnxForm(ExportForm):
    """ONNX with a dynamic batch; checked with ONNX Runtime."""

    name = "onnx"
    packages = ("onnx", "onnxruntime")

    def dump(self, subnet: Subnet) -> bytes:
        example = subnet.random_images(2)
        return onnx_bytes(subnet.module, example, INPUT, [OUTPUT], subnet.described())

    def load(self, path: Path) -> Run:
        runtime = _imported("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors alone
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


class StateDictForm(ExportForm):
    """Weights alone, as safetensors; ``opa_trt.supernet.load_subnet`` reads them back."""

    name = "state-dict"

    def dump(self, subnet: Subnet) -> bytes:
        return subnet_bytes(subnet.module, subnet.space, subnet.arch, subnet.notes)

    def load(self, path: Path) -> Run:
        return load_subnet(path)


FORMS: tuple[ExportForm, ...] = (TorchScriptForm(), OnnxForm(), StateDictForm())


def export_form(name: str) -> ExportForm:
    """The form called ``name``; UnknownNameError where there is none."""
    for form in FORMS:
        if form.name == name:
            return form
    kind = "export format"
    raise UnknownNameError(kind, name, [form.name for form in FORMS])


def _imported(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as exc:
        message = f"{package} is not installed."
        raise BackendUnavailable(message, remedy=INSTALL_ONNX) from exc
