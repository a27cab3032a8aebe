"""Options of every command that shows a result: how much of it is printed, and where."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from crashsim.cli.front.panels import HELP_ALL
from crashsim.cli.terminal import Printing, printing_as
from crashsim.errors import ArgumentError

_PANEL = "What is printed"
_STDOUT = Path("-")
_FILES = ("json_file", "csv_file", "report_file")  # text, which may go to standard output
OPTIONS: dict[str, Any] = {
    "details": Annotated[
        bool,
        typer.Option("--details", help="All numbers and warnings.", rich_help_panel=_PANEL),
    ],
    "quiet": Annotated[
        bool,
        typer.Option("--quiet", "-q", help="The verdict alone.", rich_help_panel=_PANEL),
    ],
    "verbose": Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Details, and each step as it starts.", rich_help_panel=_PANEL
        ),
    ],
    "no_color": Annotated[
        bool,
        typer.Option("--no-color", help="No colours (as NO_COLOR=1).", rich_help_panel=_PANEL),
    ],
}


def showing(command: Callable[..., None]) -> Callable[..., None]:
    """The command with ``OPTIONS``, and with ``-`` as a file for standard output."""

    @wraps(command)
    def run(
        *,
        details: bool,
        quiet: bool,
        verbose: bool,
        no_color: bool,
        help_all: bool,  # which has a callback of its own
        **options: Any,
    ) -> None:
        if quiet and (details or verbose):
            other = "details" if details else "verbose"
            raise ArgumentError(f"quiet: --quiet is without --{other}; give one of them")
        out = [name for name in _FILES if options.get(name) == _STDOUT]
        if len(out) > 1:
            names = " and ".join("--" + name.removesuffix("_file") for name in out)
            raise ArgumentError(f"{names}: one of them alone can go to standard output (-)")
        how = Printing(details or verbose, quiet, verbose, not no_color, bool(out))
        with printing_as(how):
            command(**options)

    return with_options(run, command, {**OPTIONS, **HELP_ALL})


def with_options(
    run: Callable[..., None], command: Callable[..., None], more: dict[str, Any]
) -> Callable[..., None]:
    """``run`` with the parameters of ``command``, and flags that are off by default."""
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in more.items()
    ]
    run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
