"""The vendors as their own documentation says to call them: no code of ours between.

Each function compiles one network for one batch size and returns what runs it: images in,
logits out, both numpy arrays.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Run = Callable[[Images], Logits]


@dataclass(frozen=True)
class Whole:
    """One network in the forms that vendors read, and how it is to run."""

    module: nn.Module
    onnx: bytes
    torchscript: bytes
    threads: int


def openvino(whole: Whole, images: Images) -> Run:
    """One infer request on a model of a fixed batch size, fp32, memory shared both ways."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(whole.onnx)
    model.reshape(list(images.shape))
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": whole.threads,
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()

    def run(given: Images) -> Logits:
        found = request.infer({0: given}, share_inputs=True, share_outputs=True)
        logits: Logits = found[0]
        return logits

    return run


def onnxruntime(whole: Whole, images: Images) -> Run:
    """``InferenceSession.run``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = whole.threads
    session = ort.InferenceSession(whole.onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(given: Images) -> Logits:
        logits: Logits = session.run(None, {name: given})[0]
        return logits

    return run


def torchscript(whole: Whole, images: Images) -> Run:
    """The frozen trace after ``optimize_for_inference``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.load(io.BytesIO(whole.torchscript))
        return _torch(torch.jit.optimize_for_inference(traced.eval()))


def inductor(whole: Whole, images: Images) -> Run:
    """``torch.compile`` for this batch size, weights frozen; compiles at its first call."""
    from torch._inductor import config

    torch._dynamo.reset()
    with config.patch(freezing=True):
        run = _torch(torch.compile(whole.module, dynamic=False))
        run(images)
    return run


def _torch(module: Callable[..., Any]) -> Run:
    def run(given: Images) -> Logits:
        with torch.inference_mode():
            logits: Logits = module(torch.from_numpy(given)).numpy()
            return logits

    return run


PEERS: dict[str, Callable[[Whole, Images], Run]] = {
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "inductor": inductor,
    "torchscript": torchscript,
}
