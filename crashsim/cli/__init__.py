"""The command line."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, NoReturn

import typer
from rich.console import Console

from crashsim.cli import commands
from crashsim.cli.harden import harden
from crashsim.cli.hardware import devices, hardware
from crashsim.errors import CrashsimError

app = typer.Typer(
    name="crashsim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How far a neural network's output moves when its hardware fails at random.\n\n"
    "Start with: [bold]crashsim score 64-100-50-10:sigmoid --train digits[/bold]",
)
for command in (
    commands.score,
    commands.compare,
    commands.train,
    harden,
    commands.derive,
    commands.report,
    hardware,
    devices,
):
    app.command()(command)


def main() -> None:
    """Entry point: exit code 0 if fine, 2 for wrong use, 1 for failure."""
    warnings.showwarning = _show_warning
    try:
        app()
    except CrashsimError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 1)
    except BrokenPipeError:  # `| head` is no failure of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("CRASHSIM_TRACEBACK"):
            raise
        kind = type(error).__name__
        _fail(f"{kind}: {error}\n(set CRASHSIM_TRACEBACK=1 to see where)", 1)


def _fail(message: str, code: int) -> NoReturn:
    console = Console(stderr=True)
    console.print("error:", style="bold red", end=" ")
    console.print(message, highlight=False, markup=False)
    raise SystemExit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    console = Console(stderr=True)
    console.print("warning:", style="yellow", end=" ")
    console.print(str(message), highlight=False, markup=False)
