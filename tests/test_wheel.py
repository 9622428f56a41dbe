"""The wheel: what it holds, and that it works where only the core dependencies are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# Folder in the wheel, folder in the repository, and what ships from there.
PACKAGES = (
    ("opa_trt", "opa_trt", ("**/*.py", "py.typed")),
    ("opa_trt/recipes", "engines/recipes", ("*.py", "*.toml", "*.safetensors")),
    ("opa_trt_cli", "cli/opa_trt_cli", ("**/*.py", "py.typed")),
)
COMMANDS = ("train", "build", "show", "run", "demo", "doctor", "recipes")
TIMEOUT_S = 600


def execute(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``folder`` with nothing of this environment that leads to the checkout."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def succeed(command: list[str], folder: Path) -> str:
    """Run ``command``, expect exit status 0, and return what it printed."""
    done = execute(command, folder)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, because a build leaves folders beside its sources."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for _, folder, _ in PACKAGES:
        shutil.copytree(
            ROOT / folder,
            source / folder,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work)]
    succeed([*build, str(source)], work)
    (built,) = work.glob("opa_trt-*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def needed(wheel: Path) -> list[Distribution]:
    """What the wheel asks for without extras, and all that this asks for, as installed here."""
    (itself,) = distributions(path=[str(wheel)])
    asked, found = list(itself.requires or ()), dict[str, Distribution]()
    while asked:
        requirement = Requirement(asked.pop())
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in found:
            found[name] = distribution(requirement.name)
            asked += found[name].requires or ()
    return list(found.values())


def link(installed: Distribution, packages: Path) -> None:
    """Link what a distribution brought to the top of its folder of packages into another."""
    tops = {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}
    for top in tops:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(installed.locate_file(top))).resolve())


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of an environment that holds the wheel and its core dependencies alone.

    They are linked from this environment, because an index would have to send a gigabyte.
    """
    work = tmp_path_factory.mktemp("linked")
    environment = work / "environment"
    succeed([sys.executable, "-m", "venv", "--without-pip", str(environment)], work)
    (packages,) = environment.glob("lib/python*/site-packages")
    for installed in needed(wheel):
        link(installed, packages)
    pip = [sys.executable, "-m", "pip", "--python", str(environment)]
    succeed([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], work)
    succeed([*pip, "check"], work)  # everything that is asked for is there, in a version that does
    return environment / "bin"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where pip cannot fetch even a tiny package; on a CI machine that is a failure."""
    folder = tmp_path_factory.mktemp("index")
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    probe += ["--retries", "1", "--timeout", "20", "-c", str(CONSTRAINTS), "mdurl"]
    done = execute(probe, folder)
    if done.returncode == 0:
        return
    reason = "pip cannot reach a package index"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}:\n{done.stderr}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def fetched(index: None, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same with what an index gives, at the versions of ``constraints.txt``."""
    work = tmp_path_factory.mktemp("installed")
    environment = work / "environment"
    succeed([sys.executable, "-m", "venv", str(environment)], work)
    install = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    succeed([*install, "-c", str(CONSTRAINTS), str(wheel)], work)
    yield environment / "bin"
    shutil.rmtree(environment)  # more than a gigabyte, which pytest would keep for three runs


@pytest.mark.parametrize(("inside", "folder", "patterns"), PACKAGES)
def test_wheel_holds_every_file_of_a_package(
    inside: str, folder: str, patterns: tuple[str, ...], names: set[str]
) -> None:
    base = ROOT / folder
    for pattern in patterns:
        files = [path.relative_to(base).as_posix() for path in base.glob(pattern)]
        assert files, f"{folder} has no {pattern}"
        missing = sorted(name for name in files if f"{inside}/{name}" not in names)
        assert not missing, f"list the packages of {missing} in pyproject.toml, [tool.setuptools]"


def test_wheel_holds_nothing_else(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"opa_trt", "opa_trt_cli"}


def test_wheel_carries_the_licence_and_names_it(wheel: Path, names: set[str]) -> None:
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert f"{info}/licenses/LICENSE" in names
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{info}/METADATA").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], COMMANDS),
        (["doctor"], ("torchscript",)),
        (["recipes"], ("digits", "cifar10")),
    ],
    ids=["help", "doctor", "recipes"],
)
def test_command_works_in_an_empty_folder(
    arguments: list[str], words: tuple[str, ...], scripts: Path, tmp_path: Path
) -> None:
    shown = succeed([str(scripts / "opa-trt"), *arguments], tmp_path)
    assert [word for word in words if word not in shown] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_wheel_installs_from_an_index(fetched: Path, tmp_path: Path) -> None:
    shown = succeed([str(fetched / "opa-trt"), "--help"], tmp_path)
    assert [word for word in COMMANDS if word not in shown] == []
