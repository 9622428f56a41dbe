"""Engines are used only if they are known to be right; otherwise they are compiled again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import opa_trt
from opa_trt import backends
from opa_trt.backends import Availability, Backend, Engine, backend
from opa_trt.backends.envelope import Envelope, unseal
from opa_trt.backends.null import NullBackend
from opa_trt.backends.onnxruntime import OnnxRuntimeBackend
from opa_trt.backends.openvino import OpenVinoBackend
from opa_trt.backends.torchscript import TorchScriptBackend, read_trace
from opa_trt.bundle import Bundle, EngineEntry
from opa_trt.clock import VirtualClock
from opa_trt.errors import (
    BackendUnavailable,
    BundleCorrupt,
    ConfigError,
    DeviceMemoryError,
    EngineError,
    ParityError,
    TargetMismatch,
    UnknownNameError,
    UntrustedForm,
)
from opa_trt.runtime.canary import canary_batches, verify
from opa_trt.runtime.engines import EngineLoader, open_loader
from opa_trt.runtime.plan import make_plan
from opa_trt.store import EngineStore, LatencyProfile, engine_key
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, PlanEntry, Tree

NODES = ("pioneer", "tiny", "small", "medium", "large")


class Traced(Engine):
    """Runs a trace, whatever it is said to be."""

    def __init__(self, data: bytes, segment: Any, target: Any) -> None:
        super().__init__(segment, target)
        self.module = read_trace(data)

    def _run(self, inputs: Any, out: Any, stream: Any) -> None:
        (given,) = inputs.values()
        values = self.module(given)
        values = values if isinstance(values, tuple) else (values,)
        for spec, value in zip(self.segment.outputs, values, strict=True):
            out[spec.name].copy_(value)


class Counting(Backend):
    """Counts what it compiles; its engines name the segment whose trace they run."""

    name = "counting"
    executes_code = False
    forms = ("onnx", "torchscript")
    mark = b"engine of "

    def __init__(self, traces: dict[str, bytes]) -> None:
        super().__init__()
        self.compiled: list[str] = []
        self.traces = traces

    def availability(self) -> Availability:
        return Availability(version="1.0")

    def _compile(self, segment: Any, target: Any) -> bytes:
        self.compiled.append(segment.name)
        return self.mark + segment.name.encode()

    def _load(self, data: bytes, segment: Any, target: Any) -> Any:
        """The engine that the bytes name, even if it is another segment's."""
        if not data.startswith(self.mark):
            raise ValueError("no such engine")
        return Traced(self.traces[data.removeprefix(self.mark).decode()], segment, target)


@pytest.fixture
def vendor(toy: Any) -> Counting:
    return Counting(toy.traces)


@pytest.fixture
def load(vendor: Counting, ticking: VirtualClock) -> Callable[..., opa_trt.Session]:
    """``opa_trt.load`` with the counting backend."""

    def loaded(path: Path, **options: Any) -> opa_trt.Session:
        return opa_trt.load(path, **{"backend": vendor, "clock": ticking, **options})

    return loaded


def stored(name: str, vendor: Counting, toy: Any) -> tuple[str, Path]:
    """Key and file of a segment's engine in the store."""
    key = engine_key(toy.segment(name), vendor.target(max_batch=8, threads=1), vendor)
    return key, EngineStore().root / "engines" / f"{key}.engine"


def sealed(toy: Any, vendor: Counting, name: str, payload: bytes) -> bytes:
    """An engine of segment ``name`` by its stamp, whatever it holds."""
    target = vendor.target(max_batch=8, threads=1)
    return Envelope(vendor.stamp(toy.segment(name), target), payload).seal()


def bundled(toy: Any, vendor: Counting, payloads: dict[str, bytes]) -> dict[EngineEntry, bytes]:
    """Entries for engines that a bundle brings along."""
    target = vendor.target(max_batch=8, threads=1)
    return {
        EngineEntry(
            name, target, engine_key(toy.segment(name), target, vendor), f"engines/{name}"
        ): sealed(toy, vendor, name, payload)
        for name, payload in payloads.items()
    }


