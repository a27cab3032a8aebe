"""The commands. Each reads its arguments, calls the library and shows the result.

torch, sympy and the rest load inside the commands, so that --help is immediate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from crashsim.arguments import MOST_INITS
from crashsim.cli.executors import (
    DaskOption,
    RayOption,
    SlurmOption,
    StoreOption,
    WorkersOption,
    executor_of,
)
from crashsim.cli.front import demo
from crashsim.cli.metrics import SMALL, labelled_examples, read_numbers, read_widths
from crashsim.cli.options import (
    AcceptOption,
    BatchAxisOption,
    BudgetOption,
    DemoModelArgument,
    DtOption,
    EpsilonOption,
    ExporterOption,
    FaultOption,
    GraphStepsOption,
    GroupOption,
    InputsOption,
    JsonOption,
    JudgedLimitOption,
    LimitOption,
    LossOption,
    MemoryOption,
    MetricOption,
    ModelsArgument,
    OutputsOption,
    ParquetOption,
    PlanOption,
    POption,
    ReadoutOption,
    RelWidthOption,
    ResetOption,
    SamplesOption,
    SeedOption,
    SitesOption,
    StartOption,
    StepsAxisOption,
    TargetsOption,
    TrainOption,
    TrustOption,
    VirtualOption,
    WeightsOption,
)
from crashsim.cli.reading import (
    check_figures,
    check_outputs,
    data_inputs,
    fault_inputs,
    judge_model,
    loss_inputs,
    method_inputs,
    model_inputs,
    progress_bars,
    read_asked_outputs,
    read_examples,
    read_faults,
    read_loss,
    read_methods,
    read_model,
    score_model,
    show_plan,
    told_written,
    write,
    write_tables,
)
from crashsim.cli.terminal import console, present, printing
from crashsim.errors import ArgumentError, Interrupted
from crashsim.writing import all_of, write_files


def score(
    model: DemoModelArgument = None,
    inputs: InputsOption = "digits",
    targets: TargetsOption = None,
    metric: MetricOption = None,
    accept: AcceptOption = None,
    virtual: VirtualOption = None,
    limit: JudgedLimitOption = None,
    fault: FaultOption = None,
    p: POption = None,
    sites: SitesOption = None,
    group: GroupOption = None,
    readout: ReadoutOption = None,
    batch_axis: BatchAxisOption = 0,
    steps_axis: StepsAxisOption = None,
    outputs: OutputsOption = None,
    loss: LossOption = None,
    epsilon: EpsilonOption = None,
    delta: Annotated[
        float | None,
        typer.Option(help="With --epsilon, a target: say which p, width and replicas reach it."),
    ] = None,
    samples: SamplesOption = None,
    rel_width: RelWidthOption = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated methods (default: all that apply); +NAME adds one, path.py:NAME "
            "adds a crashsim.Method of your own (runs that code)."
        ),
    ] = None,
    train: TrainOption = None,
    inits: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_INITS, help="Score this number of initialisations of an architecture."
        ),
    ] = 1,
    weights: WeightsOption = None,
    reset: ResetOption = None,
    steps: GraphStepsOption = None,
    dt: DtOption = None,
    exporter: ExporterOption = None,
    start: StartOption = None,
    trust: TrustOption = False,
    hardware: Annotated[
        bool,
        typer.Option("--hardware", help="Also run the same faults on a spiking chip."),
    ] = False,
    proofs: Annotated[
        bool,
        typer.Option("--proofs", help="Also prove bounds, where they can be (some 20 seconds)."),
    ] = False,
    budget: BudgetOption = None,
    memory: MemoryOption = "2GiB",
    plan: PlanOption = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
    arrays_file: Annotated[
        Path | None,
        typer.Option(
            "--arrays",
            help="Write all numbers as .npz: with many outputs, JSON has the largest alone.",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the estimates as CSV, a row each.")
    ] = None,
    parquet_file: ParquetOption = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write an HTML report.")
    ] = None,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    ray: RayOption = None,
    slurm: SlurmOption = None,
    store: StoreOption = None,
) -> None:
    """Score a network: how accurate it stays, how far its output moves, and how sure that is."""
    from crashsim.files.limits import read_size
    from crashsim.report import text
    from crashsim.report.screen import score as screen
    from crashsim.report.spread import spread_over
    from crashsim.results.verdict import headline

    is_demo = model is None
    if model is None:
        model, train = demo.start(inputs, train=train, weights=weights, targets=targets)
    reads = [*model_inputs(model, weights), *data_inputs("inputs", inputs), *fault_inputs(fault)]
    reads += [*data_inputs("train", train), *method_inputs(methods)]
    reads += [*data_inputs("targets", targets), *loss_inputs(loss)]
    files = {"csv": csv_file, "parquet": parquet_file, "arrays": arrays_file}
    check_outputs(reads, json=json_file, report=report_file, **files)
    check_figures(report_file)
    faults = read_faults(fault, p, sites, group)
    data = labelled_examples(inputs, limit, batch_axis, targets)
    options: dict[str, Any] = {
        "readout": readout,
        "batch_axis": batch_axis,
        "steps_axis": steps_axis,
        "outputs": read_asked_outputs(outputs),
        "loss": read_loss(loss),
        "epsilon": epsilon,
        "delta": delta,
        "methods": read_methods(methods),
        "samples": samples,
        "rel_width": read_widths(rel_width),
        "metrics": metric,
        "accept": read_numbers("accept", accept),
        "moved": limit or SMALL,
        "virtual": virtual,
        "seed": seed,
        "hardware": hardware,
        "proofs": proofs,
        "budget": budget,
        "memory": read_size("memory", memory),
    }
    graph = {"steps": steps, "dt": dt, "exporter": exporter, "start": start}
    is_asked = targets is not None
    if plan:
        _check_only_planned(report_file, None if is_demo else train, arrays_file)
        named = read_model(model, seed, None, weights, inits, reset, trust, graph)
        show_plan(named, data, faults, json_file, options, is_asked=is_asked)
        return
    results: list[Any] = []
    stop = None
    try:
        with executor_of(workers, dask, ray, slurm) as executor:
            options |= {"executor": executor, "store": store}
            for init in range(inits):
                named = read_model(model, seed + init, train, weights, inits, reset, trust, graph)
                with progress_bars() as progress:
                    results.append(
                        judge_model(named, data, faults, progress, is_asked=is_asked, **options)
                    )
    except KeyboardInterrupt as error:
        stop = error
        results += [error.partial] if isinstance(error, Interrupted) else []
        if not results:
            raise

    def as_json() -> None:
        if json_file:
            plain = results[0].to_dict()
            if inits > 1:
                plain["partial"] = stop is not None
                plain["inits"] = [result.to_dict() for result in results[1:]]
            write("json", json_file, json.dumps(plain, indent=1))

    def as_arrays() -> None:
        if arrays_file:
            write_files("arrays", (arrays_file, results[0].estimates_file()))
            told_written(arrays_file)

    def as_tables() -> None:
        from crashsim.results.tables import of_scores

        write_tables(csv_file, parquet_file, lambda: of_scores(results))

    def as_html() -> None:
        if report_file:
            write("report", report_file, results[0].to_html())

    def as_text() -> None:
        first = results[0]
        present(headline(first), (text if printing().details else screen).render(first))
        if printing().quiet:
            return
        whole = [result for result in results if not result.partial]
        if len(whole) > 1:
            console().print(spread_over(whole))

    all_of(as_json, as_arrays, as_tables, as_html, as_text)
    if is_demo:
        demo.say_next()
    if stop is not None:
        raise Interrupted("interrupted", results) from stop


def _check_only_planned(
    report_file: Path | None, train: str | None, arrays_file: Path | None
) -> None:
    """A plan has no report, and needs no training: its costs are those of any weights."""
    for name, given in (("report", report_file), ("train", train), ("arrays", arrays_file)):
        if given is not None:
            raise ArgumentError(f"{name}: --plan runs nothing; leave --{name} out")


def compare(
    models: ModelsArgument,
    inputs: InputsOption = "digits",
    limit: LimitOption = 32,
    fault: FaultOption = None,
    p: POption = None,
    sites: SitesOption = None,
    group: GroupOption = None,
    batch_axis: BatchAxisOption = 0,
    steps_axis: StepsAxisOption = None,
    samples: SamplesOption = None,
    train: TrainOption = None,
    inits: Annotated[
        int, typer.Option(min=1, max=MOST_INITS, help="Initialisations of each architecture.")
    ] = 1,
    by: Annotated[
        Literal["variance", "class-change"] | None,
        typer.Option(help="What to rank by. (default: class-change for classifiers)"),
    ] = None,
    trust: TrustOption = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Rank models by how well they tolerate faults, with intervals."""
    from dataclasses import replace

    from crashsim.report.comparison import render_comparison
    from crashsim.results.comparison import compare as compare_scores
    from crashsim.results.json_reading import finite
    from crashsim.training.classifier import accuracy

    reads = [file for model in models for file in model_inputs(model)] + fault_inputs(fault)
    check_outputs(
        [*reads, *data_inputs("inputs", inputs), *data_inputs("train", train)], json=json_file
    )
    if len(models) < 2:
        raise ArgumentError(f"models={models}: one model to compare; give at least two")
    if len(set(models)) < len(models):
        raise ArgumentError(f"models: {models} names one twice; give different models")
    faults = read_faults(fault, p, sites, group)
    examples = read_examples(inputs, None, batch_axis)
    few = read_examples(inputs, limit, batch_axis)
    layout = {"batch_axis": batch_axis, "steps_axis": steps_axis}
    if isinstance(examples.inputs, dict):
        raise ArgumentError(
            f"inputs={inputs!r} holds {sorted(examples.inputs)}; models are compared on one array: "
            "name it 'inputs' or 'x'"
        )
    scores, accuracies, spreads = {}, {}, {}
    stop = None
    try:
        for name in models:
            group_scores, group_accuracy, group_spread = [], [], []
            for init in range(inits):
                named = read_model(name, seed + init, train, None, inits, trust=trust)
                data = replace(examples, inputs=examples.fitted(named.model))
                chosen = replace(few, inputs=few.fitted(named.model))
                with progress_bars() as progress:
                    group_scores.append(
                        score_model(
                            named, chosen, faults, progress,
                            methods=["monte-carlo"], samples=samples, seed=seed, **layout,
                        )
                    )  # fmt: skip
                group_spread.append(_spread(named.model, chosen.inputs, batch_axis))
                if data.targets is not None:
                    group_accuracy.append(accuracy(named.model, data))
            if group_accuracy:
                accuracies[name] = group_accuracy
            spreads[name] = group_spread
            scores[name] = group_scores
    except KeyboardInterrupt as error:
        stop = error
        if not scores:
            raise
    missing = [name for name in models if name not in scores]
    result = compare_scores(scores, by, accuracies, spreads, missing)

    def as_json() -> None:
        if json_file:
            write("json", json_file, json.dumps(finite(result.to_dict()), indent=1))

    all_of(as_json, lambda: present(result.verdict, render_comparison(result)))
    if stop is not None:
        raise Interrupted("interrupted", result) from stop


