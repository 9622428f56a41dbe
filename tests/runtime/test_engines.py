"""Engines are used only if they are known to be right; otherwise they are compiled again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opa_trt
from opa_trt import backends
from opa_trt.backends import Availability, backend
from opa_trt.backends.null import NullBackend
from opa_trt.backends.openvino import OpenVinoBackend
from opa_trt.backends.torchscript import TorchScriptBackend
from opa_trt.bundle import Bundle, EngineEntry
from opa_trt.clock import VirtualClock
from opa_trt.errors import (
    BackendUnavailable,
    BundleCorrupt,
    ConfigError,
    EngineError,
    ParityError,
    TargetMismatch,
    UnknownNameError,
    UntrustedForm,
)
from opa_trt.runtime.engines import EngineLoader, canary_batches, choose_backend, verify
from opa_trt.store import EngineStore, engine_key
from opa_trt.tree import Tree

NODES = ("pioneer", "tiny", "small", "medium", "large")


class Counting(TorchScriptBackend):
    """TorchScript that counts what it compiles; its engines carry a mark of their own."""

    name = "counting"
    executes_code = False
    mark = b"engine of "

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def _compile(self, segment: Any, target: Any) -> bytes:
        self.compiled.append(segment.name)
        return self.mark + segment.name.encode()

    def _load(self, data: bytes, segment: Any, target: Any) -> Any:
        """The engine that the bytes name, even if it is another segment's."""
        if not data.startswith(self.mark):
            raise ValueError("no such engine")
        name = data.removeprefix(self.mark).decode()
        forms = {"torchscript": self.traces[name]}
        return super()._load(forms["torchscript"], replace(segment, forms=forms), target)

    traces: dict[str, bytes]


@pytest.fixture
def vendor(toy: Any) -> Counting:
    made = Counting()
    made.traces = toy.traces
    return made


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


def bundled(toy: Any, vendor: Counting, data: dict[str, bytes]) -> dict[EngineEntry, bytes]:
    """Entries for engines that a bundle brings along."""
    target = vendor.target(max_batch=8, threads=1)
    return {
        EngineEntry(
            name, target, engine_key(toy.segment(name), target, vendor), f"engines/{name}"
        ): body
        for name, body in data.items()
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
    assert "is damaged" in caplog.text


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
    EngineStore().put_engine(key, data)
    load(toy_bundle)
    assert vendor.compiled == ["small"]
    assert "stored engine of small rejected, compiling" in caplog.text
    assert said in caplog.text
    assert EngineStore().engine(key) == b"engine of small"


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
    loader = EngineLoader(Bundle(path), vendor, 1, EngineStore(), VirtualClock(), strict=True)
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


def test_torchscript_is_not_compiled_from_an_untrusted_bundle(toy_bundle: Path) -> None:
    with pytest.raises(UntrustedForm, match="reads torchscript, which can execute code") as caught:
        opa_trt.load(toy_bundle, backend="torchscript", trusted=False)
    assert "trusted=True" in caught.value.remedy


def test_torchscript_engines_of_an_untrusted_bundle_are_not_loaded(
    toy_bundle: Path, ticking: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opa_trt.load(toy_bundle, backend="torchscript", clock=ticking)
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(UntrustedForm, match="engines are TorchScript"):
        opa_trt.load(toy_bundle, backend="torchscript", trusted=False)


def test_a_backend_that_compiles_from_torchscript_may_not_either(
    load: Any, vendor: Counting, toy_bundle: Path
) -> None:
    with pytest.raises(UntrustedForm, match="compiling pioneer reads torchscript"):
        load(toy_bundle, trusted=False)
    assert vendor.compiled == []


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
    return choose_backend(Bundle(toy.pack(path / "b", backend=best)), name).name


def test_auto_is_what_the_build_found_fastest(toy: Any, tmp_path: Path) -> None:
    assert choose(toy, tmp_path, "auto", "torchscript") == "torchscript"


def test_auto_goes_on_where_that_does_not_work(
    toy: Any, tmp_path: Path, nothing_works: Any
) -> None:
    nothing_works(OpenVinoBackend)
    assert choose(toy, tmp_path, "auto", "openvino") == "torchscript"


def test_auto_goes_on_where_nobody_here_knows_it(
    toy: Any, tmp_path: Path, nothing_works: Any
) -> None:
    nothing_works(OpenVinoBackend)
    assert choose(toy, tmp_path, "auto", "of another package") == "torchscript"


def test_auto_never_ends_at_the_null_backend(toy: Any, tmp_path: Path, nothing_works: Any) -> None:
    nothing_works(OpenVinoBackend, TorchScriptBackend)
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
    found = EngineLoader(Bundle(toy_bundle), vendor, 1, EngineStore(), VirtualClock())
    assert found.target.backend == "counting"
