"""The command that keeps one sample of the faults: what it strikes, and the weights it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crashsim.cli.options import (
    DtOption,
    ExporterOption,
    FaultOption,
    GraphStepsOption,
    GroupOption,
    InputsOption,
    LimitOption,
    ModelArgument,
    POption,
    ReadoutOption,
    ResetOption,
    SeedOption,
    SitesOption,
    StartOption,
    TrainOption,
    TrustOption,
    WeightsOption,
)
from crashsim.cli.reading import (
    check_outputs,
    data_inputs,
    fault_inputs,
    model_inputs,
    read_examples,
    read_faults,
    read_model,
    told_written,
)
from crashsim.cli.terminal import console
from crashsim.errors import ArgumentError
from crashsim.visible import visible

_SHOWN = 10  # struck coordinates that are printed


def sample(
    model: ModelArgument,
    index: Annotated[int, typer.Option(min=0, help="Which of Monte Carlo's samples, from 0.")] = 0,
    fault_list: Annotated[
        Path | None,
        typer.Option(
            help="A CSV of faults to strike in place of a sample's, such as another tool drew: "
            "columns layer, index, bit (of words) and value (of noise)."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Writes OUT.safetensors and OUT.json.")] = Path(
        "sample"
    ),
    inputs: InputsOption = "digits",
    limit: LimitOption = 32,
    fault: FaultOption = None,
    p: POption = None,
    sites: SitesOption = None,
    group: GroupOption = None,
    readout: ReadoutOption = None,
    train: TrainOption = None,
    weights: WeightsOption = None,
    reset: ResetOption = None,
    steps: GraphStepsOption = None,
    dt: DtOption = None,
    exporter: ExporterOption = None,
    start: StartOption = None,
    trust: TrustOption = False,
    seed: SeedOption = 0,
) -> None:
    """Keep one of Monte Carlo's samples, or faults of a list, and the weights that they leave."""
    import numpy as np

    from crashsim.files.fault_lists import read_fault_list
    from crashsim.space import FaultSpace

    listed = [] if fault_list is None else [("fault_list", str(fault_list))]
    if listed and index:
        raise ArgumentError(f"index={index}: a sample of a seed, and fault_list= are two; give one")
    reads = [
        *listed,
        *model_inputs(model, weights),
        *data_inputs("inputs", inputs),
        *fault_inputs(fault),
    ]
    check_outputs([*reads, *data_inputs("train", train)], out=out)
    faults = read_faults(fault, p, sites, group)
    data = read_examples(inputs, limit)
    graph = {"steps": steps, "dt": dt, "exporter": exporter, "start": start}
    named = read_model(model, seed, train, weights, reset=reset, trust=trust, graph=graph)
    space = FaultSpace(named.model, data.fitted(named.model), faults, readout=readout)
    found, name = space.sample(seed, index), f"sample {index} of seed {seed}"
    if fault_list is not None:
        found, name = space.at_faults(read_fault_list(fault_list)), str(fault_list)
    for file in found.save(out):
        told_written(file)
    outputs = found.outputs
    moved = f"the outputs move by at most {np.abs(outputs - space.clean()).max():.4g}"
    if not np.isfinite(outputs).all():
        lost = int((~np.isfinite(outputs)).any(-1).sum())
        moved = f"outputs of {lost} of {space.B} inputs are not finite"
    lines = [f"{name}: {len(found.faults)} of {space.N} coordinates struck, {moved}"]
    for strike in found.faults[:_SHOWN]:
        place = ", ".join(map(str, strike.index))
        change = "" if strike.clean is None else f": {strike.clean:.4g} becomes {strike.faulty:.4g}"
        lines.append(f"  {strike.fault} at {strike.site} ({place}){change}")
    if len(found.faults) > _SHOWN:
        lines.append(f"  and {len(found.faults) - _SHOWN} more, in the file")
    for line in lines:
        console().print(visible(line), markup=False, highlight=False, soft_wrap=True)
