"""How TensorRT's versions are called, without any: order, addresses, refusals, graphs, memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opa_trt.backends.tensorrt import TensorRTBackend
from opa_trt.backends.tensorrt_api import TensorRTApi
from opa_trt.backends.tensorrt_engine import ALIGNMENT, Scratch, TensorRTEngine
from opa_trt.errors import CompileError, DeviceMemoryError, EngineError
from opa_trt.tree import Segment, Target, TensorSpec

SCRATCH = 1000
SEGMENT = Segment(
    "tail",
    (TensorSpec("features", (4,)),),
    (TensorSpec("logits", (3,)), TensorSpec("more", (2,))),
    {"onnx": b"a model"},
    "content",
)
TARGET = Target("tensorrt", "1", "cpu", max_batch=8)  # the CPU's memory stands for a GPU's
VENDORS = ("10.16", "11.1", "rtx")
Log = list[tuple[Any, ...]]


# --- an invented vendor -------------------------------------------------------------------------


class DataType(IntEnum):
    FLOAT, HALF, UINT8 = range(3)


class Mode(IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class Strategy(IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class Specialisation(IntEnum):
    LAZY, EAGER, NONE = range(3)


class OldNetworkFlag(IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)


class NetworkFlag(IntEnum):
    STRONGLY_TYPED = 0


class OldBuilderFlag(IntEnum):
    FP16, TF32 = range(2)


class BuilderFlag(IntEnum):
    TF32, REFIT = range(2)


class RTXBuilderFlag(IntEnum):
    TF32, REQUIRE_USER_ALLOCATION = range(2)


class Validity(IntEnum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class Diagnostics(IntEnum):
    VERSION_MISMATCH, UNSUPPORTED_CC = 1, 2


class ILogger:
    """The vendor's base of loggers."""


class Vendor(ModuleType):
    """A module that notes what it is told, and refuses what ``refused`` names.

    ``said`` is what its logger hears before it refuses; ``verdict`` is its word on every plan.
    """

    def __init__(self, version: str) -> None:
        super().__init__("tensorrt")
        self.calls: Log = []
        self.refused: dict[str, Any] = {}
        self.said = "the vendor's own words"
        self.logits = (-1, 3)
        self.profiles = iter([0, *[-1] * 99])  # only the first context has its profile set
        self.scratch = SCRATCH
        self.ILogger = ILogger
        self.DataType, self.TensorIOMode = DataType, Mode
        self.ExecutionContextAllocationStrategy = Strategy
        old, rtx = version.startswith("10"), version == "rtx"
        self.NetworkDefinitionCreationFlag = OldNetworkFlag if old else NetworkFlag
        self.BuilderFlag = OldBuilderFlag if old else RTXBuilderFlag if rtx else BuilderFlag
        self.Runtime = lambda logger: Runtime(self, logger, judges=rtx)
        self.Builder = lambda logger: Builder(self, logger)
        self.OnnxParser = lambda network, logger: Parser(self)
        self.capturable: bool | None = True if rtx else None
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = Specialisation
            self.EngineValidity = Validity
            self.EngineInvalidityDiagnostics = Diagnostics
            self.verdict = (Validity.VALID, 0)

    def told(self, name: str, *facts: Any, gives: Any = True) -> Any:
        """Note a call; what it returns."""
        self.calls.append((name, *facts))
        if name in self.refused:
            self.logger.log(1, self.said)
            return self.refused[name]
        return gives

    def names(self) -> list[str]:
        """Of the calls so far; they are forgotten."""
        names = [call[0] for call in self.calls]
        self.calls.clear()
        return names


class Runtime:
    engine_header_size = 64

    def __init__(self, vendor: Vendor, logger: Any, *, judges: bool) -> None:
        self.vendor = vendor
        vendor.logger = logger
        if judges:
            self.get_engine_validity = lambda header: vendor.told(
                "get_engine_validity", len(header), gives=vendor.verdict
            )

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        return self.vendor.told("deserialize_cuda_engine", plan, gives=CudaEngine(self.vendor))


