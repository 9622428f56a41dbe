"""Sets of engines: which ones, in which order, refused before anything compiles, and their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opa_trt.backends.base import Backend
from opa_trt.backends.null import NullBackend
from opa_trt.bundle import Bundle
from opa_trt.errors import BackendUnavailable, ConfigError, UnknownNameError
from opa_trt.evaluate import engine_set
from opa_trt.evaluate.engine_set import Setting, loaded, open_settings, total
from opa_trt.runtime import open_loader
from opa_trt.store import EngineStore


@pytest.fixture
def opened(toy_bundle: Path) -> Bundle:
    return Bundle(toy_bundle)


def test_every_backend_comes_with_every_number_of_threads(opened: Bundle) -> None:
    settings = open_settings(opened, ["torchscript", "null", "torchscript"], [2, 1, None])
    found = [(setting.chosen, setting.loader.threads) for setting in settings]
    assert found == [("torchscript", 2), ("null", 2), ("torchscript", 1), ("null", 1)]


def test_auto_is_what_the_bundle_plans(opened: Bundle) -> None:
    (setting,) = open_settings(opened, ["auto"], [None])
    assert setting.chosen == "auto"
    assert setting.versions.keys() == {"torchscript"}


def test_a_name_that_does_not_exist_is_refused(opened: Bundle) -> None:
    with pytest.raises(UnknownNameError, match="openvion"):
        open_settings(opened, ["torchscript", "openvion"], [1])


def test_a_backend_that_does_not_work_here_is_refused(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendUnavailable, match="no-such-compiler"):
        open_settings(opened, ["torchscript", "inductor"], [1])


def test_a_backend_that_reads_none_of_the_forms_is_refused_before_any_compiles(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")  # inductor finds a compiler
    monkeypatch.setattr(Backend, "compile", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ConfigError, match="onnx and torchscript") as caught:
        open_settings(opened, ["torchscript", "inductor"], [1])
    assert caught.value.expected == "pt2, which backend inductor reads."


def test_memory_is_what_the_process_grew_by(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([1000, 1700])
    monkeypatch.setattr(engine_set, "_resident", lambda: next(readings))
    (setting,) = open_settings(opened, ["torchscript"], [1])
    with loaded(setting, {}) as found:
        assert found.memory.process == 700
        assert found.memory.device is None


def test_where_the_system_does_not_tell_growth_is_not_known(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_set, "STATM", tmp_path / "nowhere")
    (setting,) = open_settings(opened, ["null"], [1])
    with loaded(setting, {}) as found:
        assert found.memory.process is None


def test_resident_memory_is_read_in_bytes() -> None:
    if not engine_set.STATM.exists():
        pytest.skip("this system has no /proc")
    found = engine_set._resident()
    assert found is not None
    assert 10e6 < found < 1e12


def test_sizes_are_those_of_kept_engines_and_of_what_they_came_from(
    opened: Bundle, toy: Any
) -> None:
    (setting,) = open_settings(opened, ["torchscript"], [1])
    with loaded(setting, {}) as found:
        kept = EngineStore().entries()
        assert found.memory.engines == sum(entry.bytes for entry in kept)
        assert found.memory.forms == sum(map(len, toy.traces.values()))


def test_a_set_that_is_kept_nowhere_has_no_size(toy_bundle: Path) -> None:
    loader = open_loader(toy_bundle, backend=NullBackend())
    with loaded(Setting("null", loader), {}) as found:
        assert found.memory.engines is None
        assert set(found.engine_bytes.values()) == {None}


def test_a_total_needs_every_part() -> None:
    assert (total([1, 2]), total([]), total([1, None])) == (3, 0, None)