# --- compiled, kept, found again ----------------------------------------------------------------


def test_the_first_load_compiles_and_keeps_every_engine(
    load: Any, vendor: Counting, toy_bundle: Path
) -> None:
    load(toy_bundle)
    assert vendor.compiled == list(NODES)
    assert len(list((EngineStore().root / "engines").iterdir())) == 5


def test_the_second_load_compiles_nothing(load: Any, vendor: Counting, toy_bundle: Path) -> None:
    load(toy_bundle)
    vendor.compiled.clear()
    load(toy_bundle)
    assert vendor.compiled == []


def test_what_was_done_is_told(
    load: Any, toy_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="opa_trt"):
        load(toy_bundle)
    assert "5 engines on counting" in caplog.text
    assert "5 of them compiled now" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="opa_trt"):
        load(toy_bundle)
    assert "0 of them compiled now" in caplog.text


def test_other_threads_need_other_engines(
    load: Any, vendor: Counting, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)  # two would be slow here
    load(toy_bundle, threads=1)
    vendor.compiled.clear()
    load(toy_bundle, threads=2)
    assert vendor.compiled == list(NODES)


def test_a_store_may_be_given(load: Any, toy_bundle: Path, tmp_path: Path) -> None:
    load(toy_bundle, store=EngineStore(tmp_path / "mine"))
    assert len(list((tmp_path / "mine" / "engines").iterdir())) == 5
    assert not EngineStore().root.exists()


def test_an_engine_of_the_bundle_is_used(
    load: Any, vendor: Counting, toy: Any, tmp_path: Path
) -> None:
    engines = bundled(toy, vendor, {name: vendor.mark + name.encode() for name in NODES})
    load(toy.pack(tmp_path / "b", engines=engines), compile="never")
    assert vendor.compiled == []


def test_nodes_that_share_a_segment_share_its_engine(
    load: Any, vendor: Counting, toy: Any, tmp_path: Path
) -> None:
    nodes = tuple(
        replace(node, segment="small") if node.name == "tiny" else node for node in toy.nodes
    )
    canary = {**toy.canary}
    for batch in (1, 8):
        canary[f"tiny/{batch}/logits"] = canary[f"small/{batch}/logits"]
    session = load(toy.pack(tmp_path / "b", nodes=nodes, canary=canary))
    assert vendor.compiled == ["pioneer", "small", "medium", "large"]
    assert session.profiles["tiny"] is session.profiles["small"]


def test_a_shared_engine_is_verified_for_each_node(load: Any, toy: Any, tmp_path: Path) -> None:
    nodes = tuple(
        replace(node, segment="tiny") if node.name == "small" else node for node in toy.nodes
    )
    with pytest.raises(ParityError, match="small on counting differs"):
        load(toy.pack(tmp_path / "b", nodes=nodes))


# --- damaged, or somebody else's ----------------------------------------------------------------


def test_a_damaged_stored_engine_is_compiled_again(
    load: Any, vendor: Counting, toy: Any, toy_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(toy_bundle)
    vendor.compiled.clear()
    _, path = stored("small", vendor, toy)
    path.write_bytes(path.read_bytes()[:-1])
    load(toy_bundle)
    assert vendor.compiled == ["small"]
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"nonsense", "cannot load the engine"), (b"engine of medium", "differs by")],
)
def test_a_stored_engine_that_is_wrong_is_compiled_again(
    load: Any, vendor: Counting, toy: Any, toy_bundle: Path, caplog: Any, data: bytes, said: str
) -> None:
    load(toy_bundle)
    vendor.compiled.clear()
    key, _ = stored("small", vendor, toy)
    EngineStore().put_engine(key, sealed(toy, vendor, "small", data))
    load(toy_bundle)
    assert vendor.compiled == ["small"]
    assert "stored engine of small rejected, compiling" in caplog.text
    assert said in caplog.text
    assert unseal(EngineStore().engine(key)).payload == b"engine of small"


