"""What the command line says of itself."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner

import opa_trt
from opa_trt_cli.main import COMMANDS, cli

GROUPS = {
    "search": ("run", "fit-accuracy", "measure-latency"),
    "engines": ("list", "verify", "prune"),
}
EVERY = [
    *((name,) for name in COMMANDS if name not in GROUPS),
    *((group, name) for group, names in GROUPS.items() for name in names),
]
every_group = pytest.mark.parametrize("name", GROUPS)
every_command = pytest.mark.parametrize("path", EVERY, ids=" ".join)


def help_of(*names: str) -> str:
    result = CliRunner().invoke(cli, [*names, "--help"])
    assert result.exit_code == 0
    return result.output


def command_at(path: tuple[str, ...]) -> click.Command:
    found: click.Command | None = cli
    for name in path:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), name)
    assert found is not None
    return found


def examples(text: str) -> list[str]:
    """Lines that begin with ``opa-trt``, without what a wide gap sets apart."""
    lines = [line.strip() for line in text.splitlines()]
    return [re.split(r"\s{2,}", line)[0] for line in lines if line.startswith("opa-trt ")]


@every_command
def test_help_gives_an_example_before_the_options(path: tuple[str, ...]) -> None:
    text = help_of(*path)
    assert f"opa-trt {' '.join(path)}" in text[text.index("\n") : text.index("Options:")]


@every_command
def test_the_example_is_a_line_that_parses(path: tuple[str, ...]) -> None:
    (example,) = examples(help_of(*path))
    arguments = shlex.split(example.split(" > ")[0])[1 + len(path) :]
    command_at(path).make_context(path[-1], arguments)


@every_command
def test_json_is_offered_everywhere(path: tuple[str, ...]) -> None:
    assert "--json" in help_of(*path)


@every_command
def test_every_option_says_what_it_is_for(path: tuple[str, ...]) -> None:
    options = [o for o in command_at(path).params if isinstance(o, click.Option)]
    assert [option.opts[0] for option in options if not option.help] == []


@every_group
def test_every_command_of_a_group_is_tested_here(name: str) -> None:
    group = command_at((name,))
    assert isinstance(group, click.Group)
    assert group.list_commands(click.Context(group)) == list(GROUPS[name])


@every_group
def test_a_groups_examples_are_lines_that_parse(name: str) -> None:
    found = examples(help_of(name))
    assert found
    for example in found:
        command, *arguments = shlex.split(example)[2:]
        command_at((name, command)).make_context(command, arguments)


def test_the_group_lists_every_command() -> None:
    text = help_of()
    assert [name for name in COMMANDS if f"\n  {name} " in text] == list(COMMANDS)


def test_the_groups_examples_name_commands() -> None:
    assert {line.split()[1] for line in examples(help_of())} <= set(COMMANDS)


def test_the_version_is_the_packages() -> None:
    assert opa_trt.__version__ in CliRunner().invoke(cli, ["--version"]).output


def test_a_command_that_does_not_exist_is_bad_input(call: Any) -> None:
    called = call("biuld")
    assert called.code == 2
    assert "biuld" in called.err


def test_an_option_that_does_not_exist_is_bad_input(call: Any) -> None:
    called = call("recipes", "--jsno")
    assert called.code == 2
    assert "--json" in called.err


def test_verbose_lets_the_library_log(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("logging.basicConfig", lambda **options: asked.append(options))
    assert call("--verbose", "recipes").code == 0
    assert len(asked) == 1


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from opa_trt_cli.main import cli; cli.get_command(None, 'build');"
    code += "print(sorted({'sklearn', 'matplotlib', 'opa_trt.builder'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ctrl_c_anywhere_is_130(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("opa_trt.builder.shipped_recipes", interrupted)
    called = call("recipes")
    assert called.code == 130
    assert "Interrupted" in called.err


def test_a_reader_that_goes_away_is_no_error(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object, **options: object) -> None:
        raise BrokenPipeError

    class Stderr:
        def close(self) -> None: ...

        def write(self, text: str) -> int:
            return len(text)

        def flush(self) -> None: ...

    monkeypatch.setattr("opa_trt_cli.console.say_table", gone)
    monkeypatch.setattr("sys.stderr", Stderr())
    assert call("recipes").code == 0
