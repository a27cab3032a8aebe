"""``crashsim criticality``: every single fault of a spiking chip, one after the other."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from crashsim.arguments import MOST_STEPS, whole
from crashsim.cli.hardware import graph_of
from crashsim.cli.options import (
    DtOption,
    ExporterOption,
    InputsOption,
    JsonOption,
    ModelArgument,
    ResetOption,
    SeedOption,
    StartOption,
    TrainOption,
    TrustOption,
    WeightsOption,
)
from crashsim.cli.reading import (
    check_outputs,
    data_inputs,
    model_inputs,
    progress_bars,
    read_data,
    read_model,
    write,
)
from crashsim.cli.terminal import console, present
from crashsim.errors import ArgumentError


def criticality(
    model: ModelArgument,
    inputs: InputsOption = "digits",
    limit: Annotated[int, typer.Option(help="Take the first inputs only.")] = 8,
    single_fault: Annotated[
        list[str] | None,
        typer.Option(
            help="dead-neuron, saturated-neuron, dead-synapse, saturated-synapse, "
            "inverted-synapse or top-bit-flip, repeatable; those of synapses take a run for each "
            "weight. (default the two of neurons)"
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Faults to show: those that move outputs most.")] = 10,
    steps: Annotated[int, typer.Option(help="Length of the readout window in steps.")] = 100,
    train: TrainOption = None,
    weights: WeightsOption = None,
    reset: ResetOption = None,
    dt: DtOption = None,
    exporter: ExporterOption = None,
    start: StartOption = None,
    trust: TrustOption = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Map how far each single fault moves a spiking chip: every neuron, or every synapse."""
    import crashsim_hardware as chips

    reads = [*model_inputs(model, weights), *data_inputs("inputs", inputs)]
    check_outputs([*reads, *data_inputs("train", train)], json=json_file)
    top, steps = whole("top", top, 1), whole("steps", steps, 2, MOST_STEPS)
    kinds = single_fault or ["dead-neuron", "saturated-neuron"]
    chip = graph_of(model, reset, steps, {"dt": dt, "exporter": exporter, "start": start})
    if chip is None:
        chip, values = _converted(model, inputs, limit, steps, seed, train, weights, trust)
    else:
        values = read_data(inputs, limit).inputs.double().numpy()
    with progress_bars() as progress:

        def told(done: int, total: int) -> None:
            progress("faults", done, total)

        try:
            found = chips.criticality(chip, values, kinds, progress=told)
        except chips.HardwareError as error:
            raise ArgumentError(f"criticality: {error}") from error
    if json_file:
        write("json", json_file, json.dumps(_plain(model, found, seed), indent=1))
    _show(found.worst(top))


def _converted(
    model: str,
    inputs: str,
    limit: int,
    steps: int,
    seed: int,
    train: Any,
    weights: Any,
    trust: bool,
) -> tuple[Any, Any]:
    """A model as a chip, and its inputs."""
    from crashsim.chip.conversion import chip_of
    from crashsim.faults import NeuronCrash
    from crashsim.space import FaultSpace

    named = read_model(model, seed, train, weights, trust=trust)
    space = FaultSpace(named.model, read_data(inputs, limit).inputs, NeuronCrash(0.5))
    return chip_of(space, steps)[0], space.inputs.double().cpu().numpy()


def _plain(model: str, found: Any, seed: int) -> dict[str, Any]:
    maps = [
        {
            "fault": m.fault,
            "layer": m.layer,
            "moved": m.moved.tolist(),
            "changed": m.changed.tolist(),
        }
        for m in found.maps
    ]
    return {"schema": 1, "model": model, "seed": seed, "inputs": len(found.outputs), "maps": maps}


def _show(worst: list[Any]) -> None:
    from rich.console import Group

    from crashsim.report.screen.table import FittedTable

    titles = ("fault", "layer", "index", "largest change of an output", "classes that change")
    rows = [
        (e.fault, e.layer, ", ".join(map(str, e.index)), f"{e.moved:.4g}", f"{e.changed:.1%}")
        for e in worst
    ]
    if not rows:
        console().print("no single fault moves the chip")
        return
    verdict = (
        f"The worst single fault: {rows[0][0]} at {rows[0][1]} ({rows[0][2]}) moves an output by "
        f"{rows[0][3]} and changes the class of {rows[0][4]} of the inputs."
    )
    note = "exact, for these inputs and this start of the chip; the change is their mean"
    present(verdict, Group(verdict, FittedTable(titles, rows, names=3), note))