def _spread(model: Any, inputs: Any, batch_axis: int) -> float:
    """The variance of the outputs over the inputs, wherever the batch is, summed over outputs."""
    import torch

    from crashsim.faults import NeuronCrash
    from crashsim.space import FaultSpace

    if batch_axis:
        axis, none = batch_axis, NeuronCrash(p=0.0)
        clean = torch.from_numpy(FaultSpace(model, inputs, none, "input", batch_axis=axis).clean())
    else:
        with torch.no_grad():
            clean = model(inputs.clone()).flatten(1)
    return float(clean.var(0, correction=0).sum())


def train(
    architecture: Annotated[str, typer.Argument(help="Such as 64-100-50-10:sigmoid.")],
    data: Annotated[str, typer.Option(help="digits, mnist:FOLDER or an .npz file.")] = "digits",
    out: Annotated[Path, typer.Option(help="Writes OUT.safetensors and OUT.json.")] = Path("model"),
    epochs: Annotated[int, typer.Option(help="Passes through the data.")] = 40,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 5e-3,
    batch: Annotated[int, typer.Option(help="Examples in a step.")] = 64,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    dropout: Annotated[float, typer.Option(help="Of hidden neurons while training.")] = 0.0,
    variance: Annotated[
        float, typer.Option(help="Strength of the penalty on the variance under faults.")
    ] = 0.0,
    continuity: Annotated[
        float, typer.Option(help="Strength of the penalty on differences of neighbours.")
    ] = 0.0,
    balance: Annotated[
        float, typer.Option(help="Strength of the penalty on unequal neurons.")
    ] = 0.0,
    crash_training: Annotated[
        bool, typer.Option("--crash-training", help="Inject the faults while training.")
    ] = False,
    fault: FaultOption = None,
    p: POption = None,
    sites: SitesOption = None,
    group: GroupOption = None,
    seed: SeedOption = 0,
) -> None:
    """Train an architecture, plainly or to tolerate faults, and write a model file."""
    from dataclasses import asdict

    from crashsim.files.architectures import parse_architecture
    from crashsim.files.data import load_data
    from crashsim.files.models import save_model
    from crashsim.training.classifier import Recipe, accuracy, train_classifier
    from crashsim.training.penalties import Strengths, attached_penalties

    check_outputs([*data_inputs("data", data), *fault_inputs(fault)], out=out)
    faults = read_faults(fault, p, sites, group)
    strengths = Strengths(variance, continuity, balance)
    _check_faults_are_used(strengths.variance > 0 or crash_training, fault, p, sites, group)
    built = parse_architecture(architecture)
    recipe = Recipe(epochs, learning_rate, batch, weight_decay, dropout, seed)
    training, test = load_data(data, "train"), load_data(data, "test")
    model = built.build(seed)
    with (
        progress_bars() as progress,
        attached_penalties(
            model, faults, strengths, crash_training=crash_training, seed=seed
        ) as penalties,
    ):
        loss = train_classifier(
            model,
            training,
            recipe,
            lambda done, total: progress("training", done, total),
            penalties,
        )
    reached = accuracy(model, test)
    facts = {"data": data, "accuracy": reached, "loss": loss, "recipe": asdict(recipe)}
    if crash_training or strengths.any:
        against = {where: f.to_dict() for where, f in faults.items()}
        facts["tolerance"] = asdict(strengths) | {
            "crash_training": crash_training,
            "faults": against,
        }
    weights, _ = save_model(out, model, built, facts)
    console().print(
        f"{built}: test accuracy {reached:.2%} on {len(test.inputs)} examples, "
        f"training loss {loss:.3g}"
    )
    told_written(weights)


