"""The commands as one program."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from crashsim.cli import commands
from crashsim.cli.campaign import campaign
from crashsim.cli.criticality import criticality
from crashsim.cli.devices import devices
from crashsim.cli.doctor import doctor
from crashsim.cli.hardening.harden import harden
from crashsim.cli.hardware import hardware
from crashsim.cli.protect import protect
from crashsim.cli.sample import sample
from crashsim.cli.sweep import sweep
from crashsim.cli.terminal import fail
from crashsim.cli.vulnerability import vulnerability
from crashsim.errors import Interrupted

app = typer.Typer(
    name="crashsim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How far a neural network's output moves when its hardware fails at random.\n\n"
    "Start with: [bold]crashsim score 64-100-50-10:sigmoid --train digits[/bold]",
)


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which Ctrl-C ends with exit code 130."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt as stop:
            kept = "; the result is partial" if isinstance(stop, Interrupted) else ""
            fail(f"interrupted{kept}")
            raise typer.Exit(130) from stop

    return run


for command in (
    commands.score,
    commands.compare,
    sweep,
    vulnerability,
    protect,
    sample,
    commands.train,
    harden,
    commands.derive,
    commands.report,
    hardware,
    criticality,
    devices,
    doctor,
):
    app.command()(_stoppable(command))
app.add_typer(campaign)
