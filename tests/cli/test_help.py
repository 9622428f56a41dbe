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


def help_of(*names: str) -> str:
    result = CliRunner().invoke(cli, [*names, "--help"])
    assert result.exit_code == 0
    return result.output


def examples(text: str) -> list[str]:
    """Lines that begin with ``opa-trt``, without what a wide gap sets apart."""
    lines = [line.strip() for line in text.splitlines()]
    return [re.split(r"\s{2,}", line)[0] for line in lines if line.startswith("opa-trt ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_gives_an_example_before_the_options(name: str) -> None:
    text = help_of(name)
    assert f"opa-trt {name}" in text[text.index("\n") : text.index("Options:")]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_a_line_that_parses(name: str) -> None:
    (example,) = examples(help_of(name))
    arguments = shlex.split(example.split(" > ")[0])[2:]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_offered_everywhere(name: str) -> None:
    assert "--json" in help_of(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    silent = [
        option.opts[0]
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []


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
