"""``crashsim harden``: Algorithm 1, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from crashsim.cli.options import FaultOption, GroupOption, JsonOption, POption, SeedOption
from crashsim.cli.reading import (
    check_outputs,
    data_inputs,
    fault_inputs,
    progress_bars,
    read_faults,
    told_written,
    write,
)
from crashsim.cli.terminal import console
from crashsim.errors import Interrupted
from crashsim.visible import visible
from crashsim.writing import all_of


def harden(
    architecture: Annotated[str, typer.Argument(help="Where to start: 64-50-10:sigmoid.")],
    epsilon: Annotated[
        float, typer.Option(help="A failure: some output moves by this much or more.")
    ],
    delta: Annotated[float, typer.Option(help="The failure probability allowed.")],
    data: Annotated[str, typer.Option(help="digits, mnist:FOLDER or an .npz file.")] = "digits",
    out: Annotated[Path, typer.Option(help="Writes OUT.safetensors and OUT.json.")] = Path(
        "hardened"
    ),
    fault: FaultOption = None,
    p: POption = None,
    sites: Annotated[
        str | None, typer.Option(help="Where faults strike. (default: hidden)")
    ] = None,
    group: GroupOption = None,
    method: Annotated[
        Literal["saddlepoint", "paper"],
        typer.Option(help="Our tails and exact replica count, or the paper's Chebyshev theorem."),
    ] = "saddlepoint",
    epochs: Annotated[int, typer.Option(help="Of each training.")] = 30,
    max_width: Annotated[float, typer.Option(help="Hidden layers may grow by this factor.")] = 8,
    max_replicas: Annotated[int, typer.Option(help="Most copies to take the median of.")] = 9,
    max_accuracy_loss: Annotated[
        float, typer.Option(help="Clean accuracy that may be given up.")
    ] = 0.02,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Train, regularise, widen and replicate until failures are as rare as asked for."""
    from crashsim.files.data import load_data
    from crashsim.files.models import save_model
    from crashsim.report.text import plain
    from crashsim.training.classifier import Recipe
    from crashsim.training.hardening import Limits, Step
    from crashsim.training.hardening import harden as harden_network

    check_outputs([*data_inputs("data", data), *fault_inputs(fault)], out=out, json=json_file)
    faults: Any = read_faults(fault, p, sites, group)
    screen = console()

    def show(step: Step) -> None:
        screen.print(Text.assemble((f"{step.number}. ", "bold"), visible(_describe(step))))
        screen.print(Text.assemble(("   → ", "dim"), visible(step.reason)))

    limits = Limits(width=max_width, replicas=max_replicas, accuracy_loss=max_accuracy_loss)
    stop = None
    try:
        with progress_bars() as progress:

            def count(step: Step) -> None:
                show(step)
                progress("networks", step.number, Limits.steps)

            found = harden_network(
                architecture,
                load_data(data, "train"),
                load_data(data, "test"),
                faults,
                epsilon=epsilon,
                delta=delta,
                method=method,
                recipe=Recipe(epochs=epochs, seed=seed),
                limits=limits,
                seed=seed,
                report=count,
            )
    except Interrupted as error:
        stop, found = error, error.partial
    summary = {k: v for k, v in found.to_dict().items() if k != "architecture"}
    facts = {"data": data, "accuracy": found.accuracy, "hardening": _finite(summary)}

    def as_model() -> None:
        told_written(save_model(out, found.model, found.design.architecture, facts)[0])

    def as_json() -> None:
        if json_file:
            write("json", json_file, json.dumps(_finite(found.to_dict()), indent=1))

    def as_text() -> None:
        copies = "1 copy" if found.replicas == 1 else f"{found.replicas} copies, voting by median"
        screen.print()
        screen.print(plain(found.statement, "green" if found.reached else "red"))
        screen.print(plain(f"{copies}; test accuracy {found.accuracy:.2%}", "dim"))

    all_of(as_model, as_json, as_text)
    if stop is not None:
        raise stop
    if not found.reached:
        raise typer.Exit(1)


def _describe(step: Any) -> str:
    design = step.design
    strengths = [
        f"{name} {value:g}"
        for name, value in (
            ("variance", design.variance),
            ("continuity", design.continuity),
            ("balance", design.balance),
        )
        if value
    ]
    regularised = f", regularised ({', '.join(strengths)})" if strengths else ""
    replicas = f", {step.replicas} replicas do" if step.replicas and step.replicas > 1 else ""
    return (
        f"{design.architecture}{regularised}: accuracy {step.accuracy:.1%}, "
        f"P(fails) {step.failure:.2g}{replicas}"
    )


def _finite(values: Any) -> Any:
    from crashsim.results.json_reading import finite

    return finite(values)