@pytest.mark.parametrize("data", [b"nonsense", b"engine of medium"])
def test_a_wrong_engine_of_the_bundle_is_compiled_again(
    load: Any, vendor: Counting, toy: Any, tmp_path: Path, caplog: Any, data: bytes
) -> None:
    path = toy.pack(tmp_path / "b", engines=bundled(toy, vendor, {"small": data}))
    session = load(path)
    assert "small" in vendor.compiled
    assert "bundled engine of small rejected, compiling" in caplog.text
    session.use("static:small")
    wanted = toy.monolith("small", toy.images(3))
    np.testing.assert_allclose(session.infer(toy.images(3), 1).logits, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("data", "error"), [(b"nonsense", EngineError), (b"engine of medium", ParityError)]
)
def test_a_wrong_engine_of_the_bundle_is_an_error_where_verifying_is_the_point(
    vendor: Counting, toy: Any, tmp_path: Path, data: bytes, error: type[Exception]
) -> None:
    path = toy.pack(tmp_path / "b", engines=bundled(toy, vendor, {"small": data}))
    loader = open_loader(path, backend=vendor, strict=True)
    with pytest.raises(error):
        loader.engines()


def test_the_engine_compiled_in_its_place_is_found_the_next_time(
    load: Any, vendor: Counting, toy: Any, tmp_path: Path
) -> None:
    path = toy.pack(tmp_path / "b", engines=bundled(toy, vendor, {"small": b"nonsense"}))
    load(path)
    vendor.compiled.clear()
    load(path)
    assert vendor.compiled == []


def test_an_engine_of_another_target_is_not_even_read(
    load: Any, vendor: Counting, toy: Any, tmp_path: Path
) -> None:
    (entry,) = bundled(toy, vendor, {"small": b""})
    other = replace(entry, key="of another machine")
    load(toy.pack(tmp_path / "b", engines={other: b"engine of medium"}))
    assert "small" in vendor.compiled


def test_a_portable_form_that_disagrees_is_an_error(
    toy: Any, tmp_path: Path, ticking: VirtualClock
) -> None:
    canary = {**toy.canary, "small/8/logits": toy.canary["small/8/logits"] + np.float32(0.01)}
    path = toy.pack(tmp_path / "b", canary=canary)
    with pytest.raises(ParityError, match="small on torchscript differs by"):
        opa_trt.load(path, backend="torchscript", clock=ticking)


def test_an_engine_that_disagrees_is_not_kept(load: Any, toy: Any, tmp_path: Path) -> None:
    canary = {**toy.canary, "pioneer/1/logits": toy.canary["pioneer/1/logits"] + 1}
    with pytest.raises(ParityError):
        load(toy.pack(tmp_path / "b", canary=canary))
    assert not (EngineStore().root / "engines").exists()


# --- compiling that is not allowed --------------------------------------------------------------


def test_without_engines_never_compile_says_what_there_is(load: Any, toy_bundle: Path) -> None:
    with pytest.raises(TargetMismatch, match="has engines for none") as caught:
        load(toy_bundle, compile="never")
    assert "compile='auto'" in caught.value.remedy


def test_with_engines_of_others_never_compile_names_them(
    load: Any, vendor: Counting, toy: Any, tmp_path: Path
) -> None:
    (entry,) = bundled(toy, vendor, {"small": b""})
    other = replace(entry, target=replace(entry.target, version="0.1"), key="other")
    path = toy.pack(tmp_path / "b", engines={other: b""})
    with pytest.raises(TargetMismatch, match=r"has engines for counting 0\.1"):
        load(path, compile="never")


def test_with_stored_engines_never_compile_works(
    load: Any, vendor: Counting, toy_bundle: Path
) -> None:
    load(toy_bundle)
    vendor.compiled.clear()
    load(toy_bundle, compile="never").close()
    assert vendor.compiled == []


def test_another_word_for_compile_is_refused(load: Any, toy_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="compile='sometimes'"):
        load(toy_bundle, compile="sometimes")


