"""TensorRT-RTX builds real engines here, without a GPU; versions and refusals of both vendors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from opa_trt import machine
from opa_trt.backends import backend
from opa_trt.backends.envelope import Envelope, unseal
from opa_trt.backends.onnx_half import half_precision
from opa_trt.backends.tensorrt import TensorRTBackend, TensorRTRTXBackend
from opa_trt.backends.tensorrt_api import TensorRTApi, mismatch
from opa_trt.errors import BackendUnavailable, CompileError, EngineError, EngineMismatch
from opa_trt.tree import FEATURES, IMAGES, LOGITS, ONNX, Segment, Target

MAX_BATCH = 8
NAMES = ("pioneer", "tiny", "small", "medium", "large")
PRECISIONS = ("fp32", "fp16")
Compiled = Callable[[str, str], bytes]


@pytest.fixture(scope="module")
def rtx() -> TensorRTRTXBackend:
    made = TensorRTRTXBackend()
    found = made.availability()
    if not found and not found.compiles:
        pytest.skip(f"{found.reason} {found.install}")
    return made


@pytest.fixture(scope="module")
def api(rtx: TensorRTRTXBackend) -> TensorRTApi:
    return rtx._api()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whichever this is."""
    monkeypatch.setattr("opa_trt.backends.tensorrt.has_gpu", lambda: False)


