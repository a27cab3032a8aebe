"""``crashsim hardware``: the spiking-hardware check alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

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
    WeightsOption,
)
from crashsim.cli.reading import (
    check_writable,
    console,
    progress_bars,
    read_data,
    read_faults,
    read_model,
    write,
)
from crashsim.errors import ArgumentError


def hardware(
    model: ModelArgument,
    inputs: InputsOption = "digits",
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
    masks: Annotated[int, typer.Option(help="Fault patterns, each read twice.")] = 400,
    steps: Annotated[
        int, typer.Option(help="Length of the readout window in steps of 1 ms.")
    ] = 100,
    engine: Annotated[
        Literal["brian2", "numpy"], typer.Option(help="numpy gives the same spikes, faster.")
    ] = "brian2",
    train: TrainOption = None,
    weights: WeightsOption = None,
    reset: ResetOption = None,
    seed: SeedOption = 0,
    nir_file: Annotated[Path | None, typer.Option("--nir", help="Write the chip as NIR.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Run the faults on a spiking model of the chip, beside the network under the same masks."""
    import crashsim_hardware

    from crashsim.chip_faults import parse_chip_fault
    from crashsim.report.text import render_chip
    from crashsim.space import FaultSpace
    from crashsim.spiking import chip_of, run_chip

    for file in (json_file, nir_file):
        check_writable(file)
    profile = _device(device, set_values or [])
    own = [name for name, given in (("fault", fault), ("p", p), ("sites", sites)) if given]
    if own and (device or chip_fault):
        raise ArgumentError(
            f"{own[0]}: --device and --chip-fault bring faults of their own; leave --{own[0]} out"
        )
    if profile is not None and chip_fault is not None:
        raise ArgumentError(f"chip-fault={chip_fault!r}: give it or --device, not both")
    breaks = None if chip_fault is None else parse_chip_fault(chip_fault)
    named = read_model(model, seed, train, weights, reset=reset)
    space = FaultSpace(
        named.model, read_data(inputs).first(limit).inputs, read_faults(fault, p, sites, group)
    )
    with progress_bars() as progress:
        progress("chip", 0, 1)
        found = run_chip(
            space, masks=masks, steps=steps, seed=seed, engine=engine, device=profile,
            breaks=breaks,
            chip=named.chip,
        )  # fmt: skip
        progress("chip", 1, 1)
    console().print(render_chip(found.facts))
    for estimate in found.estimates:
        if estimate.input == "all" and estimate.output == "all":
            console().print(str(estimate), highlight=False)
    for warning in found.warnings:
        console().print(f"warning: {warning}", style="yellow", highlight=False)
    if json_file:
        from crashsim.scoring import finite

        plain = {"schema": 1, "seed": seed, "model": named.name, "hardware": found.facts}
        plain["estimates"] = [e.to_dict() for e in found.estimates]
        write(json_file, json.dumps(finite(plain), indent=1))
    if nir_file:
        chip, _ = (named.chip, None) if named.chip else chip_of(space, steps)
        try:
            crashsim_hardware.write_nir(chip, nir_file)
        except crashsim_hardware.HardwareError as error:
            raise ArgumentError(f"nir: {error}") from error
        console().print(f"wrote {nir_file}", style="dim", highlight=False)


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
