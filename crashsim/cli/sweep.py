"""``crashsim sweep``: a metric against the rate of faults, of models and kinds of fault."""

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
    ModelsArgument,
    ParquetOption,
    ReadoutOption,
    ResetOption,
    SeedOption,
    SitesOption,
    StepsAxisOption,
    TargetsOption,
    TrainOption,
    TrustOption,
    WeightsOption,
)
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
    write_tables,
)
from crashsim.cli.terminal import present
from crashsim.errors import ArgumentError, Interrupted
from crashsim.noticing import collecting, notice
from crashsim.writing import all_of


def sweep(
    models: ModelsArgument,
    inputs: InputsOption = "digits",
    targets: TargetsOption = None,
    rates: Annotated[
        str,
        typer.Option(
            help="LOW:HIGH:COUNT, that many rates at equal ratios; LOW:HIGH, rates that are chosen "
            "where the curve bends; or rates with commas between."
        ),
    ] = "1e-4:1e-1:7",
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive",
            help="Choose the rates between the ends of --rates by a pilot of few chips: where the "
            "curve bends and where the target is missed.",
        ),
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(
            help="accuracy, top-5, error-rate, class-change, sdc-1, sdc-5, due, cross-entropy, "
            "perplexity, mse, mae or mean-iou. (default: accuracy; class-change without targets)"
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            help="Worst value that is accepted: also say up to which rate it is reached. (default: "
            "an accuracy a point below that without faults)"
        ),
    ] = None,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="Theory, and what a few chips leave open of it."),
    ] = False,
    check: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Chips that say how far --predict may be off; 0 for none. (default: 24)",
        ),
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Show what theory predicts beside what is measured.")
    ] = False,
    chips: Annotated[
        int | None,
        typer.Option("--chips", "--samples", help="Chips at every rate. (default: 300)"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use the first inputs only. (default: all with targets)"),
    ] = None,
    fault: FaultOption = None,
    joint: Annotated[
        bool,
        typer.Option(
            "--joint",
            help="Several --fault strike together, in one curve, instead of a curve each.",
        ),
    ] = False,
    sites: SitesOption = None,
    group: GroupOption = None,
    readout: ReadoutOption = None,
    batch_axis: BatchAxisOption = 0,
    steps_axis: StepsAxisOption = None,
    train: TrainOption = None,
    weights: WeightsOption = None,
    reset: ResetOption = None,
    trust: TrustOption = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML page with the figure.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the points as CSV.")] = None,
    parquet_file: ParquetOption = None,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    ray: RayOption = None,
    slurm: SlurmOption = None,
    store: StoreOption = None,
) -> None:
    """Draw a metric against the rate of faults, with a band: of models, and of kinds of fault."""
    from crashsim.sweeping.adaptive import read_span
    from crashsim.sweeping.rates import read_rates

    reads = [file for model in models for file in model_inputs(model, weights)]
    reads += [*fault_inputs(fault), *data_inputs("inputs", inputs)]
    reads += [*data_inputs("train", train), *data_inputs("targets", targets)]
    check_outputs(reads, json=json_file, report=report_file, csv=csv_file, parquet=parquet_file)
    check_figures(report_file)
    if read_span(rates, adaptive) is None:
        read_rates(rates)
    if len(set(models)) < len(models):
        raise ArgumentError(f"models: {models} names one twice; give different models")
    kinds = _kinds(fault, sites, group, joint)
    data = labelled_examples(inputs, limit, batch_axis, targets)
    if predict and beside:
        raise ArgumentError("predict: --predict is without --beside; give one of them")
    options: dict[str, Any] = {
        "predict": "beside" if beside else predict,
        "rates": rates,
        "adaptive": adaptive,
        "metric": metric,
        "target": target,
        "chips": chips,
        "seed": seed,
        "readout": readout,
        "batch_axis": batch_axis,
        "steps_axis": steps_axis,
    }
    curves: list[Any] = []
    stop = None
    options |= {} if check is None else {"check": check}
    try:
        with executor_of(workers, dask, ray, slurm) as executor:
            options |= {"executor": executor, "store": store}
            for name in models:
                named = read_model(name, seed, train, weights, 1, reset, trust)
                for label, faults in kinds.items():
                    words = " ".join([name] * (len(models) > 1) + [label] * (len(kinds) > 1))
                    with progress_bars() as progress:
                        curves.append(_curve(named, data, faults, progress, words, options))
    except KeyboardInterrupt as error:
        stop = error
        curves += [error.partial] if isinstance(error, Interrupted) else []
        if not curves:
            raise
    _show(curves, json_file, report_file, csv_file, parquet_file)
    if stop is not None:
        raise Interrupted("interrupted", curves) from stop


def _kinds(
    specs: list[str] | None, sites: str | None, group: str | None, joint: bool
) -> dict[str, dict[str, Any]]:
    """The faults of each curve, by what they are called. Its rates take the place of theirs."""
    if joint or not specs or len(specs) == 1:
        return {" ".join(specs or []): read_faults(specs, None, sites, group)}
    if len(set(specs)) < len(specs):
        raise ArgumentError(f"fault: {specs} names one twice; give different faults")
    return {spec: read_faults([spec], None, sites, group) for spec in specs}


def _curve(
    named: Any, data: Any, faults: dict[str, Any], progress: Any, name: str, options: dict[str, Any]
) -> Any:
    """The curve of a model; its warnings stay in it, for whoever shows it."""
    from dataclasses import replace

    from crashsim.sweeping.sweep import sweep as curve_of

    names = {"model": named.name, "inputs": data.name}
    inputs = data.fitted(named.model)
    if named.chip is not None:
        from crashsim.chip.spiking import saturated_layers

        for message in saturated_layers(named.chip, inputs.double().cpu().numpy()):
            notice(message)
    try:
        with collecting():
            found = curve_of(
                named.model, inputs, faults,
                targets=data.targets, progress=progress, names=names, **options,
            )  # fmt: skip
    except Interrupted as stop:
        stop.partial = replace(stop.partial, name=name)
        raise
    return replace(found, name=name)


def _show(
    curves: list[Any],
    json_file: Path | None,
    report_file: Path | None,
    csv_file: Path | None,
    parquet_file: Path | None,
) -> None:
    from crashsim.report.curves import render, to_html, told

    def as_json() -> None:
        if json_file:
            plain = curves[0].to_dict()
            if len(curves) > 1:
                plain["others"] = [curve.to_dict() for curve in curves[1:]]
            write("json", json_file, json.dumps(plain, indent=1))

    def as_html() -> None:
        if report_file:
            write("report", report_file, to_html(curves))

    def as_csv() -> None:
        if csv_file:
            from crashsim.sweeping.curve import csv_of

            write("csv", csv_file, csv_of(curves))

    def as_parquet() -> None:
        from crashsim.results.tables import of_curves

        write_tables(None, parquet_file, lambda: of_curves(curves))

    def as_text() -> None:
        present("\n".join(map(told, curves)), render(curves))

    all_of(as_json, as_html, as_csv, as_parquet, as_text)
