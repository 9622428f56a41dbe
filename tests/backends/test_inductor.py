"""AOTInductor: what it needs, what it refuses before half a minute of compiling, what it checks."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opa_trt.backends import inductor
from opa_trt.backends.envelope import unseal
from opa_trt.backends.inductor import EVERY, InductorBackend
from opa_trt.errors import CompileError
from opa_trt.supernet.pt2_form import pt2_bytes
from opa_trt.tree import PT2, Segment, Target

TARGET = Target("inductor", torch.__version__, max_batch=8)


@pytest.fixture(scope="module")
def segment(toy: Any) -> Segment:
    """A tail with its exported program, for up to 8 rows."""
    whole: Segment = toy.segment("tiny")
    program = pt2_bytes(toy.modules["tiny"], torch.zeros(2, 4, 4, 4), 8)
    return replace(whole, forms={PT2: program})


# --- availability -------------------------------------------------------------------------------


def test_without_a_compiler_it_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    found = InductorBackend().availability()
    assert found.reason == "there is no C++ compiler 'no-such-compiler -O9'."
    assert "CXX" in found.install


@pytest.mark.parametrize("broken", ["g++ 'never closed", "  "])
def test_a_compiler_that_cannot_be_read_is_none(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setenv("CXX", broken)
    assert not InductorBackend().availability()


def test_a_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler} --quietly")
    assert InductorBackend().availability().version == torch.__version__


def test_an_option_that_this_torch_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known = inductor._options()
    assert known
    monkeypatch.setitem(inductor.OPTIONS, "aot_inductor.of_another_version", False)
    assert inductor._options() == known


def test_auto_does_not_try_it_unasked() -> None:
    assert not InductorBackend.quick


# --- refused before compiling -------------------------------------------------------------------


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiling(*_: Any) -> bytes:
        raise AssertionError("compiling began")

    monkeypatch.setattr(inductor, "_packaged", compiling)


@pytest.mark.usefixtures("no_compiling")
def test_what_is_no_program_is_refused(segment: Segment) -> None:
    broken = replace(segment, forms={PT2: b"no program"})
    with pytest.raises(CompileError, match="inductor cannot compile tiny") as caught:
        InductorBackend().compile(broken, TARGET)
    assert "compiling began" not in str(caught.value)


@pytest.mark.usefixtures("no_compiling")
def test_a_program_for_fewer_rows_is_refused(segment: Segment) -> None:
    with pytest.raises(CompileError) as caught:
        InductorBackend().compile(segment, replace(TARGET, max_batch=9))
    assert "compiling began" not in str(caught.value)


@pytest.mark.usefixtures("no_compiling")
def test_a_program_with_other_outputs_is_refused(segment: Segment) -> None:
    more = replace(segment, outputs=(*segment.outputs, replace(segment.outputs[0], name="more")))
    with pytest.raises(CompileError, match="tiny has 1 outputs"):
        InductorBackend().compile(more, TARGET)


# --- checked after compiling --------------------------------------------------------------------


def test_every_small_batch_size_is_checked_and_the_edges_of_large_ones() -> None:
    found = inductor._batches(replace(TARGET, max_batch=100))
    assert found[:EVERY] == list(range(1, EVERY + 1))
    assert {31, 32, 33, 63, 64, 65, 100} <= set(found)
    assert max(found) == 100


def test_only_batch_sizes_of_the_range_are_checked() -> None:
    assert inductor._batches(replace(TARGET, min_batch=3, max_batch=5)) == [3, 4, 5]
    assert inductor._batches(replace(TARGET, max_batch=1)) == [1]


class Narrow:
    """An engine that is right up to four rows, as generated code may be."""

    def __init__(self, package: bytes, segment: Segment, target: Target) -> None:
        self.program = torch.export.load(io.BytesIO(segment.forms[PT2])).module()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (rows,) = inputs.values()
        with torch.no_grad():
            right = self.program(rows)
        return {"logits": right if len(rows) <= 4 else right + torch.nan}

    def close(self) -> None:
        pass


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "_packaged", lambda *_: b"a package")
    monkeypatch.setattr(inductor, "InductorEngine", Narrow)


@pytest.mark.usefixtures("narrow")
def test_a_package_that_is_wrong_at_some_batch_size_is_refused(segment: Segment) -> None:
    with pytest.raises(CompileError, match="logits of tiny is off by nan at batch 5"):
        InductorBackend().compile(segment, TARGET)


@pytest.mark.usefixtures("narrow")
def test_a_package_that_is_right_in_the_targets_range_is_kept(segment: Segment) -> None:
    data = InductorBackend().compile(segment, replace(TARGET, max_batch=4))
    assert unseal(data).payload == b"a package"


# --- real packages ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_package_is_right_for_every_batch_size_and_leaves_no_file(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    vendor, target = InductorBackend(), replace(TARGET, max_batch=40)
    if not vendor.availability():
        pytest.skip(vendor.availability().reason)
    program = pt2_bytes(toy.modules["medium"], torch.zeros(2, 4, 4, 4), 40)
    made = replace(toy.segment("medium"), forms={PT2: program})
    data = vendor.compile(made, target)
    engine = vendor.load(data, made, target)
    for batch in range(1, 41):
        features = torch.rand(batch, 4, 4, 4)
        given = engine.run({"features": features})["logits"]
        wanted = toy.eager("medium", features)["logits"]
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
    engine.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with zipfile.ZipFile(io.BytesIO(unseal(data).payload)) as package:
        assert not [name for name in package.namelist() if name.endswith((".cpp", ".h"))]
