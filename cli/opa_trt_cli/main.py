"""``opa-trt``: one module a command, imported when it is called."""

from __future__ import annotations

import logging
import sys

import click

import opa_trt
from opa_trt_cli.console import INTERRUPTED, say
from opa_trt_cli.lazy import LazyGroup

COMMANDS = (
    "demo",
    "build",
    "train",
    "study",
    "run",
    "show",
    "bench",
    "compare",
    "load",
    "recipes",
    "doctor",
    "arch",
    "import-ofa",
    "export",
    "search",
    "engines",
    "profile",
)


@click.group(cls=LazyGroup, package="opa_trt_cli", names=COMMANDS)
@click.version_option(opa_trt.__version__, prog_name="opa-trt")
@click.option("-v", "--verbose", is_flag=True, help="Log what the library does.")
def cli(verbose: bool) -> None:
    """Deploy once-for-all super-networks adaptively.

    \b
    opa-trt demo                                              see it work, in a minute and a half
    opa-trt build digits --out digits.opa                     a recipe becomes a bundle
    opa-trt run digits.opa photos/ --deadline-ms 20           a bundle answers images
    """
    if verbose:
        logging.basicConfig(level=logging.INFO, format=" %(name)s: %(message)s")


def main() -> None:
    """The console script. Exit status: 0 done, 2 bad input, 130 interrupted, 1 a fault of ours."""
    try:
        status = cli.main(standalone_mode=False)
    except opa_trt.OpaError as exc:
        say(f"Error: {exc}", err=True)
        sys.exit(2)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (KeyboardInterrupt, click.Abort):
        say("Interrupted. Nothing half-written was left behind.", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as exc:
        if exc.filename is None:
            raise
        say(f"Error: {exc.filename}: {exc.strerror}.", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
