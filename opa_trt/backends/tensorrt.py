"""TensorRT and TensorRT-RTX: one backend over the vendor's module, engines from ONNX alone."""

from __future__ import annotations

import functools
import logging
import platform
import re
from importlib import import_module
from typing import Any

from opa_trt.backends.base import FP16, FP32, Availability, Backend, Engine
from opa_trt.backends.envelope import unseal
from opa_trt.backends.onnx_half import half_precision
from opa_trt.backends.tensorrt_api import FIT, Refusal, TensorRTApi, mismatch
from opa_trt.backends.tensorrt_engine import TensorRTEngine
from opa_trt.device import CUDA
from opa_trt.errors import CompileError, EngineError
from opa_trt.machine import has_gpu
from opa_trt.tree import ONNX, Segment, Target

log = logging.getLogger(__name__)


class TensorRTBackend(Backend):
    """Full TensorRT: engines of one version, GPU model and driver, built on that GPU.

    Attributes:
        module: the vendor's package.
        oldest: the first version that this code fits.
        newest: the last major version that it is known to fit; later ones are tried.
        extra: ours that installs it.
        portable: whether engines are built ahead of time, on any machine.
    """

    name = "tensorrt"
    forms = (ONNX,)
    executes_code = False
    devices = (CUDA,)
    precisions = (FP32, FP16)
    module = "tensorrt"
    oldest = (10, 12)
    newest = 11
    extra = "tensorrt"
    portable = False

    def availability(self) -> Availability:
        install = f"pip install 'opa-trt[{self.extra}]'"
        try:
            version = str(import_module(self.module).__version__)
        except Exception as exc:  # a missing library or driver raises more than ImportError
            missing = isinstance(exc, ModuleNotFoundError) and exc.name == self.module
            why = "is not installed" if missing else f"fails: {exc}"
            return Availability(reason=f"{self.module} {why}.", install=install)
        if _numbers(version) < self.oldest:
            oldest = ".".join(map(str, self.oldest))
            reason = f"{self.module} {version} is older than {oldest}."
            return Availability(reason=reason, install=install)
        if _numbers(version)[0] > self.newest:
            _warn_once(self.module, version, self.newest)
        if not has_gpu():
            return Availability(
                version=version if self.portable else "",
                reason="no NVIDIA GPU that torch can use.",
                install="a machine with an NVIDIA GPU, and a CUDA build of torch.",
                compiles=self.portable,
            )
        return Availability(version=version)

    def _api(self) -> TensorRTApi:
        return TensorRTApi(import_module(self.module))

    def _compile(self, segment: Segment, target: Target) -> bytes:
        segment = segment.in_onnx()
        model = segment.forms[ONNX]
        if target.precision == FP16:
            model = half_precision(model)
        api = self._api()
        with api.explained():
            builder = api.module.Builder(api.logger)
            network = api.network(builder)
            api.parse(network, model)
            _check(mismatch(segment, api.network_bindings(network), target), segment)
            config = api.config(builder)
            api.set_batches(builder, config, segment.inputs, target)
            return api.build(builder, network, config)

    def _load(self, data: bytes, segment: Segment, target: Target) -> Engine:
        api = self._api()
        with api.explained():
            if (verdict := api.verdict(data)) not in FIT:
                message = f"the vendor says of its plan: {verdict}"
                raise Refusal(message)
            return TensorRTEngine(api, data, segment, target)


class TensorRTRTXBackend(TensorRTBackend):
    """TensorRT-RTX: engines for every GPU that it supports, built without one; kernels are made
    for the GPU at hand when an engine is loaded."""

    name = "tensorrt_rtx"
    module = "tensorrt_rtx"
    oldest = (1, 3)
    newest = 1
    extra = "tensorrt-rtx"
    portable = True
    judges = True

    def capability(self) -> str:
        return f"any GPU that TensorRT-RTX supports, {platform.system()} {platform.machine()}"

    def check_plan(self, data: bytes) -> str:
        """``valid``, ``suboptimal`` or ``no GPU``: what the vendor says of an engine of
        ``compile`` by its header, without running it.

        Raises:
            EngineError: it is damaged, no engine of this vendor, or cannot run on this GPU.
        """
        envelope = unseal(data)
        verdict = self._api().verdict(envelope.payload)
        if verdict not in FIT:
            message = f"{self.label} says of the engine of {envelope.stamp.segment}: {verdict}."
            raise EngineError(message, remedy="compile it again from the portable segment.")
        return verdict


def _check(difference: str, segment: Segment) -> None:
    if difference:
        message = f"the ONNX form of segment {segment.name} has {difference}."
        raise CompileError(message, remedy="build the bundle again.")


def _numbers(version: Any) -> tuple[int, ...]:
    """``(10, 16, 1)`` of ``10.16.1.11``, as far as it is numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", str(version))[:3]) or (0,)


@functools.cache
def _warn_once(module: str, version: str, newest: int) -> None:
    log.warning("%s %s is newer than the %d that this code knows", module, version, newest)
