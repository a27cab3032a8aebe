"""``crashsim protect``: what to protect, and how, for a target or under a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from crashsim.cli.executors import (
    DaskOption,
    RayOption,
    SlurmOption,
    StoreOption,
    WorkersOption,
    executor_of,
)
from crashsim.cli.metrics import labelled_examples
from crashsim.cli.options import (
    BatchAxisOption,
    FaultOption,
    GroupOption,
    InputsOption,
    JsonOption,
    ModelArgument,
    ReadoutOption,
    ResetOption,
    SeedOption,
    SitesOption,
    TargetsOption,
    TrainOption,
    TrustOption,
    WeightsOption,
)
from crashsim.cli.protection.scheme_specs import read_schemes
from crashsim.cli.reading import (
    check_figures,
    check_outputs,
    data_inputs,
    fault_inputs,
    model_inputs,
    progress_bars,
    read_faults,
    read_model,
    write,
)
from crashsim.cli.terminal import present, printing
from crashsim.errors import ArgumentError
from crashsim.writing import all_of


def protect(
    model: ModelArgument,
    inputs: InputsOption = "digits",
    targets: TargetsOption = None,
    accuracy: Annotated[
        float | None, typer.Option(help="Accuracy that the mean over chips is to reach.")
    ] = None,
    class_change: Annotated[
        float | None,
        typer.Option(help="Share of answers that may change, on average, in place of --accuracy."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            "--yield", help="Share of chips that are to reach it, each by itself, such as 0.99."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="The most overhead, as a share of the network's own struck bits and operations: "
            "0.1. Without a target: the best that it allows."
        ),
    ] = None,
    schemes: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[:OPTION=VALUE;...], with commas between, or repeated: secded, parity, tmr, "
            "duplication, clip, clip-weights, spares, scrubbing; 'secded:data=32;on_detection=last'"
            ", 'tmr:of=words;bits=6-7;sites=0.*'. (default: secded,tmr)"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="What can be protected alone: names of parts with commas between (layer, bit, "
            "field, channel, neuron, word, tile:64), or coordinate: each by itself. (default: "
            "layer,bit; layer,channel of neurons)"
        ),
    ] = None,
    chips: Annotated[
        int | None,
        typer.Option("--chips", "--samples", help="Chips that measure the plan. (default: 400)"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use the first inputs only. (default: all with targets)"),
    ] = None,
    fault: FaultOption = None,
    sites: SitesOption = None,
    group: GroupOption = None,
    readout: ReadoutOption = None,
    batch_axis: BatchAxisOption = 0,
    train: TrainOption = None,
    weights: WeightsOption = None,
    reset: ResetOption = None,
    trust: TrustOption = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML page with the plan.")
    ] = None,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    ray: RayOption = None,
    slurm: SlurmOption = None,
    store: StoreOption = None,
) -> None:
    """Choose what to protect, and how: the cheapest plan for a target, or the best in a budget."""
    reads = [*model_inputs(model, weights), *fault_inputs(fault)]
    reads += [*data_inputs("inputs", inputs), *data_inputs("train", train)]
    check_outputs([*reads, *data_inputs("targets", targets)], json=json_file, report=report_file)
    check_figures(report_file)
    if accuracy is not None and class_change is not None:
        raise ArgumentError("accuracy: --accuracy beside --class-change; give one of them")
    named_schemes = read_schemes(schemes)
    faults = read_faults(fault, None, sites, group)
    data = labelled_examples(inputs, limit, batch_axis, targets)
    named = read_model(model, seed, train, weights, 1, reset, trust)
    options: dict[str, Any] = {
        "target": accuracy if class_change is None else class_change,
        "metric": None if class_change is None else "class-change",
        "share": share,
        "budget": budget,
        "schemes": named_schemes,
        "by": by,
        "chips": chips,
        "seed": seed,
        "readout": readout,
        "batch_axis": batch_axis,
        "names": {"model": named.name, "inputs": data.name},
    }
    with executor_of(workers, dask, ray, slurm) as executor:
        found = _planned(
            named.model, data, faults, {**options, "executor": executor, "store": store}
        )
    _show(found, json_file, report_file)


def _planned(model: Any, data: Any, faults: Any, options: dict[str, Any]) -> Any:
    """The plan; its warnings stay in it, for whoever shows it."""
    from crashsim.noticing import collecting
    from crashsim.protection.adviser.advise import protect as plan_of

    with progress_bars() as progress, collecting():
        return plan_of(
            model, data.fitted(model), faults,
            targets=data.targets, progress=progress, **options,
        )  # fmt: skip


def _show(plan: Any, json_file: Path | None, report_file: Path | None) -> None:
    from crashsim.report.plans import render
    from crashsim.results.plan.plans import sentences

    def as_json() -> None:
        if json_file:
            write("json", json_file, json.dumps(plan.to_dict(), indent=1))

    def as_html() -> None:
        if report_file:
            write("report", report_file, plan.to_html())

    def as_text() -> None:
        present(" ".join(sentences(plan)), render(plan, printing().details))

    all_of(as_json, as_html, as_text)
