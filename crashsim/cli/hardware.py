"""``crashsim hardware``: the spiking-hardware check alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from crashsim.arguments import MOST_STEPS, whole
from crashsim.cli.options import (
    FaultOption,
    GroupOption,
    InputsOption,
    JsonOption,
    LimitOption,
    ModelArgument,
    POption,
    ResetOption,
    SeedOption,
    SitesOption,
    TrainOption,
    TrustOption,
    WeightsOption,
)
from crashsim.cli.reading import (
    check_outputs,
    data_inputs,
    fault_inputs,
    model_inputs,
    progress_bars,
    read_data,
    read_faults,
    read_model,
    told_written,
    write,
)
from crashsim.cli.terminal import console
from crashsim.errors import ArgumentError
from crashsim.writing import all_of


def hardware(
    model: ModelArgument,
    inputs: Annotated[
        str,
        typer.Option(
            help="Examples, as `crashsim score` takes them. For a .nir file also trains (examples, "
            "steps, ...), and events: an .npz of times and addresses, or of t, x, y, p."
        ),
    ] = "digits",
    limit: LimitOption = 32,
    fault: FaultOption = None,
    p: POption = None,
    sites: SitesOption = None,
    group: GroupOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Break as this device breaks, instead of --fault; see `crashsim devices`."
        ),
    ] = None,
    set_values: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of the device, repeatable.")
    ] = None,
    chip_fault: Annotated[
        str | None,
        typer.Option(
            help="NAME=VALUE, instead of --fault: release-failure, stuck-firing, mismatch, "
            "weight-bits or core-death."
        ),
    ] = None,
    masks: Annotated[
        int | None,
        typer.Option(
            help="Fault patterns, each read twice. (default 400; fewer, and fewer inputs, where "
            "that takes more than some minutes, and the output says so)"
        ),
    ] = None,
    rel_width: Annotated[
        float | None,
        typer.Option(
            help="Stop once Var Δ of all outputs is known to this relative half-width, such as 0.1."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Length of the readout window in steps of 1 ms. (default 100; of trains and "
            "events, their own)"
        ),
    ] = None,
    event_step: Annotated[
        float,
        typer.Option(
            help="Length of a step in the unit of the events' times: 1000 for steps of 1 ms where "
            "times are in microseconds."
        ),
    ] = 1.0,
    readout: Annotated[
        Literal["count", "first-spike", "membrane"],
        typer.Option(
            help="What the outputs of a .nir file are: spikes a step, how early the first spike is "
            "(1 - t/T; 0 without one), or membranes after the last step."
        ),
    ] = "count",
    engine: Annotated[
        Literal["brian2", "numpy"], typer.Option(help="brian2 gives the same spikes, slower.")
    ] = "numpy",
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Data whose first 500 training examples set the scales of rates. (default: the "
            "inputs themselves)"
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--pj-per-operation",
            help="Also energy: picojoules of a synaptic operation, as published for your chip (for "
            "example 23.6 for Loihi: Davies et al., IEEE Micro 38(1), 2018).",
        ),
    ] = None,
    train: TrainOption = None,
    weights: WeightsOption = None,
    reset: ResetOption = None,
    dt: Annotated[
        float | None,
        typer.Option(help="Time step of a .nir file, in the unit of its time constants."),
    ] = None,
    exporter: Annotated[
        Literal["nir", "snntorch", "spikingjelly", "sinabs", "sinabs-bounded", "norse", "rockpool"]
        | None,
        typer.Option(
            help="The library that wrote a .nir file, whose neurons are run as it runs them: its "
            "time step, comparison with the threshold and reset. (default: NIR's own equations)"
        ),
    ] = None,
    start: Annotated[
        Literal["zero", "half"] | None,
        typer.Option(
            help="Membranes of a .nir file before the first step: at zero, as libraries start, or "
            "at half of the threshold. (default zero; half for a file that crashsim wrote)"
        ),
    ] = None,
    trust: TrustOption = False,
    seed: SeedOption = 0,
    nir_file: Annotated[Path | None, typer.Option("--nir", help="Write the chip as NIR.")] = None,
    json_file: JsonOption = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML report.")
    ] = None,
) -> None:
    """Run the faults on a spiking model of the chip, beside the network under the same masks."""
    from crashsim.chip.chip_faults import parse_chip_fault
    from crashsim.chip.graph_runs import run_graph
    from crashsim.chip.nir import check_nir_installed, write_chip
    from crashsim.chip.spiking import chip_of, run_chip
    from crashsim.report.chip import graph_sentence
    from crashsim.report.text import plain, render_chip
    from crashsim.results.json_reading import finite
    from crashsim.space import FaultSpace

    reads = [*model_inputs(model, weights), *data_inputs("inputs", inputs), *fault_inputs(fault)]
    check_outputs([*reads, *data_inputs("train", train)], json=json_file, nir=nir_file)
    if nir_file:
        check_nir_installed()
    profile = _device(device, set_values or [])
    options = (("fault", fault), ("p", p), ("sites", sites), ("group", group))
    own = [name for name, given in options if given is not None]
    if own and (device or chip_fault):
        raise ArgumentError(
            f"{own[0]}: --device and --chip-fault bring faults of their own; leave --{own[0]} out"
        )
    if profile is not None and chip_fault is not None:
        raise ArgumentError(f"chip-fault={chip_fault!r}: give it or --device, not both")
    breaks = None if chip_fault is None else parse_chip_fault(chip_fault)
    chip = _graph(model, reset, steps, {"dt": dt, "exporter": exporter, "start": start})
    asked = {"masks": masks, "seed": seed, "engine": engine, "device": profile, "breaks": breaks}
    faults, space = read_faults(fault, p, sites, group), None
    if chip is None or (chip.network is not None and not chip.convention):
        named = read_model(model, seed, train, weights, reset=reset, trust=trust)
        space = FaultSpace(named.model, read_data(inputs, limit).inputs, faults)
    elif weights is not None or train is not None:
        raise ArgumentError(f"model={model!r} has weights already; leave --weights and --train out")
    with progress_bars() as progress:
        progress("chip", 0, 1)
        if space is not None:
            found = run_chip(space, steps=steps, chip=chip, **asked)
        else:
            values = read_data(inputs, limit).inputs.double().numpy()
            found = run_graph(chip, values, faults, **asked)
        progress("chip", 1, 1)

    leading = [w for w in found.warnings if "never fires" in w]

    def as_json() -> None:
        if json_file:
            plain = {"schema": 1, "seed": seed, "model": model, "hardware": found.facts}
            plain["estimates"] = [e.to_dict() for e in found.estimates]
            write("json", json_file, json.dumps(finite(plain), indent=1))

    def as_nir() -> None:
        if nir_file:
            write_chip(chip_of(space, steps)[0] if chip is None and space else chip, nir_file)
            told_written(nir_file)

    def as_text() -> None:
        for warning in leading:
            console().print(plain(f"warning: {warning}", "yellow"))
        if space is not None:
            console().print(render_chip(found.facts))
        else:
            console().print(plain(graph_sentence(found.facts)))
        for estimate in found.estimates:
            if estimate.input == "all" and estimate.output == "all":
                console().print(plain(estimate))
        for warning in found.warnings[len(leading) :]:
            console().print(plain(f"warning: {warning}", "yellow"))

    all_of(as_json, as_nir, as_text)


def _graph(path: str, reset: Any, steps: int, options: dict[str, Any]) -> Any:
    """The chip in a .nir file; None for all other models, which take none of its options."""
    from crashsim.chip.nir import read_graph
    from crashsim.files.limits import check_file, most_bytes

    if not path.endswith(".nir"):
        for option, value in options.items():
            if value is not None:
                raise ArgumentError(f"{option}={value!r}: only for a .nir file, not {path!r}")
        return None
    steps = whole("steps", steps, 2, MOST_STEPS)
    check_file(f"model={path!r}", Path(path), "give a .nir file")
    return read_graph(path, reset, steps=steps, most_bytes=most_bytes(), **options)


def _device(name: str | None, settings: list[str]) -> Any:
    import crashsim_hardware

    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        try:
            values[key] = float(text)
        except ValueError:
            equals = ""
        if not equals:
            raise ArgumentError(f"set={setting!r}: give NAME=VALUE with a number")
    if name is None:
        if values:
            raise ArgumentError(f"set={settings!r}: needs --device")
        return None
    try:
        found = crashsim_hardware.device(name, **values)
        for parameter in found.parameters:
            _ = found[parameter.name]
    except crashsim_hardware.HardwareError as error:
        message = str(error).replace(f"device({name!r}, ", "--set ").replace("=...)", "=VALUE")
        raise ArgumentError(f"device={name!r}: {message}") from error
    return found


def devices() -> None:
    """List the devices whose faults are known, with their sources."""
    import crashsim_hardware
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("device", "what", "parameters", "source"):
        table.add_column(title, overflow="fold")
    for name, device in crashsim_hardware.devices().items():
        parameters = "\n".join(
            f"{p.name} = {'?' if p.value is None else f'{p.value:g}'} ({p.status})"
            for p in device.parameters
        )
        table.add_row(name, device.title, parameters, device.citation)
    console().print(table)
