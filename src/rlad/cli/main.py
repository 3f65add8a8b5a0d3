"""`rlad`: the commands, and one place for what goes wrong. Imports typer and nothing heavier, so that help is quick."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer

from rlad import __version__
from rlad.cli.check import check
from rlad.cli.compare import compare
from rlad.cli.evaluate import evaluate
from rlad.cli.grade import grade
from rlad.cli.report import report
from rlad.cli.sft import sft
from rlad.cli.show import show
from rlad.cli.teacher import teacher
from rlad.cli.train import train
from rlad.errors import RladError

USER_ERROR = 2

app = typer.Typer(
    name="rlad",
    help="Reinforcement-aware knowledge distillation: train a small reasoning model with a reward and a teacher.",
    epilog="Start with: rlad train quickstart",
    add_completion=False,
    rich_markup_mode=None,  # plain help: importing rich would take longer than everything else
    pretty_exceptions_enable=False,
)
for command in (train, sft, evaluate, grade, check, compare, report, show):
    app.command()(command)
app.add_typer(teacher)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rlad {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line. Returns its exit status: 2 for a user's mistake, which one line names, 130 for Ctrl-C."""
    # huggingface_hub reports usage unless told not to; a user who wants that sets the variable.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Where it is installed it notes a kernel that it lacks on a CPU, before every command.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal in ASCII is no reason to say nothing
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # typer itself turns Ctrl-C into status 130, and a closed pipe into 1.
        status = app(words or ["--help"], prog_name="rlad", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # what cannot be written is an error here, and not when Python ends
    except RladError as error:
        return _failed(error)
    except typer.TyperException as error:  # an unknown command or option, a missing argument
        print(f"error: {' '.join(error.format_message().split())} (see rlad --help)", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        _give_up_output()
        return 1
    except OSError as error:  # a full disk, a folder that may not be read, ...
        _give_up_output()
        return _failed(error)
    except UnicodeError as error:
        return _failed(f"a text that cannot be read or written: {error}")
    except RecursionError:
        return _failed("a text, as of YAML or JSON, is nested too deeply")
    return status if isinstance(status, int) else 0


def _failed(why: object) -> int:
    print(f"error: {' '.join(str(why).split())}", file=sys.stderr)
    return USER_ERROR


def _give_up_output() -> None:
    """Where standard output cannot be written, Python would try once more when it ends, and print a traceback."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # of a stream that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