class CudaEngine:
    num_io_tensors = 3

    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.device_memory_size_v2 = vendor.scratch

    def get_tensor_name(self, index: int) -> str:
        return ("features", "logits", "more")[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "features" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"features": (-1, 4), "logits": self.vendor.logits, "more": (-1, 2)}[name]

    def create_runtime_config(self) -> Any:
        def allocate(strategy: Strategy) -> None:
            config.strategy = strategy

        config = SimpleNamespace(set_execution_context_allocation_strategy=allocate)
        return config

    def create_execution_context(self, how: Any) -> Any:
        made = FakeContext(self.vendor)
        return self.vendor.told("create_execution_context", how, gives=made)


class FakeContext:
    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.batch = 0
        self.active_optimization_profile = next(vendor.profiles)
        if vendor.capturable is not None:
            self.is_stream_capturable = lambda stream: vendor.capturable

    def set_optimization_profile_async(self, index: int, stream: int) -> Any:
        self.active_optimization_profile = index
        return self.vendor.told("set_optimization_profile_async", index, stream)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> Any:
        self.batch = shape[0]
        return self.vendor.told("set_input_shape", name, shape)

    def infer_shapes(self) -> Any:
        return self.vendor.told("infer_shapes", gives=[])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {"logits": (self.batch, 3), "more": (self.batch, 2)}[name]
        return self.vendor.told("get_tensor_shape", name, gives=sizes)

    def set_tensor_address(self, name: str, address: int) -> Any:
        return self.vendor.told("set_tensor_address", name, address)

    def set_device_memory(self, address: int, size: int) -> None:
        self.vendor.told("set_device_memory", address, size)

    def execute_async_v3(self, stream: int) -> Any:
        return self.vendor.told("execute_async_v3", stream)


class Builder:
    def __init__(self, vendor: Vendor, logger: Any) -> None:
        self.vendor = vendor
        vendor.logger = logger

    def create_network(self, flags: int) -> Any:
        def port(name: str, sizes: tuple[int, ...]) -> Any:
            return SimpleNamespace(name=name, dtype=DataType.FLOAT, shape=(-1, *sizes))

        outputs = [port("logits", (3,)), port("more", (2,))]
        network = SimpleNamespace(
            num_inputs=1,
            num_outputs=2,
            get_input=lambda index: port("features", (4,)),
            get_output=outputs.__getitem__,
        )
        return self.vendor.told("create_network", flags, gives=network)

    def create_builder_config(self) -> Any:
        told = self.vendor.told
        return SimpleNamespace(
            clear_flag=lambda flag: told("clear_flag", flag.name),
            set_flag=lambda flag: told("set_flag", flag.name),
            add_optimization_profile=lambda profile: told("add_optimization_profile", gives=0),
        )

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *shapes: self.vendor.told("set_shape", *shapes))

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        return self.vendor.told("build_serialized_network", gives=b"a plan")


class Parser:
    num_errors = 0

    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor

    def parse(self, model: bytes) -> Any:
        return self.vendor.told("parse", model)


# --- an invented GPU ----------------------------------------------------------------------------


class Stream:
    """A stream that notes what waits for what."""

    def __init__(self, log: Log, number: int) -> None:
        self.log, self.cuda_stream = log, number

    def wait_stream(self, other: Stream) -> None:
        self.log.append(("wait", self.cuda_stream, other.cuda_stream))

    def synchronize(self) -> None:
        self.log.append(("synchronize", self.cuda_stream))


