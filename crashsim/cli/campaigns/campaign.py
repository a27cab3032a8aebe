"""``crashsim campaign``: studies, what stores hold, and how they are put together."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from crashsim.cli.campaigns.study import compare, run
from crashsim.cli.options import JsonOption
from crashsim.cli.reading import check_outputs, told_written, write
from crashsim.cli.terminal import console, stoppable
from crashsim.errors import FileError
from crashsim.visible import visible

campaign = typer.Typer(
    name="campaign",
    no_args_is_help=True,
    help="Run studies of many cases; look at stores of finished work (--store), put them together.",
)

campaign.command()(stoppable(run))
campaign.command()(compare)

StoreArgument = Annotated[Path, typer.Argument(help="The folder, as given to --store.")]


@campaign.command()
def status(store: StoreArgument, json_file: JsonOption = None) -> None:
    """Tell what a store holds, in what its runs differ, and what is damaged."""
    from rich.markup import escape

    from crashsim.campaign.store import apart

    check_outputs([], json=json_file)
    found = _store(store).status()
    if json_file:
        plain = [{**vars(each), "damaged": list(each.damaged)} for each in found]
        write("json", json_file, json.dumps(plain, indent=1))
    out = console()
    for each, differs in zip(found, apart(found), strict=True):
        what = each.identity.get("work", "unknown work")
        out.print(f"[bold]{each.name[:12]}[/bold]  {escape(what)}")
        out.print(f"  {each.blocks} finished blocks, {_size(each.size)}")
        shown = {"differs from the one above in": "; ".join(differs)} if differs else {}
        for name, value in (shown or dict(each.identity)).items():
            if name != "work":
                out.print(f"  [dim]{escape(name)}:[/dim] {escape(visible(value))}")
        for why in each.damaged:
            out.print(f"  [red]left out:[/red] {escape(why)}")
    if not found:
        out.print("nothing is stored there yet")


@campaign.command()
def merge(
    store: StoreArgument,
    others: Annotated[list[Path], typer.Argument(help="Stores whose blocks are taken over.")],
) -> None:
    """Take over what other stores have, in any order; nothing is counted twice."""
    from crashsim.campaign.store import Store

    target = Store(store)
    files = 0
    left_out: list[str] = []
    for other in others:
        merged = target.merge(_store(other))
        files += merged.files
        left_out += merged.left_out
    out = console()
    out.print(f"took over {files} {'file' if files == 1 else 'files'}")
    for why in left_out:
        out.print(f"left out: {why}", markup=False)


@campaign.command()
def clean(store: StoreArgument) -> None:
    """Take away files that are damaged, or whose blocks a total holds as well."""
    gone = _store(store).clean()
    console().print(f"took away {gone} {'file' if gone == 1 else 'files'}")


@campaign.command()
def export(
    store: StoreArgument,
    csv_file: Annotated[Path, typer.Option("--csv", help="Write a line for each run.")],
) -> None:
    """Write what the runs of a store are, and how much of each is finished, as CSV."""
    check_outputs([], csv=csv_file)
    found = _store(store).status()
    parts = sorted({part for each in found for part in each.identity})
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["run", "blocks", "bytes", "damaged", *parts])
    for each in found:
        facts: list[Any] = [each.name, each.blocks, each.size, len(each.damaged)]
        lines.writerow([*facts, *(each.identity.get(part, "") for part in parts)])
    write("csv", csv_file, text.getvalue())
    told_written(csv_file)


def _store(folder: Path) -> Any:
    from crashsim.campaign.store import Store

    if not folder.is_dir():
        raise FileError(f"store={str(folder)!r}: no such folder; give one that --store has made")
    return Store(folder)


def _size(count: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"
