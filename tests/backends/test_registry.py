"""Backends by name: ours, and those that other packages bring along."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints, PackageNotFoundError

import pytest

from opa_trt import backends
from opa_trt.backends import Availability, Backend, backend, backend_names
from opa_trt.backends.null import NullBackend
from opa_trt.errors import BackendUnavailable, UnknownNameError


class Foreign(NullBackend):
    """A backend of another package."""

    name = "foreign"


def explode() -> Backend:
    """A factory that does not work."""
    raise RuntimeError("no driver")


@pytest.fixture
def entry_point(monkeypatch: pytest.MonkeyPatch):
    """Adds an entry point that names something in this module."""

    def add(name: str, attribute: str) -> None:
        point = EntryPoint(name, f"{__name__}:{attribute}", backends.ENTRY_POINTS)

        def found(**wanted: str) -> EntryPoints:
            return EntryPoints([point]).select(**wanted)

        monkeypatch.setattr(backends, "entry_points", found)

    return add


def test_our_backends_come_fastest_first() -> None:
    names = backend_names()
    assert names[:3] == ["openvino", "torchscript", "null"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["openvino", "torchscript", "null"])
def test_each_of_ours_is_made_under_its_name(name: str) -> None:
    assert backend(name).name == name


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'torchscript'") as caught:
        backend("torchscrip")
    assert "one of" in str(caught.value)


def test_a_name_like_no_other_still_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match="null, openvino, torchscript"):
        backend("zzz")


def test_another_package_can_add_a_backend(entry_point) -> None:
    entry_point("foreign", "Foreign")
    assert backend_names()[-1] == "foreign"
    assert backend("foreign").name == "foreign"


def test_another_package_cannot_replace_ours(entry_point) -> None:
    entry_point("torchscript", "Foreign")
    assert backend_names().count("torchscript") == 1
    assert backend("torchscript").name == "torchscript"


@pytest.mark.parametrize("attribute", ["explode", "missing"])
def test_an_entry_point_that_fails_is_an_unavailable_backend(entry_point, attribute: str) -> None:
    entry_point("foreign", attribute)
    with pytest.raises(BackendUnavailable, match="foreign fails"):
        backend("foreign")


def test_an_entry_point_to_something_else_is_refused(entry_point) -> None:
    entry_point("foreign", "Availability")
    with pytest.raises(BackendUnavailable, match="gives a Availability"):
        backend("foreign")


def test_availability_is_true_unless_there_is_a_reason() -> None:
    assert Availability(version="1")
    assert not Availability(reason="gone.", install="pip install it")


# --- vendors that do not work here --------------------------------------------------------------


def test_a_missing_package_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("opa_trt.backends.openvino.version", missing)
    found = backend("openvino").availability()
    assert not found
    assert found.reason == "openvino is not installed."
    assert "pip install" in found.install


def test_a_package_that_fails_to_import_is_told_with_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opa_trt.backends.openvino.version", lambda name: "1")
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = backend("openvino").availability()
    assert "openvino fails" in found.reason


def test_a_backend_that_does_not_work_has_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Availability(reason="it is gone.", install="pip install it")
    monkeypatch.setattr(NullBackend, "availability", lambda self: gone)
    with pytest.raises(BackendUnavailable, match="null does not work here: it is gone") as caught:
        NullBackend().target(max_batch=1, threads=1)
    assert caught.value.remedy == "pip install it"
