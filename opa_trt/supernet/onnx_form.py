"""From a module to ONNX: any batch size, nothing of where it was made."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opa_trt.errors import BackendUnavailable
from opa_trt.tree import onnx_outputs

OPSET = 17  # the oldest with every operator that the spaces need
BATCH = "batch"
INSTALL = "pip install 'opa-trt[build]'"


def require_onnx() -> Any:
    """The package ``onnx``.

    Raises:
        BackendUnavailable: it is not installed; says what installs it.
    """
    try:
        return import_module("onnx")
    except ImportError as exc:
        message = "onnx is not installed."
        raise BackendUnavailable(message, remedy=INSTALL) from exc


def onnx_bytes(
    module: nn.Module,
    example: Tensor,
    input_name: str,
    output_names: Sequence[str],
    notes: Mapping[str, str] | None = None,
) -> bytes:
    """``module`` as a checked ONNX file, without the source paths that torch writes into it.

    Args:
        module: in evaluation mode, folded; a traced one will do.
        example: an input; its batch size is no part of the result.
        input_name: what the graph calls its input.
        output_names: its outputs, in order; the graph calls them so, but for one that has the
            input's name (see ``tree.onnx_outputs``).
        notes: texts that the file holds beside the graph, by name.

    Raises:
        BackendUnavailable: onnx is not installed.
    """
    onnx = require_onnx()
    outputs = onnx_outputs([input_name], output_names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # it says that it is the older exporter
            torch.onnx.export(
                module.eval(),
                (example,),
                path,
                input_names=[input_name],
                output_names=outputs,
                dynamic_axes={name: {0: BATCH} for name in (input_name, *outputs)},
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load(path)
    _strip(model)
    if notes:
        onnx.helper.set_model_props(model, dict(notes))
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _strip(model: Any) -> None:
    """Remove what the exporter says of the source: file names and line numbers."""
    for described in (model, model.graph, *model.graph.node, *model.graph.input):
        described.ClearField("doc_string")
    for node in model.graph.node:
        del node.metadata_props[:]
