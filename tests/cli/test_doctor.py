"""``opa-trt doctor`` and ``opa-trt recipes``: what works here, and what is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import opa_trt
from opa_trt.backends import Availability, backend_names
from opa_trt.backends.openvino import OpenVinoBackend
from opa_trt.builder import shipped_recipes


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Availability(reason="openvino is not installed.", install="pip install it")
    monkeypatch.setattr(OpenVinoBackend, "availability", lambda self: state)


# --- doctor -------------------------------------------------------------------------------------


def test_doctor_names_every_backend(call: Any) -> None:
    called = call("doctor")
    assert called.code == 0
    assert all(name in called.out for name in backend_names())


def test_doctor_says_how_to_install_what_does_not_work(call: Any, without_openvino: None) -> None:
    (line,) = [line for line in call("doctor").out.splitlines() if line.startswith("openvino")]
    assert " ".join(line.split()) == "openvino no openvino is not installed. pip install it"


def test_doctor_says_of_a_backend_that_it_only_compiles(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Availability("2", "no NVIDIA GPU.", "attach one", compiles=True)
    monkeypatch.setattr(OpenVinoBackend, "availability", lambda self: state)
    (line,) = [line for line in call("doctor").out.splitlines() if line.startswith("openvino")]
    assert " ".join(line.split()) == "openvino compiles no NVIDIA GPU. attach one"


def test_doctor_says_how_to_install_a_package_that_is_missing(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opa_trt_cli.doctor.find_spec", lambda module: None)
    called = call("doctor")
    assert "pip install 'opa-trt[build]'" in called.out
    assert "pip install 'opa-trt[plots]'" in called.out


def test_doctor_writes_one_json_object(call: Any) -> None:
    found = call("doctor", "--json").json()
    assert sorted(found) == ["backends", "extras", "machine"]
    assert {label.partition(":")[0] for label in found["backends"]} == set(backend_names())
    assert {"torchscript", "torchscript:cuda"} <= found["backends"].keys()
    assert found["machine"]["opa_trt"] == opa_trt.__version__


def test_doctors_json_says_why_a_backend_does_not_work(call: Any, without_openvino: None) -> None:
    found = call("doctor", "--json").json()["backends"]["openvino"]
    assert found == {
        "works": False,
        "compiles": False,
        "version": "",
        "reason": "openvino is not installed.",
        "install": "pip install it",
    }


def test_doctor_says_where_the_cache_is(call: Any, tmp_path: Path) -> None:
    assert call("doctor", "--json").json()["machine"]["cache"] == str(tmp_path / "cache")


def test_doctor_leaves_nothing(call: Any, here: Path) -> None:
    call("doctor")
    assert list(here.iterdir()) == []


# --- doctor of a bundle -------------------------------------------------------------------------


def test_doctor_of_a_bundle_ends_with_a_verdict(
    call: Any, bundle: Path, known_machine: None
) -> None:
    called = call("doctor", bundle, "--batch", "1,8", "--seconds", 0.001)
    assert called.code == 0
    verdict = called.out.splitlines()[-1]
    assert verdict.startswith(("Worth it here", "Not worth it here"))
    rows = [line.split() for line in called.out.splitlines()]
    assert {row[0] for row in rows if row[1:2] == ["pioneer"]} >= {"1", "8"}


def test_doctor_of_a_bundle_writes_one_json_object(
    call: Any, bundle: Path, known_machine: None
) -> None:
    found = call("doctor", bundle, "--batch", 8, "--seconds", 0.001, "--json").json()
    assert found["bundle"] == str(bundle)
    assert [row["batch"] for row in found["spread"]] == [8]
    assert {row["batch"] for row in found["handoff"]} == {8}
    assert len(found["deadlines"]) == 5
    assert found["worth"] in (True, False)
    assert found["verdict"]


@pytest.mark.parametrize(
    ("given", "said"),
    [(("--batch", "1,8"), "--batch without BUNDLE"), (("--backend", "null"), "--backend without")],
)
def test_doctor_refuses_what_only_a_bundle_can_have(call: Any, given: Any, said: str) -> None:
    called = call("doctor", *given)
    assert called.code == 2
    assert said in called.err


def test_doctor_refuses_batches_that_are_none(call: Any, bundle: Path) -> None:
    assert "no list of whole numbers" in call("doctor", bundle, "--batch", "1;8").err
    called = call("doctor", bundle, "--batch", "99")
    assert called.code == 2
    assert "1 to 8, the largest that this bundle is built for" in called.err


# --- recipes ------------------------------------------------------------------------------------


def test_recipes_lists_what_is_shipped(call: Any) -> None:
    called = call("recipes")
    assert called.code == 0
    assert all(name in called.out for name in shipped_recipes())


def test_recipes_without_weights_say_how_to_train_them(call: Any) -> None:
    assert "opa-trt train cifar10" in call("recipes").out


def test_recipes_says_where_they_lie(call: Any) -> None:
    folder = call("recipes").out.split("They lie in ")[1].split(";")[0]
    assert (Path(folder) / "digits.toml").is_file()


def test_recipes_writes_one_json_object(call: Any) -> None:
    found = {each["name"]: each for each in call("recipes", "--json").json()["recipes"]}
    assert list(found) == shipped_recipes()
    assert Path(found["digits"]["path"]).is_file()
    assert found["cifar10"]["checkpoint"] is None
    assert found["digits"]["largest_macs"] > 1e6
