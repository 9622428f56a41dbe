"""Importing the runtime loads none of the offline packages, nor what they need."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = frozenset(
    {
        "click",
        "matplotlib",
        "onnx",
        "opa_trt.builder",
        "opa_trt.evaluate",
        "opa_trt.supernet",
        "opa_trt.training",
        "opa_trt_cli",
        "rich",
        "sklearn",
        "torchvision",
    }
)

# One interpreter imports them all: none may load what is offline. What the runtime offers at the
# top belongs here.
RUNTIME = (
    "opa_trt",
    "opa_trt.backends",
    "opa_trt.bundle",
    "opa_trt.policies",
    "opa_trt.runtime",
    "opa_trt.store",
)


def modules_after(snippet: str, folder: Path) -> set[str]:
    """The names in ``sys.modules`` once a fresh interpreter has run ``snippet`` in ``folder``."""
    code = f"{snippet}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_runtime_leaves_offline_packages_alone(tmp_path: Path) -> None:
    loaded = modules_after(f"import {', '.join(RUNTIME)}", tmp_path)
    assert sorted(set(RUNTIME) - loaded) == []
    assert sorted(loaded & OFFLINE) == []


@pytest.mark.parametrize("backends", [("torchscript", "null"), ("openvino",)], ids=" ".join)
def test_loading_and_answering_leave_offline_packages_alone(
    backends: tuple[str, ...], toy_bundle: Path, tmp_path: Path
) -> None:
    if "openvino" in backends:
        pytest.importorskip("openvino", reason="openvino is not installed")
    snippet = (
        "import numpy, opa_trt\n"
        f"for backend in {backends!r}:\n"
        f"    session = opa_trt.load({str(toy_bundle)!r}, backend=backend)\n"
        "    session.infer(numpy.zeros((2, 3, 16, 16), numpy.uint8), deadline_ms=1000)\n"
        "    session.close()"
    )
    assert sorted(modules_after(snippet, tmp_path) & OFFLINE) == []


def test_every_module_has_its_place_in_a_contract() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    placed = set()
    for contract in config["tool"]["importlinter"]["contracts"]:
        for line in contract.get("layers", []) + contract.get("source_modules", []):
            placed |= {name.strip(" ()") for name in line.split("|")}
    modules = {f"opa_trt.{path.stem}" for path in (ROOT / "opa_trt").glob("[!_.]*.py")}
    modules |= {f"opa_trt.{path.parent.name}" for path in (ROOT / "opa_trt").glob("*/__init__.py")}
    assert sorted(modules - placed) == [], (
        "give them a layer in pyproject.toml, [tool.importlinter]"
    )


def test_the_recipes_package_is_data_only() -> None:
    (module,) = (ROOT / "engines" / "recipes").rglob("*.py")
    assert module.name == "__init__.py"
    body = ast.parse(module.read_text(encoding="utf-8")).body
    assert all(isinstance(line, ast.Expr) for line in body), "nothing but a docstring"
