"""Backends by name: ours, and those that other packages bring along."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints, PackageNotFoundError

import pytest

from opa_trt import backends
from opa_trt.backends import Availability, Backend, backend, backend_names, every_backend
from opa_trt.backends.null import NullBackend
from opa_trt.errors import BackendUnavailable, UnknownNameError

OURS = [
    "tensorrt",
    "tensorrt_rtx",
    "torch_tensorrt",
    "openvino",
    "onnxruntime",
    "inductor",
    "torchscript",
    "null",
]


class Foreign(NullBackend):
    """A backend of another package, with two devices."""

    name = "foreign"
    devices = ("cpu", "abacus")

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device=device)


class OneDevice(NullBackend):
    """A backend that says that it has two devices, but cannot be made for the second."""

    name = "foreign"
    devices = ("cpu", "abacus")

    def __init__(self) -> None:
        super().__init__()


class Stillborn:
    """A module whose every attribute fails, as one that breaks while it is imported."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __getattr__(self, name: str) -> object:
        raise self.error


def explode(device: str | None = None) -> Backend:
    """A factory that does not work."""
    raise RuntimeError("no driver")


def refuse(device: str | None = None) -> Backend:
    """A factory that gives an error of ours."""
    message = "no abacus here."
    raise BackendUnavailable(message, remedy="buy one.")


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
    assert backend_names()[: len(OURS)] == OURS
    assert len(set(backend_names())) == len(backend_names())


@pytest.mark.parametrize("name", OURS)
def test_each_of_ours_is_made_under_its_name(name: str) -> None:
    assert backend(name).name == name


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'torchscript'") as caught:
        backend("torchscrip")
    assert "one of" in str(caught.value)


def test_a_name_like_no_other_still_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=", ".join(sorted(OURS))):
        backend("zzz")


def test_another_package_can_add_a_backend(entry_point) -> None:
    entry_point("foreign", "Foreign")
    assert backend_names()[-1] == "foreign"
    assert backend("foreign").name == "foreign"


@pytest.mark.parametrize("device", ["cpu", "abacus"])
def test_another_packages_backend_may_have_devices(entry_point, device: str) -> None:
    entry_point("foreign", "Foreign")
    assert backend(f"foreign:{device}").device == device
    assert backend("foreign").device == "cpu"


def test_a_device_that_another_packages_backend_lacks_is_unknown(entry_point) -> None:
    entry_point("foreign", "Foreign")
    with pytest.raises(UnknownNameError, match="'cuda'"):
        backend("foreign:cuda")


def test_another_package_cannot_replace_ours(entry_point) -> None:
    entry_point("torchscript", "Foreign")
    assert backend_names().count("torchscript") == 1
    assert backend("torchscript").name == "torchscript"


@pytest.mark.parametrize("attribute", ["explode", "missing"])
def test_an_entry_point_that_fails_is_an_unavailable_backend(entry_point, attribute: str) -> None:
    entry_point("foreign", attribute)
    with pytest.raises(BackendUnavailable, match="foreign fails"):
        backend("foreign")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no module"),
        OSError("libabacus.so: cannot open"),
        AssertionError("torch is not compiled with an abacus"),
        RuntimeError("no driver"),
        SyntaxError("for another Python"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_entry_point_that_breaks_at_import_is_an_unavailable_backend(
    entry_point, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    entry_point("foreign", "Foreign")
    monkeypatch.setitem(sys.modules, __name__, Stillborn(error))
    with pytest.raises(BackendUnavailable, match="foreign fails") as caught:
        backend("foreign")
    assert "repair or remove" in caught.value.remedy


def test_an_error_of_ours_at_an_entry_point_stays_what_it_is(entry_point) -> None:
    entry_point("foreign", "refuse")
    with pytest.raises(BackendUnavailable, match="no abacus here") as caught:
        backend("foreign")
    assert caught.value.remedy == "buy one."


def test_an_entry_point_to_something_else_is_refused(entry_point) -> None:
    entry_point("foreign", "Availability")
    with pytest.raises(BackendUnavailable, match="gives a Availability"):
        backend("foreign")


# --- devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_a_device_that_there_is_none_of_is_unknown(name: str) -> None:
    with pytest.raises(UnknownNameError, match="abacus") as caught:
        backend(f"{name}:abacus")
    assert f"device of backend {name}" in str(caught.value)


@pytest.mark.parametrize("name", ["torchscript", "inductor"])
def test_the_default_device_needs_no_name(name: str) -> None:
    assert backend(name).label == backend(f"{name}:cpu").label == name
    assert backend(f"{name}:cuda").label == f"{name}:cuda"


def test_an_empty_device_is_the_default_one() -> None:
    assert backend("torchscript:").device == "cpu"


def test_every_backend_comes_on_each_of_its_devices() -> None:
    labels = [made.label for made in every_backend()]
    assert len(set(labels)) == len(labels)
    assert {"torchscript", "torchscript:cuda", "inductor:cuda", "openvino"} <= set(labels)
    assert "null" not in labels


def test_another_packages_backend_is_among_them(entry_point) -> None:
    entry_point("foreign", "Foreign")
    assert [made.label for made in every_backend()][-2:] == ["foreign", "foreign:abacus"]


@pytest.mark.parametrize("attribute", ["explode", "refuse", "missing", "Availability", "OneDevice"])
def test_another_packages_backend_that_fails_is_left_out_with_a_warning(
    entry_point, caplog: pytest.LogCaptureFixture, attribute: str
) -> None:
    entry_point("foreign", attribute)
    assert "foreign" not in [made.name for made in every_backend()]
    assert len(caplog.records) == 1


# --- availability -------------------------------------------------------------------------------


def test_availability_is_true_unless_there_is_a_reason() -> None:
    assert Availability(version="1")
    assert not Availability(reason="gone.", install="pip install it")


# --- vendors that do not work here --------------------------------------------------------------


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_missing_package_is_told_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(f"opa_trt.backends.{name}.version", missing)
    found = backend(name).availability()
    assert not found
    assert found.reason == f"{name} is not installed."
    assert "pip install" in found.install


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_package_that_fails_to_import_is_told_with_why(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(f"opa_trt.backends.{name}.version", lambda name: "1")
    monkeypatch.setitem(sys.modules, name, None)
    found = backend(name).availability()
    assert f"{name} fails" in found.reason


@pytest.mark.parametrize("name", ["torchscript", "inductor"])
def test_without_a_gpu_torchs_backends_say_so(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(f"opa_trt.backends.{name}.has_gpu", lambda: False)
    found = backend(f"{name}:cuda").availability()
    assert found.reason == "no GPU that torch can use."
    assert not found.compiles


def test_a_backend_that_does_not_work_has_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Availability(reason="it is gone.", install="pip install it")
    monkeypatch.setattr(NullBackend, "availability", lambda self: gone)
    with pytest.raises(BackendUnavailable, match="null does not work here: it is gone") as caught:
        NullBackend().target(max_batch=1, threads=1)
    assert caught.value.remedy == "pip install it"