def _check_faults_are_used(used: bool, *options: object) -> None:
    """Options that would have no effect are a mistake: the training would not be what it seems."""
    names = ("fault", "p", "sites", "group")
    given = [name for name, option in zip(names, options, strict=True) if option is not None]
    if given and not used:
        raise ArgumentError(
            f"{given[0]}: nothing trains against faults here; give --variance or "
            f"--crash-training too, or leave --{given[0]} out"
        )


def derive(
    order: Annotated[int, typer.Option(help="Of the Taylor expansion: 1 to 4.")] = 1,
    fault: Annotated[str | None, typer.Option(help="A kind of fault; default: any law.")] = None,
    point: Annotated[
        Literal["mean", "zero"], typer.Option(help="Expand at the mean point or at no faults.")
    ] = "mean",
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX.")] = False,
) -> None:
    """Derive the formulas for mean and variance symbolically, and print them."""
    from crashsim_theory import TheoryError
    from crashsim_theory import derive as derive_formulas

    from crashsim.cli.fault_specs import fault_class

    law = None if fault is None else fault_class(fault).law
    try:
        formula = derive_formulas(order=order, point=point, law=law)
    except TheoryError as error:
        raise ArgumentError(str(error)) from error
    print(formula.latex() if latex else formula.text())


def report(
    score_file: Annotated[
        Path,
        typer.Argument(
            help="JSON of `score`, `hardware`, `sweep`, `vulnerability`, `protect` or `harden`."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The HTML file.")] = Path("report.html"),
) -> None:
    """Turn a saved score, run of the chip, curve, map, plan or comparison into an HTML report."""
    from crashsim.report import chip_html, curves, hardening, plans
    from crashsim.report.maps import vulnerability as maps
    from crashsim.results.chip_record import ChipRecord
    from crashsim.results.hardening.record import HardeningRecord
    from crashsim.results.plan.plan_record import PlanRecord
    from crashsim.results.vulnerability.vulnerability_record import VulnerabilityRecord
    from crashsim.scoring.records import load_record

    check_outputs([("score", score_file)], report=out)
    found = load_record(score_file)
    if isinstance(found, list):
        write("out", out, curves.to_html(found))
    elif isinstance(found, ChipRecord):
        write("out", out, chip_html.to_html(found))
    elif isinstance(found, VulnerabilityRecord):
        write("out", out, maps.to_html(found))
    elif isinstance(found, HardeningRecord):
        write("out", out, hardening.to_html(found))
    elif isinstance(found, PlanRecord):
        write("out", out, plans.to_html(found))
    else:
        write("out", out, found.to_html())
