"""A bundle of the digits as TensorRT-RTX engines, built without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opa_trt.backends.envelope import unseal
from opa_trt.backends.onnx_half import half_precision
from opa_trt.backends.tensorrt import TensorRTRTXBackend
from opa_trt.builder import build, read_recipe
from opa_trt.bundle import CANARY, Bundle
from opa_trt.clock import VirtualClock
from opa_trt.store import EngineStore
from opa_trt.tree import FEATURES, IMAGES, LOGITS, ONNX, Segment

pytest.importorskip("sklearn")

PIONEER = "pioneer"
PRECISIONS = ("fp32", "fp16")
MAX_BATCH = 100
TAILS = 3


class Ticking(VirtualClock):
    """Every look at it takes 20 ms, so that measuring ends soon."""

    def now_ms(self) -> float:
        self.advance(20.0)
        return super().now_ms()


@dataclass(frozen=True)
class Digits:
    """The bundle, and its engines by segment and precision."""

    bundle: Bundle
    rtx: TensorRTRTXBackend
    engines: dict[tuple[str, str], bytes]

    @property
    def segments(self) -> dict[str, Segment]:
        """By name."""
        return {name: self.bundle.segment(name) for name in self.bundle.manifest.segments}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """The shipped recipe with its own weights; fewer tails are chosen and fitted in less time."""
    rtx = TensorRTRTXBackend()
    found = rtx.availability()
    if not found and not found.compiles:
        pytest.skip(f"{found.reason} {found.install}")
    folder, threads = tmp_path_factory.mktemp("digits"), torch.get_num_threads()
    recipe = read_recipe("digits")
    quick = replace(
        recipe,
        pioneer=replace(recipe.pioneer, images=50, epochs=1),
        tails=replace(recipe.tails, count=TAILS, candidates=TAILS + 1, images=20),
        calibrate=replace(recipe.calibrate, images=100),
        compile=replace(recipe.compile, backends=("torchscript",), max_batch=MAX_BATCH, threads=1),
        measure=replace(recipe.measure, buckets=(1,), seconds=0.001),
        fit=replace(recipe.fit, images=60, groups=10, group_size=10),
    )
    store = EngineStore(folder / "cache")
    build(quick, folder / "digits.opa", store=store, clock=Ticking())
    torch.set_num_threads(threads)
    bundle = Bundle(folder / "digits.opa")
    made = Digits(bundle, rtx, {})
    for precision in PRECISIONS:
        target = rtx.target(max_batch=MAX_BATCH, threads=1, precision=precision)
        for name, segment in made.segments.items():
            made.engines[name, precision] = rtx.compile(segment, target)
    return made


def test_every_segment_has_an_engine(digits: Digits) -> None:
    names = digits.bundle.manifest.segments.keys()
    assert PIONEER in names
    assert len(names) == TAILS + 1
    for name in names:
        for precision in PRECISIONS:
            plan = unseal(digits.engines[name, precision]).payload
            assert plan[:4] == b"vtrt"
            assert len(plan) > 50_000
            assert digits.rtx.check_plan(digits.engines[name, precision]) in ("no GPU", "valid")


def test_stamps_say_what_engines_are_for(digits: Digits) -> None:
    for (name, precision), data in digits.engines.items():
        stamp = unseal(data).stamp
        assert (stamp.segment, stamp.form) == (name, ONNX)
        assert stamp.content == digits.segments[name].content
        target = stamp.target
        assert (target.backend, target.device) == ("tensorrt_rtx", "cuda")
        assert (target.precision, target.max_batch) == (precision, MAX_BATCH)


def test_every_engine_has_a_key_of_its_own(digits: Digits) -> None:
    segments = digits.segments
    keys = {unseal(data).stamp.key() for (name, _), data in digits.engines.items()}
    assert len(keys) == len(digits.engines) == 2 * len(segments)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_networks_have_the_segments_tensors_and_the_targets_batches(
    digits: Digits, precision: str
) -> None:
    api = digits.rtx._api()
    for name, segment in digits.segments.items():
        model = segment.forms[ONNX]
        builder = api.module.Builder(api.logger)
        network, config = api.network(builder), api.config(builder)
        api.parse(network, half_precision(model) if precision == "fp16" else model)
        inputs, outputs = api.network_bindings(network)
        wanted = {IMAGES: "uint8"} if name == PIONEER else {FEATURES: "float32"}
        assert {port.name: port.dtype for port in inputs} == wanted
        assert {port.name for port in outputs} == (
            {FEATURES, LOGITS} if name == PIONEER else {LOGITS}
        )
        assert all(port.shape[0] == -1 for port in (*inputs, *outputs))
        target = digits.rtx.target(max_batch=MAX_BATCH, threads=1, precision=precision)
        api.set_batches(builder, config, segment.inputs, target)
        assert config.num_optimization_profiles == 1


def test_half_precision_keeps_the_logits(digits: Digits) -> None:
    """On ONNX Runtime: RTX engines do not run without a GPU."""
    ort = pytest.importorskip("onnxruntime")
    canary: dict[str, Any] = digits.bundle.arrays(CANARY)
    for name, segment in digits.segments.items():
        source = IMAGES if name == PIONEER else FEATURES
        batch = max(int(key.split("/")[-1]) for key in canary if key.startswith(f"{IMAGES}/"))
        given = canary[f"{IMAGES}/{batch}" if name == PIONEER else f"{PIONEER}/{batch}/{FEATURES}"]
        session = ort.InferenceSession(half_precision(segment.forms[ONNX]))
        for spec, value in zip(segment.outputs, session.run(None, {source: given}), strict=True):
            wanted = canary[f"{name}/{batch}/{spec.name}"]
            scale = max(1.0, float(np.abs(wanted).max()))
            assert np.abs(value - wanted).max() / scale < 2e-2


def test_the_shipped_weights_are_those_of_the_bundle(digits: Digits) -> None:
    assert Path(digits.bundle.manifest.recipe["checkpoint"]).name == "digits.safetensors"
