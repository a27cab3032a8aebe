"""``crashsim campaign run`` and ``compare``: studies of many cases, and what changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from crashsim.cli.campaigns.study_sources import CommandLineSources, study_inputs
from crashsim.cli.executors import (
    DaskOption,
    RayOption,
    SlurmOption,
    StoreOption,
    WorkersOption,
    executor_of,
)
from crashsim.cli.options import JsonOption, ParquetOption
from crashsim.cli.reading import check_outputs, write, write_tables
from crashsim.cli.terminal import console
from crashsim.errors import ArgumentError, FileError, Interrupted
from crashsim.noticing import collecting, notice
from crashsim.writing import all_of

CasesOption = Annotated[
    Path | None,
    typer.Option("--json", help="Write a line of JSON for each case ('-' for standard output)."),
]


def run(
    study_file: Annotated[
        Path, typer.Argument(metavar="STUDY", help="A TOML file: models, data and a grid.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cases and what they cost; run nothing.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time for all chips (90s, 2m, 1h), of a core that does 1e10 operations a second. "
            "(default: that of the study)"
        ),
    ] = None,
    json_file: CasesOption = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the cases as CSV.")] = None,
    parquet_file: ParquetOption = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML page of curves and ranks.")
    ] = None,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    ray: RayOption = None,
    slurm: SlurmOption = None,
    store: StoreOption = None,
) -> None:
    """Run all cases of a study; the same command again goes on where it was, with --store."""
    from crashsim.cli.campaigns.study_table import watching
    from crashsim.studies.description import read_study, with_budget
    from crashsim.studies.run import planned, run_study

    study = read_study(study_file)
    if budget is not None:
        study = with_budget(study, budget)
    reads = [("study", str(study_file)), *study_inputs(study)]
    to_stdout = str(json_file) == "-"
    files = {"csv": csv_file, "parquet": parquet_file, "report": report_file}
    check_outputs(reads, json=None if to_stdout else json_file, **files)
    if dry_run:
        _show_plan(planned(study, CommandLineSources(is_plan=True)), json_file)
        return
    sources = CommandLineSources()
    stop = None
    with collecting() as noticed:
        try:
            with (
                executor_of(workers, dask, ray, slurm) as executor,
                watching(study.study.name) as watch,
            ):
                cases = run_study(study, sources, executor=executor, store=store, watch=watch)
        except Interrupted as error:
            stop, cases = error, error.partial
    for message in dict.fromkeys(noticed):
        notice(message)
    _show(study.study.name, cases, json_file, csv_file, parquet_file, report_file)
    if stop is not None:
        raise stop


def compare(
    old: Annotated[Path, typer.Argument(help="Lines that `crashsim campaign run --json` wrote.")],
    new: Annotated[Path, typer.Argument(help="The same, of later.")],
    json_file: JsonOption = None,
) -> None:
    """Say what changed between two studies: differences with intervals, new and gone cases."""
    from crashsim.report.studies import render_changes
    from crashsim.results.studies.changes import changes_of

    check_outputs([("old", str(old)), ("new", str(new))], json=json_file)
    found = changes_of(_cases(old), _cases(new))

    def as_json() -> None:
        if json_file:
            write("json", json_file, json.dumps(found.to_dict(), indent=1))

    all_of(as_json, lambda: console().print(render_changes(found)))


def _cases(path: Path) -> Any:
    """The cases of a file of results."""
    from crashsim.files.limits import read_text
    from crashsim.results.studies.case_record import from_lines

    subject = f"study={str(path)!r}"
    remedy = "give a file that `crashsim campaign run --json` wrote"
    try:
        return from_lines(read_text(subject, path, remedy), subject)
    except UnicodeDecodeError as error:
        raise FileError(f"{subject}: is no text ({error}); {remedy}") from error


def _show_plan(cases: Any, json_file: Path | None) -> None:
    from crashsim.report.studies import render_plan

    if json_file is not None:
        raise ArgumentError("dry-run: it has no results to write; leave out --json")
    console().print(render_plan(cases))


def _show(
    name: str,
    cases: Any,
    json_file: Path | None,
    csv_file: Path | None,
    parquet_file: Path | None,
    report_file: Path | None,
) -> None:
    from crashsim.report import studies
    from crashsim.results.studies.case_record import to_csv, to_lines

    def as_json() -> None:
        if json_file is not None and str(json_file) != "-":
            write("json", json_file, to_lines(cases))

    def as_csv() -> None:
        if csv_file is not None:
            write("csv", csv_file, to_csv(cases))

    def as_html() -> None:
        if report_file is not None:
            write("report", report_file, studies.to_html(name, cases))

    def as_text() -> None:
        if str(json_file) == "-":
            print(to_lines(cases), end="")
        else:
            console().print(studies.render(name, cases))

    def as_parquet() -> None:
        from crashsim.results.tables import of_cases

        write_tables(None, parquet_file, lambda: of_cases(cases))

    all_of(as_json, as_csv, as_parquet, as_html, as_text)