@pytest.fixture
def some_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one, whichever this is."""
    monkeypatch.setattr("opa_trt.backends.tensorrt.has_gpu", lambda: True)


@pytest.fixture(scope="module")
def compiled(rtx: TensorRTRTXBackend, toy: Any) -> Compiled:
    """Engines of the toy, each built once."""
    made: dict[tuple[str, str], bytes] = {}

    def engine(name: str, precision: str = "fp32") -> bytes:
        if (name, precision) not in made:
            made[name, precision] = rtx.compile(toy.segment(name), target(rtx, precision))
        return made[name, precision]

    return engine


def target(made: TensorRTBackend, precision: str = "fp32") -> Target:
    return made.target(max_batch=MAX_BATCH, threads=1, precision=precision)


def parsed(api: TensorRTApi, model: bytes) -> tuple[Any, Any]:
    """(builder, network) of an ONNX file."""
    builder = api.module.Builder(api.logger)
    network = api.network(builder)
    api.parse(network, model)
    return builder, network


# --- engines built here -------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_segment_becomes_a_plan(compiled: Compiled, name: str, precision: str) -> None:
    plan = unseal(compiled(name, precision)).payload
    assert plan.startswith(b"vtrt")
    assert len(plan) > 10_000


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_network_has_the_segments_tensors(api: Any, toy: Any, precision: str) -> None:
    model = toy.segment("pioneer").forms[ONNX]
    _, network = parsed(api, half_precision(model) if precision == "fp16" else model)
    inputs, outputs = api.network_bindings(network)
    assert [(t.name, t.dtype, t.shape) for t in inputs] == [(IMAGES, "uint8", (-1, 3, 16, 16))]
    assert {(t.name, t.dtype, t.shape) for t in outputs} == {
        (FEATURES, "float32", (-1, 4, 4, 4)),
        (LOGITS, "float32", (-1, 5)),
    }


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "FLOAT"), ("fp16", "HALF")])
def test_convolutions_have_the_precision_asked_for(
    api: Any, toy: Any, precision: str, dtype: str
) -> None:
    model = toy.segment("large").forms[ONNX]
    _, network = parsed(api, half_precision(model) if precision == "fp16" else model)
    assert network.get_flag(api.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    kinds = [layer for layer in layers if layer.type == api.module.LayerType.CONVOLUTION]
    assert [layer.get_output(0).dtype.name for layer in kinds] == [dtype]


def test_the_profile_has_the_batches_of_the_target(rtx: Any, api: Any, toy: Any) -> None:
    class Kept:
        """A builder that remembers its profile."""

        def __init__(self, builder: Any) -> None:
            self.profile = builder.create_optimization_profile()

        def create_optimization_profile(self) -> Any:
            return self.profile

    builder, _ = parsed(api, toy.segment("tiny").forms[ONNX])
    config, kept = api.config(builder), Kept(builder)
    wanted = rtx.target(min_batch=2, max_batch=MAX_BATCH, threads=1)
    api.set_batches(kept, config, toy.segment("tiny").inputs, wanted)
    assert config.num_optimization_profiles == 1
    shapes = [tuple(shape) for shape in kept.profile.get_shape(FEATURES)]
    assert shapes == [(2, 4, 4, 4), (8, 4, 4, 4), (8, 4, 4, 4)]


def test_fp32_means_fp32_and_runs_allocate_nothing(api: Any, toy: Any) -> None:
    builder, _ = parsed(api, toy.segment("tiny").forms[ONNX])
    config, flags = api.config(builder), api.module.BuilderFlag
    assert not config.get_flag(flags.TF32)
    assert config.get_flag(flags.REQUIRE_USER_ALLOCATION)


def test_without_a_profile_the_vendors_words_are_told(api: Any, toy: Any) -> None:
    builder, network = parsed(api, toy.segment("tiny").forms[ONNX])
    with pytest.raises(RuntimeError, match="no optimization profile has been defined"):
        api.build(builder, network, api.config(builder))


@pytest.mark.usefixtures("no_gpu")
def test_a_plan_cannot_be_judged_without_a_gpu(rtx: Any, compiled: Compiled) -> None:
    if machine.has_gpu():
        pytest.skip("there is a GPU, which judges it")
    assert rtx.check_plan(compiled("pioneer")) == "no GPU"


def test_a_plan_that_is_none_is_told(rtx: Any, compiled: Compiled) -> None:
    whole = unseal(compiled("pioneer"))
    broken = Envelope(whole.stamp, bytes(len(whole.payload))).seal()
    with pytest.raises(EngineError, match="engine of pioneer: malformed engine"):
        rtx.check_plan(broken)


# --- keys and stamps ----------------------------------------------------------------------------


def test_other_weights_make_another_key(rtx: Any, toy: Any) -> None:
    one = toy.segment("tiny")
    other = replace(one, content="other weights in the same graph")
    keys = {rtx.stamp(segment, target(rtx)).key() for segment in (one, other)}
    assert len(keys) == 2


def test_precisions_have_keys_of_their_own(rtx: Any, toy: Any) -> None:
    segment = toy.segment("tiny")
    keys = {rtx.stamp(segment, target(rtx, p)).key() for p in PRECISIONS}
    assert len(keys) == 2


def test_an_engine_built_without_a_gpu_is_found_with_one(
    rtx: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment, wanted = toy.segment("tiny"), target(rtx)
    monkeypatch.setattr(machine, "gpu", lambda: "")
    built = rtx.stamp(segment, wanted).key()
    monkeypatch.setattr(machine, "gpu", lambda: "NVIDIA GeForce RTX 5090, 12.0, driver 580.1")
    assert rtx.stamp(segment, wanted).key() == built


def test_full_tensorrt_depends_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu", lambda: "NVIDIA H200, 9.0, driver 580.1")
    assert TensorRTBackend().capability() == "NVIDIA H200, 9.0, driver 580.1"


def test_an_engine_of_another_version_is_refused(rtx: Any, toy: Any, compiled: Compiled) -> None:
    whole = unseal(compiled("tiny"))
    older = replace(whole.stamp, target=replace(whole.stamp.target, version="1.6.1.120"))
    data = Envelope(older, whole.payload).seal()
    with pytest.raises(EngineMismatch, match=r"engine of tiny has another version: 1\.6\.1\.120"):
        rtx.load(data, toy.segment("tiny"), target(rtx))


def test_an_engine_of_other_weights_is_refused(rtx: Any, toy: Any, compiled: Compiled) -> None:
    other = replace(toy.segment("tiny"), content="other weights")
    with pytest.raises(EngineMismatch, match="another content"):
        rtx.load(compiled("tiny"), other, target(rtx))


# --- refusing -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_gpu")
def test_running_says_that_a_gpu_is_missing(rtx: Any, toy: Any, compiled: Compiled) -> None:
    with pytest.raises(BackendUnavailable, match="no NVIDIA GPU") as caught:
        rtx.load(compiled("tiny"), toy.segment("tiny"), target(rtx))
    assert "CUDA build of torch" in str(caught.value.remedy)


def test_a_damaged_model_is_refused_in_the_parsers_words(rtx: Any, toy: Any) -> None:
    segment = toy.segment("tiny")
    broken = replace(segment, forms={ONNX: segment.forms[ONNX][:100]})
    with pytest.raises(CompileError, match=r"ONNX parser says.*Failed to parse the ONNX model"):
        rtx.compile(broken, target(rtx))


def test_an_unknown_operator_is_refused_by_name(rtx: Any, toy: Any) -> None:
    onnx = pytest.importorskip("onnx")
    segment = toy.segment("tiny")
    model = onnx.load_from_string(segment.forms[ONNX])
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Teleport"
    with pytest.raises(CompileError, match=r"tensorrt_rtx cannot compile tiny.*/Relu Teleport: "):
        rtx.compile(replace(segment, forms={ONNX: model.SerializeToString()}), target(rtx))


WRONG: dict[str, Callable[[Segment], Segment]] = {
    "inputs ['images'] where the segment has ['imgaes']": lambda s: replace(
        s, inputs=(replace(s.inputs[0], name="imgaes"),)
    ),
    "outputs ['features', 'logits'] where the segment has ['logits']": lambda s: replace(
        s, outputs=s.outputs[1:]
    ),
    "images as (-1, 3, 16, 16) uint8 where the segment has (-1, 3, 16, 16) float32": lambda s: (
        replace(s, inputs=(replace(s.inputs[0], dtype="float32"),))
    ),
    "images as (-1, 3, 16, 16) uint8 where the segment has (-1, 3, 16, 15) uint8": lambda s: (
        replace(s, inputs=(replace(s.inputs[0], shape=(3, 16, 15)),))
    ),
    "logits as (-1, 5) float32 where the segment has (-1, 4) float32": lambda s: replace(
        s, outputs=(s.outputs[0], replace(s.outputs[1], shape=(4,)))
    ),
    "logits as (-1, 5) float32 where the segment has (-1, 5, 1) float32": lambda s: replace(
        s, outputs=(s.outputs[0], replace(s.outputs[1], shape=(5, 1)))
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_model_with_other_tensors_than_the_segment_is_refused(
    rtx: Any, toy: Any, said: str
) -> None:
    with pytest.raises(CompileError) as caught:
        rtx.compile(WRONG[said](toy.segment("pioneer")), target(rtx))
    assert said in str(caught.value)


def test_open_sizes_of_outputs_are_left_to_the_run(rtx: Any, api: Any, toy: Any) -> None:
    segment = toy.segment("tiny")
    inputs, outputs = api.network_bindings(parsed(api, segment.forms[ONNX])[1])
    open_size = [replace(outputs[0], shape=(-1, -1))]
    assert mismatch(segment, (inputs, open_size), target(rtx)) == ""
    closed_batch = [replace(outputs[0], shape=(8, 5))]
    assert "logits as (8, 5)" in mismatch(segment, (inputs, closed_batch), target(rtx))


def test_a_precision_that_it_lacks_is_refused(rtx: Any) -> None:
    with pytest.raises(ValueError, match="precision 'int8'"):
        target(rtx, "int8")


# --- availability -------------------------------------------------------------------------------


def vendor(name: str, version: str) -> ModuleType:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    return module


@pytest.mark.usefixtures("some_gpu")
@pytest.mark.parametrize(
    ("name", "version"),
    [("tensorrt", "10.12.0.36"), ("tensorrt", "11.1.0"), ("tensorrt_rtx", "1.3.0.35")],
)
def test_known_versions_work_where_a_gpu_is(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str
) -> None:
    monkeypatch.setitem(sys.modules, name, vendor(name, version))
    found = backend(name).availability()
    assert found
    assert found.version == version


@pytest.mark.usefixtures("some_gpu")
@pytest.mark.parametrize(
    ("name", "version", "oldest"),
    [
        ("tensorrt", "10.11.0", "10.12"),
        ("tensorrt", "8.6", "10.12"),
        ("tensorrt_rtx", "1.2", "1.3"),
    ],
)
def test_an_old_version_does_not_work(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str, oldest: str
) -> None:
    monkeypatch.setitem(sys.modules, name, vendor(name, version))
    found = backend(name).availability()
    assert found.reason == f"{name} {version} is older than {oldest}."
    assert "pip install 'opa-trt[" in found.install


@pytest.mark.usefixtures("some_gpu")
def test_a_version_that_is_not_known_is_tried_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", vendor("tensorrt", "12.0.0.test"))
    assert backend("tensorrt").availability().version == "12.0.0.test"
    assert "tensorrt 12.0.0.test is newer than the 11" in caplog.text


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_only_rtx_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (("tensorrt", "11.0"), ("tensorrt_rtx", "1.7")):
        monkeypatch.setitem(sys.modules, name, vendor(name, version))
    full, portable = backend("tensorrt").availability(), backend("tensorrt_rtx").availability()
    assert "no NVIDIA GPU" in full.reason
    assert "no NVIDIA GPU" in portable.reason
    assert not full.compiles
    assert portable.compiles
    assert portable.version == "1.7"


def test_a_missing_package_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("opa_trt.backends.tensorrt.import_module", missing)
    found = backend("tensorrt").availability()
    assert found.reason == "tensorrt is not installed."
    assert found.install == "pip install 'opa-trt[tensorrt]'"
    assert backend("tensorrt_rtx").availability().install == "pip install 'opa-trt[tensorrt-rtx]'"


@pytest.mark.parametrize("kind", [OSError, AssertionError, ImportError, Exception])
def test_a_package_that_fails_to_import_says_why(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def broken(name: str) -> Any:
        raise kind("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr("opa_trt.backends.tensorrt.import_module", broken)
    assert "tensorrt fails: libnvinfer.so.11" in backend("tensorrt").availability().reason


# --- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_prepared_engine_gives_what_eager_gives(toy: Any, name: str, precision: str) -> None:
    made = backend(name)
    if not made.availability():
        pytest.skip(f"{name}: {made.availability().reason}")
    segment, wanted = toy.segment("pioneer"), target(made, precision)  # type: ignore[arg-type]
    engine = made.load(made.compile(segment, wanted), segment, wanted)
    out = {
        FEATURES: torch.empty(4, 4, 4, 4, device="cuda"),
        LOGITS: torch.empty(4, 5, device="cuda"),
    }
    images = torch.from_numpy(toy.images(4)).cuda()
    engine.prepare({IMAGES: images}, out)
    images.copy_(torch.from_numpy(toy.images(4, seed=1)))
    engine.run({IMAGES: images}, out)
    tolerance = made.tolerance_for(precision) or 0.0
    for key, eager in toy.eager("pioneer", torch.from_numpy(toy.images(4, seed=1))).items():
        assert float((out[key].cpu() - eager).abs().max()) <= tolerance * max(
            1.0, float(eager.abs().max())
        )
    engine.close()