# --- forms that can execute code ----------------------------------------------------------------


def test_a_backend_that_executes_code_is_refused(
    toy_bundle: Path, ticking: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opa_trt.load(toy_bundle, backend="torchscript", clock=ticking)
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(UntrustedForm, match="torchscript engines can execute code") as caught:
        opa_trt.load(toy_bundle, backend="torchscript", trusted=False)
    assert "trusted=True" in caught.value.remedy


def test_the_form_without_code_is_compiled(load: Any, vendor: Counting, toy_bundle: Path) -> None:
    load(toy_bundle, trusted=False).close()
    assert vendor.compiled == list(NODES)


def test_a_bundle_without_a_form_free_of_code_is_refused(
    load: Any, vendor: Counting, toy: Any, tmp_path: Path
) -> None:
    forms = {name: {"torchscript": data} for name, data in toy.traces.items()}
    path = replace(toy, forms=forms).pack(tmp_path / "b")
    with pytest.raises(UntrustedForm, match="pioneer has no form that cannot"):
        load(path, trusted=False)
    assert vendor.compiled == []


def test_auto_takes_a_backend_that_needs_no_trust(
    toy_bundle: Path, ticking: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("was read"))
    with opa_trt.load(toy_bundle, trusted=False, clock=ticking) as session:
        assert session.manifest.backend == "torchscript"
        assert session.backend in ("openvino", "onnxruntime")


def test_engines_that_cannot_execute_code_are_loaded(load: Any, toy_bundle: Path) -> None:
    load(toy_bundle)
    load(toy_bundle, trusted=False).close()


def test_a_backend_without_forms_needs_no_trust(toy_bundle: Path) -> None:
    opa_trt.load(toy_bundle, backend=NullBackend(), clock=VirtualClock(), trusted=False).close()


# --- the canary ---------------------------------------------------------------------------------


def torchscript(toy: Any, name: str) -> Any:
    made = backend("torchscript")
    target = made.target(max_batch=8, threads=1)
    segment = toy.segment(name)
    return made.load(made.compile(segment, target), segment, target)


def test_every_engine_agrees_with_its_canary(toy: Any) -> None:
    for node in toy.nodes:
        engine = torchscript(toy, node.name)
        assert verify(engine, Tree(toy.nodes), node, toy.canary, 1e-4) <= 1e-4


def test_the_difference_is_told(toy: Any) -> None:
    wanted = toy.canary["tiny/1/logits"]
    canary = {**toy.canary, "tiny/1/logits": wanted + np.float32(0.5)}
    found = verify(torchscript(toy, "tiny"), Tree(toy.nodes), toy.nodes[1], canary, None)
    assert found == pytest.approx(0.5 / max(1.0, float(np.abs(wanted + 0.5).max())), rel=1e-3)


def test_nan_is_a_difference(toy: Any) -> None:
    canary = {**toy.canary, "tiny/1/logits": np.full((1, 5), np.nan, np.float32)}
    with pytest.raises(ParityError, match="differs by inf"):
        verify(torchscript(toy, "tiny"), Tree(toy.nodes), toy.nodes[1], canary, 1e-4)


@pytest.mark.parametrize("key", ["images/8", "pioneer/1/logits", "pioneer/8/features"])
def test_a_canary_that_lacks_something_is_corrupt(load: Any, toy: Any, tmp_path: Path, key: str):
    canary = {name: values for name, values in toy.canary.items() if name != key}
    if key.startswith("images"):
        canary[f"{key}0"] = np.zeros((1, 3, 16, 16), np.uint8)
    with pytest.raises((BundleCorrupt, EngineError)):
        load(toy.pack(tmp_path / "b", canary=canary))


def test_a_canary_without_images_verifies_nothing_and_is_corrupt(
    load: Any, toy: Any, tmp_path: Path
) -> None:
    canary = {"pioneer/1/logits": toy.canary["pioneer/1/logits"]}
    with pytest.raises(BundleCorrupt, match="the canary holds no images"):
        load(toy.pack(tmp_path / "b", canary=canary))


def test_the_canary_holds_the_smallest_and_the_largest_batch(toy: Any) -> None:
    assert canary_batches(toy.canary) == [1, 8]


# --- latency profiles ---------------------------------------------------------------------------


def test_profiles_are_measured_once_a_machine(
    load: Any, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(toy_bundle).profiles
    monkeypatch.setattr("opa_trt.store.store.measure", lambda *_: pytest.fail("measured"))
    assert load(toy_bundle).profiles == first
    assert first["tiny"].batches == (1, 4, 8)


@pytest.mark.parametrize("values", [{"batches": [1]}, {"batches": [1], "ms": [[1]], "runs": [1]}])
def test_a_profile_that_cannot_be_used_is_measured_again(
    load: Any, vendor: Counting, toy: Any, toy_bundle: Path, values: Any
) -> None:
    load(toy_bundle)
    key, _ = stored("tiny", vendor, toy)
    EngineStore().put_profile(key, values)
    assert load(toy_bundle).profiles["tiny"].batches == (1, 4, 8)


def test_where_one_profile_is_missing_all_are_measured_together(
    load: Any, vendor: Counting, toy: Any, toy_bundle: Path
) -> None:
    """The machine may have been faster or slower when the others were measured."""
    load(toy_bundle)
    batches = (1, 4, 8)
    of_old = LatencyProfile(batches, ((1e4, 1e4, 1e4),) * 3, (7,) * 3).to_dict()
    for name in NODES:
        key, _ = stored(name, vendor, toy)
        EngineStore().put_profile(key, {**of_old, "engine": key})
    assert load(toy_bundle).profiles["tiny"].at(8) == 1e4
    EngineStore().put_profile(key, {})
    assert all(profile.at(8) < 1e4 for profile in load(toy_bundle).profiles.values())


def test_a_profile_of_other_buckets_is_measured_again(
    load: Any, vendor: Counting, toy: Any, toy_bundle: Path, tmp_path: Path
) -> None:
    load(toy_bundle)
    finer = toy.pack(tmp_path / "finer", buckets=(1, 2, 4, 8, 64))
    assert load(finer).profiles["tiny"].batches == (1, 2, 4, 8)
    assert vendor.compiled == list(NODES)


def test_an_invented_engine_is_profiled_anew_and_nothing_kept(
    machine: Any, toy_bundle: Path
) -> None:
    assert machine.load(toy_bundle).profiles["large"].at(8) == pytest.approx(8.0)
    machine.ms["large"] = 5.0
    assert machine.load(toy_bundle).profiles["large"].at(8) == pytest.approx(5.0)
    assert not EngineStore().root.exists()


# --- which backend ------------------------------------------------------------------------------


@pytest.fixture
def nothing_works(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Takes backends away."""

    def take(*vendors: type) -> None:
        gone = Availability(reason="it is gone.", install="pip install it")
        for made in vendors:
            monkeypatch.setattr(made, "availability", lambda self: gone)

    return take


def choose(toy: Any, path: Path, name: str, best: str) -> str:
    bundle = Bundle(toy.pack(path / "b", backend=best))
    return str(make_plan(bundle, name, threads=1)["tiny"][0].target.backend)


def test_auto_is_what_the_build_found_fastest(toy: Any, tmp_path: Path) -> None:
    assert choose(toy, tmp_path, "auto", "torchscript") == "torchscript"


def test_auto_goes_on_where_that_does_not_work(
    toy: Any, tmp_path: Path, nothing_works: Any
) -> None:
    nothing_works(OpenVinoBackend)
    assert choose(toy, tmp_path, "auto", "openvino") == "onnxruntime"


def test_auto_goes_on_where_nobody_here_knows_it(
    toy: Any, tmp_path: Path, nothing_works: Any
) -> None:
    nothing_works(OpenVinoBackend, OnnxRuntimeBackend)
    assert choose(toy, tmp_path, "auto", "of another package") == "torchscript"


def test_auto_never_ends_at_the_null_backend(toy: Any, tmp_path: Path, nothing_works: Any) -> None:
    nothing_works(OpenVinoBackend, OnnxRuntimeBackend, TorchScriptBackend)
    with pytest.raises(BackendUnavailable, match="works here"):
        choose(toy, tmp_path, "auto", "openvino")


def test_auto_is_the_null_backend_for_a_bundle_built_on_it(toy: Any, tmp_path: Path) -> None:
    assert choose(toy, tmp_path, "auto", "null") == "null"


def test_a_named_backend_is_that_one(toy: Any, tmp_path: Path) -> None:
    assert choose(toy, tmp_path, "null", "torchscript") == "null"


def test_a_named_backend_that_does_not_work_says_what_installs_it(
    toy: Any, tmp_path: Path, nothing_works: Any
) -> None:
    nothing_works(OpenVinoBackend)
    with pytest.raises(BackendUnavailable, match="openvino does not work here") as caught:
        choose(toy, tmp_path, "openvino", "torchscript")
    assert caught.value.remedy == "pip install it"


def test_an_unknown_backend_names_the_nearest(toy_bundle: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        opa_trt.load(toy_bundle, backend="openvinno")


def test_a_backend_made_by_the_caller_need_not_be_registered(
    vendor: Counting, toy_bundle: Path
) -> None:
    assert vendor.name not in backends.backend_names()
    plan = make_plan(Bundle(toy_bundle), vendor, threads=1)
    assert {share.target.backend for shares in plan.values() for share in shares} == {"counting"}


def test_engines_on_two_devices_are_refused(toy: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(TorchScriptBackend, "availability", lambda self: Availability("1"))
    plan = {name: (PlanEntry("torchscript", "fp32", 1, 8),) for name in toy.forms}
    plan["tiny"] = (PlanEntry("torchscript:cuda", "fp32", 1, 8),)
    with pytest.raises(ConfigError, match="cpu and cuda"):
        make_plan(Bundle(toy.pack(tmp_path / "b", plan=plan)), "auto", threads=1)


def test_a_precision_that_a_backend_lacks_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="precision 'fp16' for backend torchscript"):
        opa_trt.load(toy_bundle, backend="torchscript", precision="fp16")


# --- several backends for one bundle ------------------------------------------------------------


@pytest.fixture
def mixed(toy: Any, tmp_path: Path) -> Path:
    """A bundle whose build found ONNX Runtime fastest for single images, and for one tail."""
    whole = (PlanEntry("torchscript", "fp32", 1, 8),)
    parts = (PlanEntry("onnxruntime", "fp32", 1, 2), PlanEntry("torchscript", "fp32", 3, 8))
    plan = {"pioneer": parts, "tiny": whole, "small": parts, "medium": whole}
    plan["large"] = (PlanEntry("onnxruntime", "fp32", 1, 8),)
    return toy.pack(tmp_path / "mixed.opa", plan=plan)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("tail", ["tiny", "small", "large"])
def test_a_session_runs_several_backends(
    toy: Any, mixed: Path, ticking: VirtualClock, tail: str, batch: int
) -> None:
    with opa_trt.load(mixed, policy=f"static:{tail}", clock=ticking) as session:
        images = toy.images(batch)
        wanted = toy.monolith(tail, images)
        np.testing.assert_allclose(session.infer(images, 1e9).logits, wanted, atol=1e-4)
        assert session.backend == "onnxruntime+torchscript"


def test_each_backend_of_a_segment_keeps_its_engine(mixed: Path, ticking: VirtualClock) -> None:
    opa_trt.load(mixed, clock=ticking).close()
    stamps = [entry.stamp for entry in EngineStore().entries()]
    ranges = {(s.segment, s.target.backend, s.target.min_batch, s.target.max_batch) for s in stamps}
    assert ("small", "onnxruntime", 1, 2) in ranges
    assert ("small", "torchscript", 3, 8) in ranges
    assert len(ranges) == 7


def test_where_one_of_them_is_missing_another_runs_all(
    mixed: Path, ticking: VirtualClock, nothing_works: Any
) -> None:
    nothing_works(OnnxRuntimeBackend, OpenVinoBackend)
    with opa_trt.load(mixed, clock=ticking) as session:
        assert session.backend == "torchscript"


# --- verified once ------------------------------------------------------------------------------


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes whose engines are compared with the canary."""
    names: list[str] = []

    def counted(engine: Any, tree: Any, node: Any, *rest: Any) -> float:
        names.append(node.name)
        return verify(engine, tree, node, *rest)

    monkeypatch.setattr("opa_trt.runtime.engines.verify", counted)
    return names


def test_an_engine_that_matched_here_is_not_compared_again(
    load: Any, toy_bundle: Path, verified: list[str]
) -> None:
    load(toy_bundle)
    assert verified == list(NODES)
    verified.clear()
    load(toy_bundle)
    assert verified == []


def test_another_canary_is_compared_again(
    load: Any, toy: Any, toy_bundle: Path, tmp_path: Path, verified: list[str]
) -> None:
    load(toy_bundle)
    verified.clear()
    more = {**toy.canary, "unknown/1/logits": np.zeros(1, np.float32)}
    load(toy.pack(tmp_path / "other.opa", canary=more))
    assert verified == list(NODES)


def test_other_bytes_under_the_same_key_are_compared_again(
    load: Any, vendor: Counting, toy: Any, tmp_path: Path, verified: list[str]
) -> None:
    load(toy.pack(tmp_path / "good", engines=bundled(toy, vendor, {"small": b"engine of small"})))
    verified.clear()
    bad = toy.pack(tmp_path / "bad", engines=bundled(toy, vendor, {"small": b"engine of medium"}))
    load(bad)
    assert verified == ["small", "small"]
    assert vendor.compiled.count("small") == 1


# --- a device without room ----------------------------------------------------------------------


@pytest.fixture
def full(vendor: Counting, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the device run out of memory at some segments."""

    def fail_at(*names: str) -> None:
        load = vendor._load

        def limited(data: bytes, segment: Any, target: Any) -> Any:
            if segment.name in names:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return load(data, segment, target)

        monkeypatch.setattr(vendor, "_load", limited)

    return fail_at


def test_a_tail_without_room_is_left_out_and_told(
    load: Any, full: Any, toy: Any, toy_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full("large", "tiny")
    session = load(toy_bundle)
    assert list(session.tree.nodes) == ["pioneer", "small", "medium"]
    assert session.tree["pioneer"].successors == ("small", "medium")
    assert session.left_out.keys() == {"large", "tiny"}
    assert "out of memory" in session.left_out["large"]
    assert "large has no room here and is left out" in caplog.text
    result = session.infer(toy.images(4), 1e9)
    assert set(result.nodes) <= {"pioneer", "small", "medium"}


@pytest.mark.parametrize(
    ("without", "kept"), [(["b"], ["e", "a", "c"]), (["b", "c"], ["e"]), (["a"], ["e"])]
)
def test_a_node_that_leads_nowhere_else_is_left_out_too(
    without: list[str], kept: list[str]
) -> None:
    tree = Tree(
        (
            Node("e", "e", IMAGES, (FEATURES, LOGITS), ("a",)),
            Node("a", "a", FEATURES, (FEATURES,), ("b", "c")),
            Node("b", "b", FEATURES, (LOGITS,)),
            Node("c", "c", FEATURES, (LOGITS,)),
        )
    )
    loader = SimpleNamespace(bundle=SimpleNamespace(tree=tree), left_out=dict.fromkeys(without, ""))
    found = EngineLoader.tree.fget(loader)  # type: ignore[attr-defined]
    assert list(found.nodes) == kept
    assert all(set(node.successors) <= set(kept) for node in found.nodes.values())


def test_a_pioneer_without_room_is_an_error(load: Any, full: Any, toy_bundle: Path) -> None:
    full("pioneer")
    with pytest.raises(DeviceMemoryError, match="pioneer"):
        load(toy_bundle)
