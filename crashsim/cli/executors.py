"""Who does the work, as a command line says it: processes, or a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from crashsim.errors import ArgumentError

_PANEL = "Where the work is done"
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Processes that share the work, of one thread each. (default: none but this one)",
        rich_help_panel=_PANEL,
    ),
]
DaskOption = Annotated[
    str | None,
    typer.Option(
        "--dask",
        help="Address of a Dask scheduler (tcp://host:8786) whose workers do it.",
        rich_help_panel=_PANEL,
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Address of a Ray cluster (auto, local) whose workers do it.",
        rich_help_panel=_PANEL,
    ),
]
SlurmOption = Annotated[
    str | None,
    typer.Option(
        "--slurm",
        help="Jobs of SLURM do it: partition=gpu,timeout_min=60,mem_gb=8.",
        rich_help_panel=_PANEL,
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="Folder that keeps what is finished: the same command resumes, or adds samples.",
        rich_help_panel=_PANEL,
    ),
]


@contextmanager
def executor_of(
    workers: int | None, dask: str | None, ray: str | None, slurm: str | None
) -> Iterator[Executor | None]:
    """The executor that the options ask for; None where they ask for none.

    Raises:
        ArgumentError: they ask for several.
        MissingExtraError: what it needs is not installed; the message says how to.
    """
    given = {"workers": workers, "dask": dask, "ray": ray, "slurm": slurm}
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) > 1:
        raise ArgumentError(f"{asked[0]}: --{asked[0]} is without --{asked[1]}; give one of them")
    if not asked:
        yield None
        return
    with _made(asked[0], given[asked[0]]) as executor:
        yield executor


def _made(kind: str, value: Any) -> Executor:
    from crashsim.campaign.clusters import DaskExecutor, RayExecutor, SlurmExecutor
    from crashsim.campaign.workers import Workers

    if kind == "workers":
        return Workers(value)
    if kind == "dask":
        return DaskExecutor(value)
    if kind == "ray":
        return RayExecutor(None if value == "local" else value)
    return SlurmExecutor(parameters=_parameters(value))


def _parameters(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise ArgumentError(f"slurm={text!r}: {part!r} is no NAME=VALUE; give partition=gpu")
        found[name] = int(value) if value.isdigit() else value
    return found
