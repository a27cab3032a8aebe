"""``crashsim hardware``: the spiking-hardware check alone."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from crashsim.arguments import MOST_STEPS, whole
from crashsim.cli.options import (
    DtOption,
    ExporterOption,
    FaultOption,
    GroupOption,
    JsonOption,
    LimitOption,
    ModelArgument,
    PlanOption,
    POption,
    ResetOption,
    SeedOption,
    SitesOption,
    StartOption,
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
    read_data,
    read_faults,
    read_model,
    told_written,
    write,
)
from crashsim.cli.terminal import console, present, printing
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
            help="NAME=VALUE[,NAME=VALUE], instead of --fault: of neurons dead-neuron, "
            "stuck-firing, stuck-neuron, mismatch, leak-variation, refractory-variation, "
            "core-death; of synapses dead-synapse, stuck-synapse, perturbed-synapse, bit-flip, "
            "weight-bits, row-death, column-death, release-failure, read-noise, adc-bits; of cells "
            "levels, conductance-variation, stuck-cells, drift, pcm, ir-drop. `crashsim devices` "
            "says what they are. For some steps only, of neurons and synapses: ,window=START-STOP."
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
    dt: DtOption = None,
    exporter: ExporterOption = None,
    start: StartOption = None,
    trust: TrustOption = False,
    seed: SeedOption = 0,
    nir_file: Annotated[Path | None, typer.Option("--nir", help="Write the chip as NIR.")] = None,
    json_file: JsonOption = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML report.")
    ] = None,
    plan: PlanOption = False,
) -> None:
    """Run the faults on a spiking model of the chip, beside the network under the same masks."""
    from crashsim.chip.chip_faults import parse_chip_fault
    from crashsim.chip.graph_runs import run_graph
    from crashsim.chip.nir import check_nir_installed, write_chip
    from crashsim.chip.spiking import run_chip
    from crashsim.report.chip_html import to_html
    from crashsim.results.chip_record import ChipRecord
    from crashsim.results.estimates import Estimates
    from crashsim.scoring.provenance import versions
    from crashsim.space import FaultSpace

    reads = [*model_inputs(model, weights), *data_inputs("inputs", inputs), *fault_inputs(fault)]
    reads += [*data_inputs("train", train), *data_inputs("calibrate", calibrate)]
    check_outputs(reads, json=json_file, nir=nir_file, report=report_file)
    check_figures(report_file)
    if nir_file:
        check_nir_installed()
    for name, file in (("json", json_file), ("report", report_file), ("nir", nir_file)):
        if plan and file is not None:
            raise ArgumentError(f"{name}: --plan runs nothing; leave --{name} out")
    if energy is not None and not 0.0 < energy < math.inf:
        raise ArgumentError(f"pj_per_operation={energy:g}: give picojoules above 0")
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
    nir_options = {"dt": dt, "exporter": exporter, "start": start}
    chip = graph_of(model, reset, 100 if steps is None else steps, nir_options)
    faults = read_faults(fault, p, sites, group)
    asked: dict[str, Any] = {
        "masks": masks, "seed": seed, "engine": engine, "device": profile, "breaks": breaks,
        "rel_width": rel_width,
    }  # fmt: skip
    beside: list[Any] = []
    with progress_bars() as progress:
        if chip is None or _is_own(chip, inputs, readout):
            _check_timeless(model, inputs, readout)
            named = read_model(model, seed, train, weights, reset=reset, trust=trust)
            space = FaultSpace(named.model, read_data(inputs, limit).inputs, faults)
            typical = None if calibrate is None else _typical(calibrate, chip)
            window = 100 if steps is None else steps
            written = partial(_converted, chip, space, window, typical)
            if plan:
                _show_plan(written(), len(space.inputs), masks)
                return
            found = run_chip(
                space, steps=window, chip=chip, calibration=typical, progress=progress, **asked
            )
            if report_file and not (device or chip_fault):
                first = space.inputs[: found.facts["inputs"]]
                beside = _of_the_network(named.model, first, faults, seed, progress)
        else:
            for name, given in (("weights", weights), ("train", train), ("calibrate", calibrate)):
                if given is not None:
                    raise ArgumentError(
                        f"{name}={given!r}: {model!r} has weights already; leave --weights, "
                        "--train and --calibrate out"
                    )
            written = partial(_converted, chip)
            chip, values = _graph_inputs(chip, inputs, limit, steps, event_step)
            if plan:
                _show_plan(chip, len(values), masks)
                return
            found = run_graph(chip, values, faults, readout=readout, progress=progress, **asked)
    record = ChipRecord(
        model=model, seed=seed, hardware=found.facts, estimates=found.estimates, inputs=inputs,
        faults=_in_words(faults, device, chip_fault), beside=Estimates(beside), picojoules=energy,
        warnings=found.warnings, versions=versions(),
    )  # fmt: skip

    def as_json() -> None:
        if json_file:
            write("json", json_file, record.to_json())

    def as_report() -> None:
        if report_file:
            write("report", report_file, to_html(record))

    def as_nir() -> None:
        if nir_file:
            write_chip(written(), nir_file)
            told_written(nir_file)

    all_of(as_json, as_report, as_nir, lambda: _show(record))


def _show_plan(chip: Any, inputs: int, masks: int | None) -> None:
    """What would run, and about how long."""
    from crashsim.chip.plan import computed_operations, plan_run
    from crashsim.report.text import plain
    from crashsim.results.numbers import CORE, RATE_NAME, words_of_time

    planned = plan_run(chip, inputs, masks)
    seconds = computed_operations(chip, planned) / CORE
    told = f"{planned.words(chip)}; {words_of_time(seconds)} at {RATE_NAME}"
    for line in (told, planned.note()):
        if line:
            console().print(plain(line))


def _converted(chip: Any, *conversion: Any) -> Any:
    from crashsim.chip.conversion import chip_of

    return chip_of(*conversion)[0] if chip is None else chip


def _show(record: Any) -> None:
    from rich.console import Group

    from crashsim.report import chip
    from crashsim.report.screen.chip import render as chip_screen
    from crashsim.report.text import plain

    silent = [w for w in record.warnings if "never fires" in w]  # which makes all else nothing
    first = [plain(f"warning: {warning}", "yellow") for warning in silent]
    others = [w for w in record.warnings if w not in silent]
    warned = [plain(told, "yellow") for told in _warnings(others)]
    verdict = " ".join([*silent, chip.headline(record)])
    present(verdict, Group(*first, chip_screen(record), *warned))


def _warnings(warnings: list[str]) -> list[str]:
    from crashsim.report.screen import notes

    if printing().details:
        return [f"warning: {warning}" for warning in warnings]
    return notes.lines(warnings)


def _is_own(chip: Any, inputs: str, readout: str) -> bool:
    """Whether a chip that crashsim wrote is run beside its network, on constant inputs."""
    from crashsim.files.events import holds_events

    own = chip.network is not None and not chip.convention
    if not own or readout != "count" or holds_events(inputs):
        return False
    of_trains = len(chip.input_shape) + 2
    return bool(read_data(inputs, 1).inputs.ndim != of_trains)


def _check_timeless(model: str, inputs: str, readout: str) -> None:
    """Raises ArgumentError for what only graphs of neurons have."""
    from crashsim.files.events import holds_events

    if readout != "count":
        raise ArgumentError(f"readout={readout!r}: only for a .nir file, not {model!r}")
    if holds_events(inputs):
        raise ArgumentError(
            f"inputs={inputs!r} holds events, and {model!r} is a network without time; give a .nir "
            "file, as --nir writes the model's chip"
        )


def _typical(spec: str, chip: Any) -> Any:
    """Inputs that set the scales of rates."""
    from crashsim.files.data import load_data

    if chip is not None:
        raise ArgumentError(f"calibrate={spec!r}: a .nir file has its scales; leave it out")
    return load_data(spec, "train", 500).inputs.double().numpy()


def _graph_inputs(
    chip: Any, spec: str, limit: int, steps: int | None, event_step: float
) -> tuple[Any, Any]:
    """Inputs of a graph, and the graph with as many steps as trains have where nobody said."""
    from crashsim.files.events import holds_events, load_events

    settling, shape = chip.total_steps - chip.steps, chip.input_shape
    if holds_events(spec):
        whole_run = None if steps is None else steps + settling
        values = load_events(spec, shape, steps=whole_run, step=event_step, limit=limit)
    else:
        if event_step != 1.0:
            raise ArgumentError(f"event_step={event_step:g}: {spec!r} holds no events")
        values = read_data(spec, limit).inputs.double().numpy()
        constant = [n for n in values.shape[1:] if n != 1] == [n for n in shape if n != 1]
        if constant or values.ndim != len(shape) + 2:
            return chip, values
    if steps is None and values.shape[1] > settling:
        chip = replace(chip, steps=values.shape[1] - settling)
    return chip, values


def _of_the_network(model: Any, inputs: Any, faults: Any, seed: int, progress: Any) -> list[Any]:
    """What theory and Monte Carlo say of the same faults in the network: for each quantity."""
    from crashsim.noticing import collecting
    from crashsim.scoring.score import score

    with collecting():
        found = score(model, inputs, faults, seed=seed, progress=progress)
    theory = [m for m in _THEORY if any(e.method == m for e in found.estimates)][:1]
    kept = [*theory, "monte-carlo"]
    return [e for name in kept for e in found.estimates if e.method == name and e.input == "all"]


_THEORY = ("exact", "linear-exact", "pairs", "taylor", "mean-point-taylor", "single")


def _in_words(faults: Any, device: str | None, chip_fault: str | None) -> list[str]:
    if device or chip_fault:
        return [f"device {device}" if device else str(chip_fault)]
    return [f"{_shown(fault)} at {site}" for site, fault in faults.items()]


def _shown(fault: Any) -> str:
    """A fault with what is not as it is by default."""
    facts = fault.facts()
    plain = {"group": "unit", "duration": "permanent", "per": "all"}
    values = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in facts.items()
        if name != "fault" and plain.get(name) != value
    ]
    return " ".join((str(facts["fault"]), *values))


def graph_of(path: str, reset: Any, steps: int, options: dict[str, Any]) -> Any:
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
