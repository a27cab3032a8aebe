"""The commands as one program."""

from __future__ import annotations

import typer

from crashsim.cli import commands
from crashsim.cli.campaigns.campaign import campaign
from crashsim.cli.criticality import criticality
from crashsim.cli.devices import devices
from crashsim.cli.doctor import doctor
from crashsim.cli.front.pages import PAGES
from crashsim.cli.front.panels import paged, with_panels
from crashsim.cli.front.showing import showing
from crashsim.cli.hardening.harden import harden
from crashsim.cli.hardware import hardware
from crashsim.cli.protection.protect import protect
from crashsim.cli.protection.vulnerability import vulnerability
from crashsim.cli.sample import sample
from crashsim.cli.sweep import sweep
from crashsim.cli.terminal import stoppable

app = typer.Typer(
    name="crashsim",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How far a neural network's output moves when its hardware fails at random.\n\n"
    "Start with: [bold]crashsim score[/bold]",
    epilog="Exit codes: 0 fine, 1 failure, 2 wrong use, 130 Ctrl-C (what was finished is kept)."
    "\n\nIn all commands: --help is one screen, --help-all has every option.",
)


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
    page = PAGES[command.__name__]
    app.command(cls=paged(page))(stoppable(with_panels(showing(command), page)))
app.add_typer(campaign)
