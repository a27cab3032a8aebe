"""``crashsim harden``: ways to harden a network, compared; or Algorithm 1, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from crashsim.cli.hardening.menu import menu_inputs, read_menu
from crashsim.cli.hardening.own import harden_own, train_inputs
from crashsim.cli.options import (
    BatchAxisOption,
    ExporterOption,
    FaultOption,
    GroupOption,
    JsonOption,
    POption,
    ReadoutOption,
    ResetOption,
    SeedOption,
    StepsAxisOption,
    TargetsOption,
    TrustOption,
    WeightsOption,
)
from crashsim.cli.reading import (
    check_outputs,
    data_inputs,
    fault_inputs,
    model_inputs,
    progress_bars,
    read_faults,
    told_written,
    write,
)
from crashsim.cli.terminal import console
from crashsim.errors import ArgumentError, Interrupted
from crashsim.visible import visible
from crashsim.writing import all_of


def harden(
    model: Annotated[
        str,
        typer.Argument(
            help="An architecture to start from (64-50-10:sigmoid); or, with --train, a network "
            "of yours: path.py:factory, or any other model that can be trained."
        ),
    ],
    epsilon: Annotated[
        float | None, typer.Option(help="A failure: some output moves by this much or more.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="With --epsilon: the failure probability allowed.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="How a network of yours is trained: path.py:train, called train(model, penalty) "
            "(runs that code). Ways to harden it are compared."
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(help="Compare ways: the worst value of the metric that is accepted."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Compare ways by this metric. (default: accuracy)")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Share of chips that are to reach the target. (default: their mean is)"),
    ] = None,
    way: Annotated[
        list[str] | None,
        typer.Option(
            help="A way to compare, repeatable: penalty=0.1, crash-training=3, narrow-weights=0.3, "
            "median=3, mean=3, secded, clip and other schemes, path.py:NAME (runs that code); "
            "several together as narrow-weights+crash-training. (default: a menu of them)"
        ),
    ] = None,
    equal: Annotated[
        Literal["steps", "operations"] | None,
        typer.Option(help="What all ways have in common, in training. (default: steps)"),
    ] = None,
    chips: Annotated[
        int | None, typer.Option(help="Faulty chips on which each way is judged. (default: 300)")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist:FOLDER or an .npz file; for a network of yours the held-out "
            "examples, of digits and mnist the test part."
        ),
    ] = "digits",
    targets: TargetsOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use the first held-out examples only.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Writes OUT.safetensors and OUT.json; of a network of yours the weights alone."
        ),
    ] = Path("hardened"),
    fault: FaultOption = None,
    p: POption = None,
    sites: Annotated[
        str | None, typer.Option(help="Where faults strike. (default: hidden)")
    ] = None,
    group: GroupOption = None,
    method: Annotated[
        Literal["saddlepoint", "paper"] | None,
        typer.Option(
            help="Our tails and exact replica count, or the paper's Chebyshev theorem. "
            "(default: saddlepoint)"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of each training of an architecture. (default: 30)")
    ] = None,
    max_width: Annotated[
        float | None, typer.Option(help="Hidden layers may grow by this factor. (default: 8)")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Most copies to take the median of. (default: 9)")
    ] = None,
    max_accuracy_loss: Annotated[
        float, typer.Option(help="Clean accuracy that may be given up.")
    ] = 0.02,
    readout: ReadoutOption = None,
    batch_axis: BatchAxisOption = 0,
    steps_axis: StepsAxisOption = None,
    weights: WeightsOption = None,
    reset: ResetOption = None,
    exporter: ExporterOption = None,
    trust: TrustOption = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Of compared ways: write an HTML page.")
    ] = None,
) -> None:
    """Make a network tolerate faults: compare ways to harden yours, or grow an architecture.

    With --train, --target or --way, ways to train and protect a network are compared at equal cost
    on held-out examples. With --epsilon and --delta alone, an architecture is trained, regularised,
    widened and replicated until failures are as rare as asked for.
    """
    from crashsim.files.architectures import is_architecture
    from crashsim.files.data import load_data
    from crashsim.files.models import save_model
    from crashsim.report.text import plain
    from crashsim.training.classifier import Recipe
    from crashsim.training.hardening import Limits, Step
    from crashsim.training.hardening import harden as harden_network

    reads = [*data_inputs("data", data), *fault_inputs(fault), *model_inputs(model, weights)]
    reads += [*train_inputs(train), *menu_inputs(way), *data_inputs("targets", targets)]
    check_outputs(reads, out=out, json=json_file, report=report_file)
    faults: Any = read_faults(fault, p, sites, group)
    compares = {
        "train": train, "target": target, "metric": metric, "share": share, "way": way,
        "report": report_file, "readout": readout, "steps-axis": steps_axis, "weights": weights,
        "targets": targets, "limit": limit, "equal": equal, "chips": chips,
        "batch-axis": batch_axis or None, "reset": reset, "exporter": exporter,
    }  # fmt: skip
    if any(given is not None for given in compares.values()) or not is_architecture(model):
        grows = {"method": method, "max-width": max_width, "max-replicas": max_replicas}
        _check_used(grows, "ways are compared, and no architecture grows")
        if train is not None:
            _check_used({"epochs": epochs}, "--train says how to train")
        options = {
            "epsilon": epsilon, "delta": delta, "target": target, "metric": metric, "share": share,
            "menu": read_menu(way), "equal": equal or "steps", "readout": readout,
            "chips": 300 if chips is None else chips,
            "batch_axis": batch_axis, "steps_axis": steps_axis, "accuracy_loss": max_accuracy_loss,
        }  # fmt: skip
        passes = 30 if epochs is None else epochs
        if not harden_own(
            model, train, data, out, json_file, report_file, faults, passes, seed, weights, trust,
            reset, {"exporter": exporter}, targets, limit, options,
        ):  # fmt: skip
            raise typer.Exit(1)
        return
    if epsilon is None or delta is None:
        raise ArgumentError(
            f"epsilon={epsilon}, delta={delta}: give both, or --target to compare ways to harden"
        )
    screen = console()

    def show(step: Step) -> None:
        screen.print(Text.assemble((f"{step.number}. ", "bold"), visible(_describe(step))))
        screen.print(Text.assemble(("   → ", "dim"), visible(step.reason)))

    limits = Limits(
        width=8 if max_width is None else max_width,
        replicas=9 if max_replicas is None else max_replicas,
        accuracy_loss=max_accuracy_loss,
    )
    stop = None
    try:
        with progress_bars() as progress:

            def count(step: Step) -> None:
                show(step)
                progress("networks", step.number, Limits.steps)

            found = harden_network(
                model,
                load_data(data, "train"),
                load_data(data, "test"),
                faults,
                epsilon=epsilon,
                delta=delta,
                method=method or "saddlepoint",
                recipe=Recipe(epochs=30 if epochs is None else epochs, seed=seed),
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


def _check_used(options: dict[str, Any], why: str) -> None:
    """Options that would have no effect are a mistake: the result would not be what it seems."""
    for name, value in options.items():
        if value is not None:
            raise ArgumentError(f"{name}={value!r}: has no effect, since {why}; leave it out")


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