class Graph:
    """A CUDA graph that notes its replays."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def replay(self) -> None:
        self.gpu.log.append(("replay", self.gpu.current.cuda_stream))

    def reset(self) -> None:
        self.gpu.log.append(("reset",))


class Gpu:
    """Streams 0 (the default), 1 (another) and 9 (the engine's own), in place of torch's."""

    def __init__(self, log: Log, patch: pytest.MonkeyPatch) -> None:
        self.log = log
        self.default, self.other, self.side = (Stream(log, number) for number in (0, 1, 9))
        self.current = self.other
        patch.setattr(torch.cuda, "current_stream", lambda: self.current)
        patch.setattr(torch.cuda, "default_stream", lambda: self.default)
        patch.setattr(torch.cuda, "Stream", lambda: self.side)
        patch.setattr(torch.cuda, "stream", self.on)
        patch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        patch.setattr(torch.cuda, "graph", self.capture)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def capture(self, graph: Graph, *, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        self.log.append(("capture", stream.cuda_stream, capture_error_mode))
        yield
        self.log.append(("captured",))


@pytest.fixture(params=VENDORS)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    return Vendor(request.param)


@pytest.fixture
def rtx() -> Vendor:
    return Vendor("rtx")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Vendor], Gpu]:
    """The GPU that a vendor runs on; both note into one log."""
    return lambda vendor: Gpu(vendor.calls, monkeypatch)


def load(vendor: Vendor, target: Target = TARGET) -> TensorRTEngine:
    return TensorRTEngine(TensorRTApi(vendor), b"a plan", SEGMENT, target)


def tensors(batch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    out = {"logits": torch.zeros(batch, 3), "more": torch.zeros(batch, 2)}
    return {"features": torch.zeros(batch, 4)}, out


# --- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "flags"), [("10.16", 2), ("11.1", 1), ("rtx", 1)])
def test_networks_are_strongly_typed_in_every_version(version: str, flags: int) -> None:
    made = Vendor(version)
    api = TensorRTApi(made)
    api.network(made.Builder(api.logger))
    assert made.calls == [("create_network", flags)]


def test_the_build_is_the_same_but_for_what_rtx_adds(vendor: Vendor) -> None:
    backend = TensorRTBackend()
    backend._api = lambda: TensorRTApi(vendor)  # type: ignore[method-assign]
    assert backend._compile(SEGMENT, TARGET) == b"a plan"
    calls = [call for call in vendor.calls if call[0] != "create_network"]
    extra = [call for call in calls if call[0] == "set_flag"]
    assert extra == ([("set_flag", "REQUIRE_USER_ALLOCATION")] if vendor.capturable else [])
    assert [call for call in calls if call not in extra] == [
        ("parse", b"a model"),
        ("clear_flag", "TF32"),
        ("set_shape", "features", (1, 4), (8, 4), (8, 4)),
        ("add_optimization_profile",),
        ("build_serialized_network",),
    ]


REFUSED_BUILDS = {
    "create_network": None,
    "parse": False,
    "add_optimization_profile": -1,
    "build_serialized_network": None,
}


@pytest.mark.parametrize("name", REFUSED_BUILDS)
def test_a_build_that_is_refused_is_told_in_the_vendors_words(
    vendor: Vendor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TensorRTBackend()
    monkeypatch.setattr(backend, "_api", lambda: TensorRTApi(vendor))
    vendor.refused[name] = REFUSED_BUILDS[name]
    with pytest.raises(CompileError, match=r"cannot compile tail.*the vendor's own words"):
        backend.compile(SEGMENT, TARGET)


def test_contexts_manage_no_memory_and_rtx_specialises_at_once(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    load(vendor)
    how = next(call[1] for call in vendor.calls if call[0] == "create_execution_context")
    if vendor.capturable:
        assert how.dynamic_shapes_kernel_specialization_strategy is Specialisation.EAGER
        how = how.strategy
    assert how is Strategy.USER_MANAGED


def test_only_rtx_judges_plans(vendor: Vendor) -> None:
    verdict = TensorRTApi(vendor).verdict(bytes(1000))
    assert verdict == ("valid" if vendor.capturable else "not judged")
    assert vendor.calls == ([("get_engine_validity", 64)] if vendor.capturable else [])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((Validity.SUBOPTIMAL, 0), "suboptimal"),
        ((Validity.INVALID, 0), "no GPU"),
        ((Validity.INVALID, 2), "unsupported cc"),
        ((Validity.INVALID, 3), "version mismatch, unsupported cc"),
    ],
)
def test_a_verdict_names_its_reasons(rtx: Vendor, found: Any, said: str) -> None:
    rtx.verdict = found
    assert TensorRTApi(rtx).verdict(b"") == said


def test_a_plan_for_another_gpu_is_not_loaded(rtx: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TensorRTBackend()
    monkeypatch.setattr(backend, "_api", lambda: TensorRTApi(rtx))
    rtx.verdict = (Validity.INVALID, 2)
    with pytest.raises(RuntimeError, match="the vendor says of its plan: unsupported cc"):
        backend._load(b"a plan", SEGMENT, TARGET)
    assert rtx.names() == ["get_engine_validity"]


# --- runs ---------------------------------------------------------------------------------------


def test_a_run_binds_the_very_tensors_and_enqueues(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine = load(vendor)
    vendor.calls.clear()
    inputs, out = tensors(5)
    assert engine.run(inputs, out)["logits"] is out["logits"]
    address = next(call[1] for call in vendor.calls if call[0] == "set_device_memory")
    assert address % ALIGNMENT == 0
    assert vendor.calls == [
        ("set_input_shape", "features", (5, 4)),
        ("infer_shapes",),
        ("get_tensor_shape", "logits"),
        ("get_tensor_shape", "more"),
        ("set_tensor_address", "features", inputs["features"].data_ptr()),
        ("set_tensor_address", "logits", out["logits"].data_ptr()),
        ("set_tensor_address", "more", out["more"].data_ptr()),
        ("set_device_memory", address, SCRATCH),
        ("execute_async_v3", 1),
    ]


def test_the_same_tensors_are_bound_once(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    engine.run(inputs, out)
    vendor.calls.clear()
    engine.run(inputs, out)
    assert vendor.calls == [("execute_async_v3", 1)]
    engine.run(inputs, tensors(5)[1])
    assert "set_tensor_address" in vendor.names()


def test_fewer_rows_at_the_same_address_are_bound_anew(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    engine.run(inputs, out)
    vendor.calls.clear()
    engine.run({"features": inputs["features"][:2]}, {name: t[:2] for name, t in out.items()})
    assert ("set_input_shape", "features", (2, 4)) in vendor.calls


def test_a_given_stream_is_used(gpu: Any, vendor: Vendor) -> None:
    made, engine = gpu(vendor), load(vendor)
    vendor.calls.clear()
    engine.run(*tensors(2), stream=Stream(made.log, 7))
    assert ("execute_async_v3", 7) in vendor.calls


def test_the_default_stream_is_left_for_another_and_waits_for_it(gpu: Any, vendor: Vendor) -> None:
    made, engine = gpu(vendor), load(vendor)
    made.current = made.default
    vendor.calls.clear()
    engine.run(*tensors(2))
    assert vendor.calls[0] == ("wait", 9, 0)
    assert vendor.calls[-2:] == [("execute_async_v3", 9), ("wait", 0, 9)]


REFUSED_RUNS = {
    "set_input_shape": False,
    "infer_shapes": ["features"],
    "set_tensor_address": False,
    "execute_async_v3": False,
}


@pytest.mark.parametrize("name", REFUSED_RUNS)
def test_a_run_that_is_refused_is_told_in_the_vendors_words(
    gpu: Any, vendor: Vendor, name: str
) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(2)
    vendor.refused[name] = REFUSED_RUNS[name]
    with pytest.raises(EngineError, match=f"segment tail: {name}.* fails: the vendor's own words"):
        engine.run(inputs, out)
    vendor.refused.clear()
    engine.run(inputs, out)
    assert vendor.calls[-1] == ("execute_async_v3", 1)


def test_after_a_refusal_everything_is_bound_anew(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(2)
    vendor.refused["set_tensor_address"] = False
    with pytest.raises(EngineError):
        engine.run(inputs, out)
    vendor.refused.clear()
    vendor.calls.clear()
    engine.run(inputs, out)
    assert vendor.names().count("set_tensor_address") == 3


def test_an_output_of_another_size_is_refused_before_it_is_written(
    gpu: Any, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(vendor)
    engine = load(vendor)
    monkeypatch.setattr(FakeContext, "get_tensor_shape", lambda self, name: (2, 99))
    with pytest.raises(EngineError, match=r"gives logits as \(2, 99\)"):
        engine.run(*tensors(2))
    assert "execute_async_v3" not in vendor.names()


# --- loading ------------------------------------------------------------------------------------


def test_a_plan_that_does_not_load_is_told(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    vendor.refused["deserialize_cuda_engine"] = None
    with pytest.raises(RuntimeError, match="deserialize_cuda_engine fails: the vendor's own words"):
        load(vendor)


def test_a_plan_with_other_tensors_is_refused(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    vendor.logits = (-1, 4)
    with pytest.raises(EngineError, match=r"the plan has logits as \(-1, 4\) float32"):
        load(vendor)


@pytest.mark.parametrize("said", ["", "Error Code 2: OutOfMemory (Requested size was 7 bytes.)"])
def test_a_context_that_finds_no_room_is_a_memory_error(
    gpu: Any, vendor: Vendor, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(vendor)
    backend = TensorRTBackend()
    monkeypatch.setattr(backend, "_api", lambda: TensorRTApi(vendor))
    monkeypatch.setattr(backend, "require", lambda: None)
    data = backend.compile(SEGMENT, TARGET)
    vendor.refused["create_execution_context"] = None
    vendor.said = said
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        backend.load(data, SEGMENT, TARGET)


# --- CUDA graphs --------------------------------------------------------------------------------


def test_prepared_tensors_replay_a_graph_that_was_captured_after_a_run(
    gpu: Any, vendor: Vendor
) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    engine.prepare(inputs, out)
    where = vendor.calls.index(("capture", 9, "thread_local"))
    assert vendor.calls[where - 2 : where] == [("execute_async_v3", 9), ("synchronize", 9)]
    assert vendor.calls[where + 1 :] == [("execute_async_v3", 9), ("captured",)]
    vendor.calls.clear()
    engine.run(inputs, out)
    assert vendor.calls == [("wait", 1, 9), ("replay", 1)]
    engine.run(inputs, out)
    assert vendor.calls[2:] == [("replay", 1)]


def test_a_graph_has_a_context_of_its_own_with_its_profile_set(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine = load(vendor)
    engine.prepare(*tensors(5))
    engine.prepare(*tensors(2))
    names = vendor.names()
    assert names.count("create_execution_context") == 3
    assert names.count("set_optimization_profile_async") == 2


def test_other_tensors_or_fewer_rows_replay_no_graph(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    engine.prepare(inputs, out)
    vendor.calls.clear()
    engine.run(inputs, tensors(5)[1])
    engine.run({"features": inputs["features"][:2]}, {name: t[:2] for name, t in out.items()})
    names = vendor.names()
    assert "replay" not in names
    assert names.count("execute_async_v3") == 2


def test_the_order_of_names_does_not_matter(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    engine.prepare(inputs, dict(reversed(out.items())))
    vendor.calls.clear()
    engine.run(inputs, out)
    assert vendor.names() == ["wait", "replay"]


def test_outputs_that_are_left_out_capture_nothing(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    engine.prepare(inputs, {"logits": out["logits"]})
    assert "capture" not in vendor.names()


def test_a_context_that_may_not_be_captured_runs_without_a_graph(
    gpu: Any, rtx: Vendor, caplog: pytest.LogCaptureFixture
) -> None:
    gpu(rtx)
    rtx.capturable = False
    engine, (inputs, out) = load(rtx), tensors(5)
    with caplog.at_level("INFO"):
        engine.prepare(inputs, out)
    assert "tail runs without a CUDA graph: its vendor allows none" in caplog.text
    assert "capture" not in rtx.names()
    engine.run(inputs, out)
    assert rtx.names()[-1] == "execute_async_v3"


def test_a_capture_that_fails_leaves_an_engine_that_runs(
    gpu: Any, vendor: Vendor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    engine.prepare(inputs, out)
    assert "tail runs without a CUDA graph: operation not permitted" in caplog.text
    vendor.calls.clear()
    engine.run(inputs, out)
    assert vendor.names()[-1] == "execute_async_v3"


def test_graphs_are_captured_anew_when_the_scratch_memory_has_moved(
    gpu: Any, vendor: Vendor
) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    engine.prepare(inputs, out)
    vendor.scratch = 3 * SCRATCH
    larger = load(vendor)
    vendor.calls.clear()
    engine.run(inputs, out)
    names = vendor.names()
    assert names.index("set_device_memory") < names.index("capture") < names.index("replay")
    engine.run(inputs, out)
    assert vendor.names() == ["replay"]
    larger.close()


def test_a_graph_that_cannot_be_captured_anew_is_given_up(
    gpu: Any, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    engine.prepare(inputs, out)
    vendor.scratch = 3 * SCRATCH
    larger = load(vendor)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: 1 / 0)
    vendor.calls.clear()
    engine.run(inputs, out)
    moved = [call for call in vendor.calls if call[0] == "set_device_memory"]
    assert [call[2] for call in moved] == [3 * SCRATCH, 3 * SCRATCH]
    names = vendor.names()
    assert "replay" not in names
    assert names[-1] == "execute_async_v3"
    larger.close()


def test_the_oldest_of_many_graphs_goes(
    gpu: Any, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(vendor)
    monkeypatch.setattr("opa_trt.backends.tensorrt_engine.MOST_GRAPHS", 2)
    engine, given = load(vendor), [tensors(batch) for batch in (1, 2, 3)]
    for inputs, out in given:
        engine.prepare(inputs, out)
    assert vendor.names().count("reset") == 1
    for inputs, out in given:
        engine.run(inputs, out)
    names = vendor.names()
    assert (names.count("execute_async_v3"), names.count("replay")) == (1, 2)


def test_preparing_the_same_tensors_again_captures_them_anew(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(5)
    engine.prepare(inputs, out)
    vendor.calls.clear()
    engine.prepare(inputs, out)
    names = vendor.names()
    assert names.index("synchronize") < names.index("reset") < names.index("capture")


def test_closing_waits_and_releases_the_graphs(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine = load(vendor)
    engine.prepare(*tensors(5))
    vendor.calls.clear()
    engine.close()
    assert vendor.calls == [("synchronize", 9), ("reset",)]
    with pytest.raises(EngineError, match="closed"):
        engine.run(*tensors(5))


# --- scratch memory -----------------------------------------------------------------------------


def test_engines_share_the_scratch_memory_of_the_largest(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engines = []
    for size in (100, 3000, 200):
        vendor.scratch = size
        engines.append(load(vendor))
    vendor.calls.clear()
    for engine in engines:
        engine.run(*tensors(2))
    given = {call[1:] for call in vendor.calls if call[0] == "set_device_memory"}
    assert [size for _, size in given] == [3000]
    del engines, engine


def test_an_engine_without_scratch_memory_is_given_none(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    vendor.scratch = 0
    load(vendor).run(*tensors(2))
    assert "set_device_memory" not in vendor.names()


def test_scratch_memory_goes_with_its_last_engine(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine = load(vendor)
    first = Scratch.of("cpu")
    assert first.size == SCRATCH
    del engine, first
    gc.collect()
    assert Scratch.of("cpu").size == 0


def test_scratch_memory_grows_and_never_shrinks() -> None:
    scratch = Scratch("cpu")
    scratch.reserve(500)
    scratch.reserve(100)
    assert (scratch.size, scratch.generation) == (500, 1)
    scratch.reserve(5000)
    assert (scratch.size, scratch.generation) == (5000, 2)
    assert scratch.address % ALIGNMENT == 0


def test_scratch_memory_that_cannot_grow_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    scratch = Scratch("cpu")
    scratch.reserve(500)
    before = scratch.address
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError):
        scratch.reserve(5000)
    assert (scratch.size, scratch.generation, scratch.address) == (500, 1, before)


def test_runs_on_other_streams_wait_for_their_turn() -> None:
    log: Log = []
    one, two, scratch = Stream(log, 1), Stream(log, 2), Scratch("cpu")
    for stream in (one, one, two, one):
        with scratch.turn(stream):
            log.append(("run", stream.cuda_stream))
    assert log == [
        ("run", 1),
        ("run", 1),
        ("wait", 2, 1),
        ("run", 2),
        ("wait", 1, 2),
        ("run", 1),
    ]


def test_growing_waits_for_what_still_runs() -> None:
    log: Log = []
    scratch = Scratch("cpu")
    with scratch.turn(Stream(log, 4)):
        pass
    scratch.reserve(10)
    assert log == [("synchronize", 4)]


# --- forks --------------------------------------------------------------------------------------


def test_a_fork_has_a_context_of_its_own_on_the_same_engine(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine = load(vendor)
    vendor.calls.clear()
    fork: Any = engine.fork()
    assert vendor.names() == ["create_execution_context"]
    assert fork._engine is engine._engine
    assert fork._scratch is engine._scratch
    assert fork._context is not engine._context


def test_graphs_of_an_engine_are_not_its_forks(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(3)
    engine.prepare(inputs, out)
    fork = engine.fork()
    vendor.calls.clear()
    fork.run(inputs, out)
    assert "replay" not in vendor.names()
    engine.run(inputs, out)
    assert "replay" in vendor.names()


def test_closing_an_engine_leaves_its_fork_with_the_program(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine, (inputs, out) = load(vendor), tensors(3)
    engine.prepare(inputs, out)
    fork: Any = engine.fork()
    fork.prepare(inputs, out)
    engine.close()
    assert fork._engine is not None
    assert fork._runtime is not None
    vendor.calls.clear()
    fork.run(inputs, out)
    assert "replay" in vendor.names()


def test_a_fork_without_room_is_told_in_the_vendors_words(gpu: Any, vendor: Vendor) -> None:
    gpu(vendor)
    engine = load(vendor)
    vendor.refused["create_execution_context"] = None
    vendor.said = "Out of memory"
    with pytest.raises(DeviceMemoryError, match="cannot fork tail"):
        engine.fork()


# --- the logger ---------------------------------------------------------------------------------


def test_one_logger_serves_all_engines_of_a_vendor(vendor: Vendor) -> None:
    assert TensorRTApi(vendor).logger is TensorRTApi(vendor).logger


def test_errors_are_told_once_and_warnings_are_logged(
    vendor: Vendor, caplog: pytest.LogCaptureFixture
) -> None:
    api = TensorRTApi(vendor)
    with caplog.at_level("INFO"):
        for level, text in ((1, "bad"), (0, "worse"), (1, "bad"), (2, "take care"), (4, "detail")):
            api.logger.log(level, text)
    assert api.words.take() == "bad | worse"
    assert api.words.take() == ""
    assert [record.message for record in caplog.records] == ["take care"]


def test_the_vendors_exceptions_come_with_what_its_logger_was_told(vendor: Vendor) -> None:
    api = TensorRTApi(vendor)

    def build() -> None:
        with api.explained():
            api.logger.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("factory function returned nullptr")

    with pytest.raises(RuntimeError, match=r"nullptr \| CUDA initialization failure.*35"):
        build()
