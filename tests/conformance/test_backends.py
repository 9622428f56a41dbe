"""What every backend must do, whoever the vendor is: say whether it works, and compile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from opa_trt.backends import Backend, Engine, backend, backend_names
from opa_trt.backends.envelope import unseal
from opa_trt.errors import BackendUnavailable, ConfigError, EngineError, OpaError, UnknownNameError
from opa_trt.tree import CODE_FREE

NAMES = [f"{name}:{device}" for name in backend_names() for device in backend(name).devices]


# --- availability and target --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_says_its_version_or_why_it_does_not_work(name: str) -> None:
    found = backend(name).availability()
    if found:
        assert found.version
        assert not found.reason
    else:
        assert found.reason
        assert found.install
        assert bool(found.version) <= found.compiles


@pytest.mark.parametrize("name", NAMES)
def test_its_label_leads_back_to_it(name: str) -> None:
    made = backend(name)
    again = backend(made.label)
    assert (type(again), again.device) == (type(made), made.device)
    assert made.name == name.partition(":")[0]


@pytest.mark.parametrize("name", backend_names())
def test_a_device_that_it_lacks_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="abacus"):
        backend(f"{name}:abacus")


@pytest.mark.parametrize("name", NAMES)
def test_without_the_vendor_there_is_no_target(name: str) -> None:
    made = backend(name)
    found = made.availability()
    if found or found.compiles:
        pytest.skip(f"{name} has a target here")
    with pytest.raises(BackendUnavailable, match=made.name) as caught:
        made.target(max_batch=1, threads=1)
    assert caught.value.remedy == found.install


def test_the_target_names_backend_version_device_and_range(vendor: Any) -> None:
    target, made = vendor.target, vendor.backend
    assert (target.backend, target.device) == (made.name, made.device)
    assert target.version == made.availability().version
    assert (target.min_batch, target.max_batch, target.threads) == (1, 8, 1)


def test_a_precision_that_it_lacks_is_refused(vendor: Any) -> None:
    with pytest.raises(ConfigError, match="fp3"):
        vendor.backend.target(max_batch=8, threads=1, precision="fp3")


# --- compiling ----------------------------------------------------------------------------------


def test_an_engine_is_stamped_with_what_it_was_made_from_and_for(vendor: Any) -> None:
    stamp = unseal(vendor.compiled("pioneer")).stamp
    assert stamp == vendor.backend.stamp(vendor.segment("pioneer"), vendor.target)
    assert stamp.target == vendor.target


def test_an_engine_knows_its_key_if_it_is_kept(vendor: Any, pioneer: Engine) -> None:
    key = unseal(vendor.compiled("pioneer")).stamp.key()
    assert pioneer.key == (key if vendor.backend.stored else "")


def test_a_backend_that_executes_no_code_has_a_form_without(vendor: Any) -> None:
    made = vendor.backend
    if made.executes_code:
        pytest.skip(f"{made.name} executes code")
    assert not made.forms or set(made.forms) & set(CODE_FREE)


def test_a_segment_without_its_form_cannot_be_compiled(vendor: Any) -> None:
    if not vendor.backend.forms:
        pytest.skip(f"{vendor.backend.name} needs no form")
    bare = replace(vendor.segment("pioneer"), forms={})
    with pytest.raises(OpaError, match="pioneer has the forms"):
        vendor.backend.compile(bare, vendor.target)


def test_a_damaged_form_cannot_be_used(vendor: Any) -> None:
    if not vendor.backend.forms:
        pytest.skip(f"{vendor.backend.name} needs no form")
    whole = vendor.segment("pioneer")
    broken = replace(
        whole, forms={name: data[: len(data) // 2] for name, data in whole.forms.items()}
    )

    def compile_and_load() -> None:
        vendor.backend.load(vendor.backend.compile(broken, vendor.target), broken, vendor.target)

    with pytest.raises(OpaError):
        compile_and_load()


def test_a_form_with_other_outputs_than_the_segment_cannot_be_used(vendor: Any) -> None:
    if not vendor.backend.forms:
        pytest.skip(f"{vendor.backend.name} needs no form")
    whole = vendor.segment("tiny")
    more = replace(whole, outputs=(*whole.outputs, replace(whole.outputs[0], name="more")))

    def compile_load_and_run() -> None:
        data = vendor.backend.compile(more, vendor.target)
        vendor.backend.load(data, more, vendor.target).run(vendor.features(2))

    with pytest.raises(OpaError):
        compile_load_and_run()


# --- where it compiles, but cannot run ----------------------------------------------------------


def test_what_cannot_run_here_still_compiles(compiler: tuple[Backend, str], toy: Any) -> None:
    made, precision = compiler
    target = made.target(max_batch=8, threads=1, precision=precision)
    envelope = unseal(made.compile(toy.segment("pioneer"), target))
    assert envelope.stamp.target == target
    assert envelope.payload


def test_what_cannot_run_here_says_so(compiler: tuple[Backend, str], toy: Any) -> None:
    made, precision = compiler
    target = made.target(max_batch=8, threads=1, precision=precision)
    data = made.compile(toy.segment("tiny"), target)
    with pytest.raises(BackendUnavailable, match="does not work here"):
        made.load(data, toy.segment("tiny"), target)


def test_what_cannot_run_here_refuses_damage_all_the_same(
    compiler: tuple[Backend, str], toy: Any
) -> None:
    made, precision = compiler
    target = made.target(max_batch=8, threads=1, precision=precision)
    data = made.compile(toy.segment("tiny"), target)
    with pytest.raises(EngineError, match="damaged"):
        made.load(data[:-1], toy.segment("tiny"), target)
